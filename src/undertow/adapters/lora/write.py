"""Writing LoRA files as other programs read them: sd-scripts' names, or PEFT's as diffusers saves them.

kohya   lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha; SDXL's U-Net under LDM's names
        (sd-scripts networks/lora.py), text encoders under lora_te_ (SDXL: lora_te1_, lora_te2_)
peft    unet.down_blocks.0....to_q.lora_A.weight, .lora_B.weight; alpha is in the header's `lora_adapter_metadata`
        (diffusers loaders/lora_base.py), without which readers take it for the rank
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from undertow.adapters.lora.additive import LowRank
from undertow.checkpoints.files.weights import write_tensors
from undertow.checkpoints.identify.families import FamilyName
from undertow.checkpoints.keymap import BlockLayout, unet_renaming
from undertow.errors import InvalidInput
from undertow.unet.config import UNetConfig

Component = Literal["unet", "text_encoder", "text_encoder_2"]
"""The part of a pipeline, by diffusers' name."""

FORMATS = ("kohya", "peft")

# What sd-scripts calls the published families (library/model_util.py, library/sai_model_spec.py).
BASE_VERSIONS: Mapping[FamilyName, str] = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES: Mapping[FamilyName, str] = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "sdxl_refiner": "stable-diffusion-xl-v1-refiner/lora",
}
V_ARCHITECTURE = "stable-diffusion-v2-768-v/lora"


@dataclass(frozen=True, kw_only=True)
class TrainedLora:
    """What a LoRA file holds.

    updates: by component and layer, under diffusers' and transformers' names (text encoders' with `text_model.`), all
    of one scale. family, variant, prediction: of the base model, see `Identification`; variant "custom" is
    none of the published models. notes: more entries for the header. Errors: `InvalidInput`.
    """

    updates: Mapping[Component, Mapping[str, LowRank]]
    title: str
    family: FamilyName
    variant: str
    prediction: str
    config: UNetConfig
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        scales = {update.scale for layers in self.updates.values() for update in layers.values()}
        if len(scales) != 1:
            raise InvalidInput("updates", f"of {len(scales)} scales", "layers of one scale")

    @property
    def rank(self) -> int:
        """Of every update but those of layers that have fewer channels: the largest."""
        return max(len(update.down) for layers in self.updates.values() for update in layers.values())

    @property
    def alpha(self) -> float:
        """The files' word for the scale, of updates of this rank: alpha / rank."""
        return next(update.scale for layers in self.updates.values() for update in layers.values()) * self.rank


def write_lora(lora: TrainedLora, path: Path, *, format: str, dtype: torch.dtype = torch.float16) -> None:
    """Writes a safetensors file, whole or not at all. Errors: `InvalidInput` for an unknown format and for updates
    that are not finite in `dtype`."""
    if format not in FORMATS:
        raise InvalidInput("format", repr(format), f"one of {', '.join(FORMATS)}")
    if format == "kohya":
        named, metadata = dict(_kohya_tensors(lora)), _kohya_metadata(lora)
    else:
        named, metadata = dict(_peft_tensors(lora)), _peft_metadata(lora)
    stored = {name: _stored(name, tensor, dtype) for name, tensor in named.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(stored, path, {"format": "pt", **metadata})


def kohya_stem(component: Component, layer: str, lora_family: FamilyName, config: UNetConfig) -> str:
    """sd-scripts' name of a layer, without dots."""
    sdxl = lora_family in ("sdxl", "sdxl_refiner")
    match component:
        case "unet":
            name = unet_renaming(BlockLayout.of_config(config)).to_foreign(layer) if sdxl else layer
            assert name is not None  # the table covers every layer of the architecture
            return f"lora_unet_{name.replace('.', '_')}"
        case "text_encoder":
            return f"lora_te{'1' if sdxl else ''}_{layer.replace('.', '_')}"
        case "text_encoder_2":
            return f"lora_te2_{layer.replace('.', '_')}"


def _kohya_tensors(lora: TrainedLora) -> Iterator[tuple[str, Tensor]]:
    for component, layers in lora.updates.items():
        for layer, update in layers.items():
            stem = kohya_stem(component, layer, lora.family, lora.config)
            yield f"{stem}.lora_down.weight", update.down
            yield f"{stem}.lora_up.weight", update.up
            yield f"{stem}.alpha", torch.tensor(float(update.scale * len(update.down)))


def _peft_tensors(lora: TrainedLora) -> Iterator[tuple[str, Tensor]]:
    for component, layers in lora.updates.items():
        for layer, update in layers.items():
            yield f"{component}.{layer}.lora_A.weight", update.down
            yield f"{component}.{layer}.lora_B.weight", update.up


def _kohya_metadata(lora: TrainedLora) -> dict[str, str]:
    v = "_v" if lora.prediction == "v" and lora.family != "sdxl" else ""
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": f"{lora.alpha:g}",
        "ss_v2": str(lora.family == "sd2"),
        "ss_output_name": lora.title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": lora.title,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": lora.prediction,
    }
    if lora.variant != "custom" and lora.family in ARCHITECTURES:
        metadata["modelspec.architecture"] = (
            V_ARCHITECTURE if lora.family == "sd2" and v else ARCHITECTURES[lora.family]
        )
    if lora.variant != "custom" and lora.family in BASE_VERSIONS:
        metadata["ss_base_model_version"] = BASE_VERSIONS[lora.family] + v
    return {**metadata, **lora.notes}


def _peft_metadata(lora: TrainedLora) -> dict[str, str]:
    config: dict[str, object] = {}
    for component, layers in lora.updates.items():
        # Older CLIPTextModels have a `text_model.` in front and newer ones have not: PEFT takes ends of names.
        targets = [layer.removeprefix("text_model.") for layer in layers]
        config |= {
            f"{component}.r": lora.rank,
            f"{component}.lora_alpha": lora.alpha,
            f"{component}.target_modules": targets,
        }
        ranks = dict(zip(targets, (len(update.down) for update in layers.values()), strict=True))
        if smaller := {target: rank for target, rank in ranks.items() if rank != lora.rank}:
            config[f"{component}.rank_pattern"] = smaller
            config[f"{component}.alpha_pattern"] = {
                target: lora.alpha * rank / lora.rank for target, rank in smaller.items()
            }
    return {"lora_adapter_metadata": json.dumps(config), "modelspec.title": lora.title, **lora.notes}


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if name.endswith(".alpha"):
        return tensor  # few bytes, and 0.1 is no number of float16
    rounded = tensor.detach().to("cpu", dtype).contiguous()
    if not rounded.isfinite().all():
        raise InvalidInput("updates", f"not finite in {dtype} at {name}", "finite numbers", "train at a lower rate")
    return rounded
