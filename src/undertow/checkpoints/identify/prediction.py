"""A network's prediction type, determined from everything a checkpoint says about it, with the evidence.

Shapes do not show it, and a wrong guess gives pictures of noise without any error, so every answer names its reason and
can be overridden.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, Union

from undertow.checkpoints.identify.families import FamilyName
from undertow.known_names import PREDICTIONS, Prediction, parse_prediction

if TYPE_CHECKING:
    from undertow.shapes import AnyTensor

T_co = TypeVar("T_co", covariant=True)

Confidence = Literal["given", "certain", "likely", "assumed"]
"""given: by the caller. certain: the file says so. likely: inferred from values. assumed: the family's usual answer."""


@dataclass(frozen=True, kw_only=True)
class Evidence(Generic[T_co]):
    """A value, the evidence for it, and the confidence in it."""

    value: T_co
    evidence: str
    confidence: Confidence


METADATA_FIELDS = ("modelspec.prediction_type", "prediction_type", "ss_v_parameterization")

SD2_STATISTIC = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
"""In SD2 this bias spreads wider after v-prediction training (ComfyUI `model_detection.py`)."""
SD2_V_SPREAD = 0.09
SD2_BASE_STEPS = {875_000: "epsilon", 220_000: "epsilon", 110_000: "v"}
"""`global_step` of the published SD2 files (diffusers and InvokeAI)."""

ReadTensor = Callable[[], Union["AnyTensor", None]]


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Everything besides the U-Net's shapes that indicates the prediction type.

    statistic: reads SD2's `SD2_STATISTIC`. global_step: the training step stored in the file, if any.
    """

    markers: Collection[str] = ()
    metadata: Mapping[str, str] | None = None
    sidecar: str | None = None
    global_step: int | None = None
    statistic: ReadTensor | None = None


def find_prediction(family: FamilyName, hints: Hints, given: str | None = None) -> Evidence[Prediction]:
    """The prediction type: as given, or by markers, metadata, the YAML file, SD2's statistics, or the family's default.

    Errors: `InvalidInput` when `given` is not a prediction type.
    """
    if given is not None:
        return Evidence(value=parse_prediction(given), evidence="given by the caller", confidence="given")
    return (
        _by_marker(hints.markers)
        or _by_metadata({} if hints.metadata is None else hints.metadata)
        or _by_sidecar(hints.sidecar)
        or (_by_sd2_statistics(hints) if family == "sd2" else None)
        or Evidence(value="epsilon", evidence=f"the usual of {family}; nothing in the file says", confidence="assumed")
    )


def find_zero_terminal_snr(hints: Hints, given: bool | None = None) -> Evidence[bool]:
    """Whether the noise schedule has zero terminal SNR (arXiv:2305.08891)."""
    if given is not None:
        return Evidence(value=given, evidence="given by the caller", confidence="given")
    if "ztsnr" in hints.markers:
        return Evidence(value=True, evidence="the marker tensor 'ztsnr'", confidence="certain")
    return Evidence(value=False, evidence="no marker 'ztsnr'", confidence="assumed")


def read_sidecar(path: Path) -> str | None:
    """The text of the YAML file of the same name beside a checkpoint, as used by CompVis and A1111."""
    yaml = path.with_suffix(".yaml")
    if not yaml.is_file() or yaml.stat().st_size > 2**20:
        return None
    return yaml.read_text(encoding="utf-8", errors="replace")


def _by_marker(markers: Collection[str]) -> Evidence[Prediction] | None:
    table: Mapping[str, Prediction] = {"edm_mean": "edm", "edm_vpred.sigma_max": "edm_v", "v_pred": "v"}
    for marker, value in table.items():
        if marker in markers:
            return Evidence(value=value, evidence=f"the marker tensor {marker!r}", confidence="certain")
    return None


def _by_metadata(metadata: Mapping[str, str]) -> Evidence[Prediction] | None:
    for field in METADATA_FIELDS:
        said = metadata.get(field, "").strip().lower()
        # kohya's trainer writes whether it trained v, not what is predicted.
        names = {"true": "v", "false": "epsilon"} if field == "ss_v_parameterization" else PREDICTIONS
        value = names.get(said)
        if value is not None:
            name = parse_prediction(value)
            return Evidence(value=name, evidence=f"the header's {field} = {said}", confidence="certain")
    return None


def _by_sidecar(text: str | None) -> Evidence[Prediction] | None:
    match = None if text is None else re.search(r"^\s*parameterization:\s*[\"']?(\w+)[\"']?\s*(#.*)?$", text, re.M)
    if match is None or match[1] not in PREDICTIONS:
        return None
    said = f"parameterization: {match[1]} in the yaml file beside it"
    return Evidence(value=PREDICTIONS[match[1]], evidence=said, confidence="certain")


def _by_sd2_statistics(hints: Hints) -> Evidence[Prediction] | None:
    bias = None if hints.statistic is None else hints.statistic()
    if bias is not None:
        spread = float(bias.float().std())
        value: Prediction = "v" if spread > SD2_V_SPREAD else "epsilon"
        side = "above" if value == "v" else "not above"
        reason = f"std of {SD2_STATISTIC} is {spread:.3f}, {side} {SD2_V_SPREAD}"
        return Evidence(value=value, evidence=reason, confidence="likely")
    if hints.global_step in SD2_BASE_STEPS:
        reason = f"global_step = {hints.global_step}, as in the published file"
        return Evidence(value=parse_prediction(SD2_BASE_STEPS[hints.global_step]), evidence=reason, confidence="likely")
    return None
