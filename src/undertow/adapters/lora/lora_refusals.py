"""Adapters of other networks, formats that are not read, and files that are no adapter: refused by name, before any
tensor is read, and without torch."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from undertow.adapters.lora.leaves import LoraNames
from undertow.checkpoints.files.weights import Weights
from undertow.checkpoints.identify.unsupported import (
    SUPPORTED_MODELS,
    refuse_other_files,
    refuse_other_networks,
    refuse_quantized,
)
from undertow.checkpoints.keymap.contents import read_contents
from undertow.checkpoints.keymap.prefixes import TITLES
from undertow.errors import UnknownCheckpoint, UnsupportedModel

WIDTHS: Mapping[int, str] = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: "the Stable Diffusion XL refiner",
}
"""Width of the text tokens that cross-attention reads, by family."""

TEXT_READER = re.compile(r".*attn2[._](processor[._])?to_[kv]")
"""The layers whose inputs are the text's."""

_PREFIX = r"(lora_unet_|lora_transformer_|lycoris_|diffusion_model\.|transformer\.|base_model\.model\.|unet\.)*"

_OTHER_LAYERS: Mapping[str, str] = {
    # Order matters: FLUX has layers like those of Stable Diffusion 3, and so has Qwen-Image.
    "a LoRA of FLUX": rf"{_PREFIX}(double_blocks|single_blocks|single_transformer_blocks)[._]\d+[._].+",
    "a LoRA of Qwen-Image": rf"{_PREFIX}transformer_blocks[._]\d+[._](img|txt)_(mlp|mod).*",
    "a LoRA of Stable Diffusion 3": (
        rf"{_PREFIX}(joint_blocks[._]\d+[._].+|transformer_blocks[._]\d+[._](attn2?[._](add_[qkv]_proj|to_add_out)"
        r"|norm1_context|ff_context).*)"
    ),
    "a LoRA of Wan": rf"{_PREFIX}blocks[._]\d+[._](self|cross)_attn[._].+",
    "a LoRA of a T5 text encoder": r"(lora_te3_|text_encoder_3\.|text_encoders\.t5).*",
    "a LoRA of Kandinsky or Stable Cascade": r"lora_prior_.*",
    "an AnimateDiff motion LoRA": r".*[._]motion_modules[._].*",
    "a ControlNet-LLLite": r"lllite_.*",
    "an IP-Adapter": r"(ip_adapter|image_proj)\..*",
    "a LoRA of a diffusion transformer": (
        r"(transformer\.(?!resblocks)|lora_transformer_|base_model\.model\.transformer_blocks\.).+"
    ),
}


def refuse_other_adapters(path: Path, stems: Iterable[str]) -> None:
    """Rejects LoRAs of other networks by the names of their layers. Errors: `UnsupportedModel`."""
    stems = list(stems)
    for model, pattern in _OTHER_LAYERS.items():
        layer = re.compile(pattern)
        found = next((stem for stem in stems if layer.fullmatch(stem)), None)
        if found is not None:
            raise UnsupportedModel(path, f"{model} ({found})", SUPPORTED_MODELS)


def refuse_unread(path: Path, unread: Mapping[str, str]) -> None:
    """Rejects formats that are recognized but not read. Errors: `UnsupportedModel`."""
    for name, what in unread.items():
        raise UnsupportedModel(path, f"an adapter with {what} ({name})", "use it as LoRA, LyCORIS or whole differences")


def require_lora(weights: Weights, names: LoraNames) -> None:
    """Checks that a file holds a LoRA that undertow reads. Errors: `UnsupportedModel`, `UnknownCheckpoint`."""
    refuse_quantized(weights.path, weights.tensors, weights.metadata)
    if "lora_controlnet" in weights.tensors:
        raise UnsupportedModel(weights.path, "a Control-LoRA", SUPPORTED_MODELS)
    refuse_other_adapters(weights.path, [*names.layers, *names.unread, *names.unknown])
    if names.layers or names.unread:
        return
    refuse_other_networks(weights.path, weights.tensors)
    parts = read_contents(weights.tensors).parts
    if parts:
        held = ", ".join(TITLES[part] for part in parts)
        remedy = "load it with `undertow.load`, and give a LoRA here"
        raise UnsupportedModel(weights.path, f"a model of its own ({held}), not an adapter", remedy)
    refuse_other_files(weights.path, weights.tensors)
    raise UnknownCheckpoint(weights.path, _nothing_known(weights.tensors), "give a LoRA or LyCORIS file")


def _nothing_known(names: Collection[str]) -> str:
    if not names:
        return "it holds no tensors"
    some = ", ".join(repr(name) for name in list(names)[:3])
    return f"none of its {len(names)} tensors is called as in an adapter ({some}{', ...' if len(names) > 3 else ''})"
