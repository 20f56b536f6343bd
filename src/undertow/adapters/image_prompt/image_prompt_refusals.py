"""Files that look like an IP-Adapter and need something else: refused by name, before any tensor is read."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from undertow.adapters.image_prompt.names import Shape, is_image_prompt
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

USE_FACE = (
    "it reads InsightFace's embedding of a face, which undertow does not compute; IP-Adapter Plus Face and Full Face "
    "read faces through CLIP"
)
ARCFACE_DIM = 512
KOLORS_WIDTH = 2048
"""Width of the resampler in Kolors' files; it is 1280 in those of SDXL, whose cross-attentions are as wide."""

_BY_NAME: Mapping[str, tuple[str, str]] = {
    "an IP-Adapter FaceID Plus": (r"(image_proj|image_proj_model)\.perceiver_resampler\..+", USE_FACE),
    "an IP-Adapter FaceID": (r"(ip_adapter|adapter_modules)\.\d+\.to_(q|k|v|out)_lora\..+", USE_FACE),
    "a FaceID adapter of diffusers'": (
        r"encoder_hid_proj\.image_projection_layers\.\d+\.(proj\.net|perceiver_resampler)\..+",
        USE_FACE,
    ),
    "a PhotoMaker": (r"id_encoder\..+", "it needs an identity encoder and its LoRA, which undertow does not run"),
    "a PuLID": (r"(id_adapter|id_adapter_attn_layers|pulid_ca|pulid_encoder)\..+", USE_FACE),
    "an IP-Adapter of FLUX": (r"(double_blocks\..*ip_adapter_.+|ip_adapter_proj_model\..+)", SUPPORTED_MODELS),
    "an IP-Adapter of Stable Diffusion 3": (r"ip_adapter\.\d+\.norm_.+", SUPPORTED_MODELS),
}


def require_image_prompt(path: Path, weights: Weights) -> None:
    """Passes an IP-Adapter that undertow can run, by names and shapes. Errors: `UnsupportedModel` names others with
    the reason, `UnknownCheckpoint`. path: as messages name it."""
    refuse_quantized(path, weights.tensors, weights.metadata)
    shapes = {name: tuple(info.shape) for name, info in weights.tensors.items()}
    for model, remedy in _relatives(shapes):
        raise UnsupportedModel(path, model, remedy)
    if not is_image_prompt(shapes):
        _refuse_strangers(path, weights)


def _relatives(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """(what the file is, what to do instead), the telling ones first."""
    for model, (pattern, remedy) in _BY_NAME.items():
        layer = re.compile(pattern)
        found = next((name for name in shapes if layer.fullmatch(name)), None)
        if found is not None:
            yield f"{model} ({found})", remedy
    if _last_norm_is_outside(shapes):
        yield "an IP-Adapter FaceID Portrait or a relative (image_proj.proj.2 without proj.3)", USE_FACE
    width = shapes.get("image_proj.proj_in.weight", (0, 0))
    if width == (1280, ARCFACE_DIM) and shapes.get("image_proj.proj_out.weight") == (2048, 1280):
        yield f"an InstantID (its resampler reads {ARCFACE_DIM} numbers)", USE_FACE
    if width[0] == KOLORS_WIDTH and shapes.get("ip_adapter.1.to_k_ip.weight") == (640, 2048):
        yield f"an IP-Adapter of Kolors (its resampler is {KOLORS_WIDTH} wide)", SUPPORTED_MODELS


def _last_norm_is_outside(shapes: Mapping[str, Shape]) -> bool:
    """Whether an MLP makes several tokens of one vector, as for a face: in the authors' names its norm is no part of
    the MLP, and in diffusers' the MLP's result is wider than its norm."""
    if "image_proj.proj.2.weight" in shapes:
        return "image_proj.proj.3.weight" not in shapes
    layer = re.compile(r"(encoder_hid_proj\.image_projection_layers\.\d+)\.ff\.net\.2\.weight")
    matches = [match for name in shapes if (match := layer.fullmatch(name)) is not None]
    return any(shapes[match[0]][0] != shapes.get(f"{match[1]}.norm.weight", (0,))[0] for match in matches)


def _refuse_strangers(path: Path, weights: Weights) -> None:
    refuse_other_networks(path, weights.tensors)
    parts = read_contents(weights.tensors).parts
    if parts:
        held = ", ".join(TITLES[part] for part in parts)
        remedy = "load it with `undertow.load`, and give an IP-Adapter here"
        raise UnsupportedModel(path, f"a model of its own ({held}), not an image prompt", remedy)
    refuse_other_files(path, weights.tensors)
    some = ", ".join(repr(name) for name in list(weights.tensors)[:3])
    problem = f"none of its {len(weights.tensors)} tensors is called as in an IP-Adapter ({some})"
    raise UnknownCheckpoint(path, problem, "give an IP-Adapter: image_proj.* and ip_adapter.*")


def missing_half(path: Path, half: str, other: str) -> UnknownCheckpoint:
    """A file with one half of an IP-Adapter."""
    return UnknownCheckpoint(path, f"half of an IP-Adapter: {half} without {other}", "download or save it whole")
