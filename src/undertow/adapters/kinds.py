"""Which kind of adapter a file is, by names and shapes alone: nobody has to say it, and names of files lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from undertow.adapters.control.control_lora import is_control_lora
from undertow.adapters.control.control_refusals import refuse_other_controls
from undertow.adapters.control.t2i_files import is_t2i
from undertow.adapters.files.opened import AdapterSource, open_source
from undertow.adapters.image_prompt.names import is_image_prompt, require_image_prompt
from undertow.adapters.lora.leaves import read_names
from undertow.checkpoints.identify.unsupported import refuse_other_files, refuse_other_networks, refuse_quantized
from undertow.checkpoints.keymap.contents import read_contents
from undertow.checkpoints.keymap.prefixes import CONTROL_PREFIXES, TITLES, Dialect
from undertow.errors import UnknownCheckpoint

AdapterKind = Literal["lora", "controlnet", "control_lora", "t2i", "image_prompt"]

KIND_TITLES: Mapping[AdapterKind, str] = {
    "lora": "a LoRA",
    "controlnet": "a ControlNet",
    "control_lora": "a Control-LoRA",
    "t2i": "a T2I-Adapter",
    "image_prompt": "an IP-Adapter",
}

CONTROLNET_SIGNS: Mapping[Dialect, str] = {
    "ldm": "zero_convs.0.0.weight",
    "diffusers": "controlnet_cond_embedding.conv_in.weight",
}
"""A tensor that every ControlNet has, under lllyasviel's name and under diffusers'."""

_OF_FACES = ("id_encoder.", "id_adapter", "pulid_")
"""Adapters that read faces and are called like nothing else here; the image room names them."""


def adapter_kind(source: str | Path) -> AdapterKind:
    """The kind of the adapter at `source`: a safetensors file, a pickle (.bin, .pth), a folder, or these on the Hub.

    Errors: `UnsupportedModel` names a kind that undertow does not run, with the reason; `UnknownCheckpoint`,
    `UnsafeFile`, `CorruptFile`.
    """
    with open_source(source) as opened:
        return kind_of(opened)


def kind_of(opened: AdapterSource) -> AdapterKind:
    """The kind of an opened adapter. Errors: `UnsupportedModel`, `UnknownCheckpoint`."""
    path, names = opened.path, opened.names
    refuse_quantized(path, names, opened.weights.metadata)
    refuse_other_controls(path, names, opened.config)
    if is_control_lora(names):
        return "control_lora"
    if controlnet_place(names) is not None:
        return "controlnet"
    if is_t2i(names):
        return "t2i"
    if is_image_prompt(names) or any(name.startswith(_OF_FACES) for name in names):
        require_image_prompt(path, opened.weights)
        return "image_prompt"
    found = read_names(names)
    if found.layers or found.unread:
        return "lora"
    raise _stranger(opened)


def controlnet_place(names: Mapping[str, str]) -> tuple[str, Dialect] | None:
    """(prefix, dialect) of a ControlNet's tensors among names in their bare form; `None` when there is none."""
    for dialect, sign in CONTROLNET_SIGNS.items():
        for prefix in CONTROL_PREFIXES:
            if prefix + sign in names:
                return prefix, dialect
    return None


def _stranger(opened: AdapterSource) -> UnknownCheckpoint:
    """What to say of a file that is no adapter. Errors: `UnsupportedModel` for other models that have a name."""
    path, tensors = opened.path, opened.tensors
    remedy = "give a LoRA, a ControlNet, a T2I-Adapter or an IP-Adapter"
    refuse_other_networks(path, opened.names)
    parts = read_contents(tensors).parts
    if parts:
        held = ", ".join(TITLES[part] for part in parts)
        return UnknownCheckpoint(path, f"a model of its own ({held}), not an adapter", f"load it as one, or {remedy}")
    refuse_other_files(path, opened.names)
    if not tensors:
        return UnknownCheckpoint(path, "it holds no tensors", remedy)
    some = ", ".join(repr(name) for name in list(tensors)[:3])
    return UnknownCheckpoint(path, f"none of its {len(tensors)} tensors is called as in an adapter ({some})", remedy)
