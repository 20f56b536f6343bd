"""For which base model an adapter was made: what its tensors prove, and what its header says."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from undertow.adapters.lora.additive import Difference
from undertow.adapters.lora.lora_refusals import TEXT_READER, WIDTHS
from undertow.adapters.lora.updates import MatrixUpdate, Update
from undertow.adapters.lora.weight_dependent import ChannelScale, GeneralizedLora, WeightDecomposed

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
    """title: name of the family, or a description of it. width: of the text tokens, if the tensors show it."""

    title: str
    evidence: str
    width: int | None = None


def find_base_model(updates: Iterable[tuple[str, Update]], metadata: Mapping[str, str]) -> BaseModel | None:
    """The base model that a file's updates, keyed by stem, were made for. Tensors count before names, and names before
    the header, which anyone can write."""
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
    """The number of inputs of an update's layer, if its tensors show it."""
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
