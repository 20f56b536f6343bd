"""Control networks that are recognized and not run: refused by name, with the reason."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from undertow.adapters.control.config import CONTROLNET, T2I
from undertow.checkpoints.identify.unsupported import SUPPORTED_MODELS
from undertow.errors import UnsupportedModel

ONE_HINT = "use a ControlNet that was trained for one kind of hint"

# Order matters where the files of one hold names of another.
_BY_NAME: Mapping[str, tuple[str, str]] = {
    "a CoAdapter's fuser": (r"spatial_feat_mapping\..+", "use T2I-Adapters, each with its own scale"),
    "a T2I style adapter": (r"style_embedding", "it makes text tokens of a picture; use an IP-Adapter"),
    "a ControlNet-Union (ControlNet++)": (
        r"task_embedding|transformer_layes\..+|spatial_ch_projs\..+|control_add_embedding\..+",
        f"it is told the kind of its hint, and fuses several; {ONE_HINT}",
    ),
    "a ControlNet-XS": (
        r"(control_to_base_for_conv_in|ctrl_conv_in|base_conv_in|up_connections|enc_zero_convs_(in|out)|dec_zero_convs_out)"
        r"\..+|(down_blocks|mid_block|up_blocks)\.(\d+\.)?(ctrl_to_base|base_to_ctrl|ctrl_resnets)\..+",
        "it exchanges activations with the U-Net's encoder and cannot run beside it; use a ControlNet",
    ),
    "a ControlNet-LLLite": (
        r"lllite_.+",
        "it changes the inputs of attention layers and says nothing to skip connections; use a ControlNet of SDXL",
    ),
    "a ControlNet of differences": (
        r"difference",
        "its tensors are to be added to one U-Net's; use the ControlNet in its whole form",
    ),
    "a SparseCtrl of AnimateDiff": (
        r"(down_blocks|mid_block)\..*motion_modules\..+",
        "it controls videos; use a ControlNet for pictures",
    ),
    "a BrushNet": (
        r"brushnet_.+|conv_in_condition\..+",
        "inpaint with an inpainting model or an inpainting ControlNet",
    ),
    "a ControlNet of a diffusion transformer": (
        r"(controlnet_(x_embedder|blocks|single_blocks|mode_embedder)|pos_embed_input|control_all_x_embedder)\..+",
        SUPPORTED_MODELS,
    ),
    "a ControlNet of Kolors": (r"encoder_hid_proj\.(weight|bias)", SUPPORTED_MODELS),
}

_PREFIX = re.compile(r"(control_model|controlnet)\.")


def refuse_other_controls(path: Path, names: Iterable[str], config: Mapping[str, Any]) -> None:
    """Passes what is no control network, or one that undertow runs. names: in their bare form. Errors:
    `UnsupportedModel`."""
    kind = config.get("_class_name")
    bare = [_PREFIX.sub("", name, count=1) for name in names]
    if not any(name.startswith("controlnet_") for name in bare):
        # Motion modules alone are another model's.
        bare = [name for name in bare if "motion_modules." not in name]
    for model, (pattern, remedy) in _BY_NAME.items():
        layer = re.compile(pattern)
        found = next((name for name in bare if layer.fullmatch(name)), None)
        if found is not None:
            raise UnsupportedModel(path, f"{model} ({found})", remedy)
    if isinstance(kind, str) and ("ControlNet" in kind or "Adapter" in kind) and kind not in (CONTROLNET, T2I):
        raise UnsupportedModel(path, f"a {kind}", f"use a {CONTROLNET} or a {T2I}")
