"""T2I-Adapters in files: diffusers' names and the authors', and the architecture that shapes tell.

Source of the names: https://github.com/TencentARC/T2I-Adapter, `ldm/modules/encoders/adapter.py`. It numbers the
ResBlocks of all stages in one row (`body.{k}.block1`), those of a light stage inside it (`body.{i}.body.{j}.block1`).
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from undertow.adapters.control.config import T2IConfig, T2IKind
from undertow.adapters.control.derive import size
from undertow.errors import ConfigError, UnknownCheckpoint
from undertow.json_fields import is_whole, text, whole

ROOT = "adapter."
STAGES = 4
"""Of every published T2I-Adapter; where ResBlocks are numbered through, nothing else parts them."""

SIGNS = ("body.0.block1.weight", "body.0.body.0.block1.weight", "body.0.resnets.0.block1.weight")
"""The first ResBlock, under the authors' names and under diffusers'."""

FACTORS: Mapping[int, tuple[int, int]] = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
"""Channels of the hint, and pixels to a cell, by the number of channels behind the pixel unshuffle: the published."""

XL_FACTOR = 16

_FLAT = re.compile(r"body\.(?P<number>\d+)\.(?P<leaf>(block[12]|in_conv)\.(weight|bias))")
_LIGHT = re.compile(r"body\.(?P<stage>\d+)\.body\.(?P<number>\d+)\.(?P<leaf>block[12]\.(weight|bias))")
_SAME = re.compile(r"(conv_in|body\.\d+\.(in_conv|out_conv|resnets\.\d+\.block[12]))\.(weight|bias)")
_KINDS: Mapping[str, T2IKind] = {"full_adapter": "full", "light_adapter": "light", "full_adapter_xl": "xl"}


def is_t2i(names: Collection[str]) -> bool:
    """Whether names, in their bare form, are those of a T2I-Adapter."""
    bare = {name.removeprefix(ROOT) for name in names}
    return any(sign in bare for sign in SIGNS)


def t2i_names(names: Mapping[str, str], path: Path) -> dict[str, str]:
    """Of each tensor of ours (diffusers' name) the file's. names: the file's, by their bare form. A name without a rule
    stays as it is. Errors: `UnknownCheckpoint` for ResBlocks that are no four stages."""
    bare = {name.removeprefix(ROOT): file for name, file in names.items()}
    flat = [name for name in bare if _FLAT.fullmatch(name) and name.endswith("block1.weight")]
    resnets, rest = divmod(len(flat), STAGES)
    if rest:
        problem = f"a T2I-Adapter of {len(flat)} ResBlocks, which are no {STAGES} stages"
        raise UnknownCheckpoint(path, problem, "give diffusers' folder, whose names tell the stages")

    def ours(name: str) -> str:
        if resnets and (match := _FLAT.fullmatch(name)):
            stage, layer = divmod(int(match["number"]), resnets)
            inner = "" if match["leaf"].startswith("in_conv") else f"resnets.{layer}."
            return f"{ROOT}body.{stage}.{inner}{match['leaf']}"
        if match := _LIGHT.fullmatch(name):
            return f"{ROOT}body.{match['stage']}.resnets.{match['number']}.{match['leaf']}"
        return ROOT + name if _SAME.fullmatch(name) else name

    return {ours(name): file for name, file in bare.items()}


def t2i_config_from_shapes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> T2IConfig:
    """The architecture that tensors under diffusers' names show. Errors: `UnknownCheckpoint`."""
    light = f"{ROOT}body.0.out_conv.weight" in shapes
    last = "out_conv" if light else "resnets.0.block1"
    widths = []
    while (name := f"{ROOT}body.{len(widths)}.{last}.weight") in shapes:
        widths.append(size(shapes, name, 0))
    resnets = 0
    while f"{ROOT}body.0.resnets.{resnets}.block1.weight" in shapes:
        resnets += 1
    inputs = size(shapes, f"{ROOT}body.0.in_conv.weight" if light else f"{ROOT}conv_in.weight", 1)
    if inputs not in FACTORS or not widths or not resnets:
        problem = f"a T2I-Adapter of another kind (its first layer has {inputs} inputs)"
        raise UnknownCheckpoint(path, problem, "give diffusers' folder, whose config.json describes it")
    hint_in, factor = FACTORS[inputs]
    kind: T2IKind = "light" if light else "xl" if factor == XL_FACTOR else "full"
    channels = tuple(widths[:-1] if light else widths)
    return T2IConfig(kind=kind, channels=channels, resnets=resnets, hint_in=hint_in, hint_factor=factor)


def t2i_config_from_diffusers(json: Mapping[str, Any]) -> T2IConfig:
    """The architecture that a T2IAdapter's config describes. Errors: `ConfigError` names the field."""
    kind = text(json, "adapter_type", "full_adapter")
    if kind not in _KINDS:
        raise ConfigError("adapter_type", kind, f"must be {' or '.join(_KINDS)}")
    channels = json.get("channels", [320, 640, 1280, 1280])
    if not isinstance(channels, list | tuple) or not all(map(is_whole, channels)):
        raise ConfigError("channels", channels, "must be a list of whole numbers")
    return T2IConfig(
        kind=_KINDS[kind],
        channels=tuple(channels),
        resnets=whole(json, "num_res_blocks", 2),
        hint_in=whole(json, "in_channels", 3),
        hint_factor=whole(json, "downscale_factor", 8),
    )
