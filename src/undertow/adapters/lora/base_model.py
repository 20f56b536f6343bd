"""For which base model an adapter was made: what its tensors prove, and what its header says."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from undertow.adapters.lora.difference import Difference
from undertow.adapters.lora.scaling import ChannelScale, GeneralizedLora
from undertow.adapters.lora.updates import MatrixUpdate, Update
from undertow.adapters.lora.weight_decomposed import WeightDecomposed

WIDTHS: Mapping[int, str] = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    2048: "Stable Diffusion XL",
    1280: "the Stable Diffusion XL refiner",
}
"""Width of the text tokens that cross-attention reads, by family."""

TEXT_READER = re.compile(r".*attn2[._](processor[._])?to_[kv]")
"""The layers whose inputs are the text's."""

_SECOND_ENCODER = re.compile(r"(lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.).*")

_HEADER: Mapping[str, Mapping[str, str]] = {
    "ss_base_model_version": {
        "sdxl": WIDTHS[2048],
        "sd_v2": WIDTHS[1024],
        "sd_v1": WIDTHS[768],
    },
    "modelspec.architecture": {
        "stable-diffusion-xl-v1-refiner": WIDTHS[1280],
        "stable-diffusion-xl": WIDTHS[2048],
        "stable-diffusion-v2": WIDTHS[1024],
        "stable-diffusion-v1": WIDTHS[768],
    },
}
"""Header fields of kohya's trainer and of Stability's ModelSpec, by the beginning of their values."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """title: the family, or a description of it. width: of the text tokens, if tensors show it."""

    title: str
    evidence: str
    width: int | None = None


def find_base_model(updates: Iterable[tuple[str, Update]], metadata: Mapping[str, str]) -> BaseModel | None:
    """The base model of a file's layers, by stem; tensors before names before the header, which anyone can write."""
    second = None
    for stem, update in updates:
        width = _inputs(update) if TEXT_READER.fullmatch(stem) else None
        if width is not None:
            title = WIDTHS.get(width, f"a model whose text is {width} wide")
            return BaseModel(title=title, evidence=f"{stem} reads text {width} wide", width=width)
        if second is None and _SECOND_ENCODER.fullmatch(stem):
            second = stem
    if second is not None:
        return BaseModel(title=WIDTHS[2048], evidence=f"{second} is in its second text encoder")
    for key, families in _HEADER.items():
        for start, title in families.items():
            if metadata.get(key, "").lower().startswith(start):
                return BaseModel(title=title, evidence=f"the header says {key} = {metadata[key][:60]}")
    return None


def _inputs(update: Update) -> int | None:
    """How many inputs the layer of an update has, where its tensors show it."""
    match update:
        case WeightDecomposed(inner=inner):
            return _inputs(inner)
        case MatrixUpdate():
            shape = update.matrix_shape()
            return None if shape is None else shape[1]
        case GeneralizedLora(a2=a2):
            return a2.shape[1]
        case ChannelScale(on_input=True, factor=factor):
            return factor.numel()
        case Difference(weight_change=change) if change is not None and change.ndim > 1:
            return change.shape[1]
        case _:
            return None
