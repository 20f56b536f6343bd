"""Strength as PEFT and diffusers write it: in `adapter_config.json` or the file's header, not in tensors.

Sources: https://github.com/huggingface/peft, `tuners/lora/layer.py` (`update_layer`: alpha / r, or alpha / √r with
rank-stabilized LoRA, arXiv:2312.03732) and `utils/other.py` (`get_pattern_key`); diffusers `loaders/lora_base.py`
(`LORA_ADAPTER_METADATA_KEY`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

from undertow.adapters.lora.name_patterns import NamePatterns, UnreadablePattern
from undertow.errors import CorruptFile, in_plain_words

HEADER_KEY = "lora_adapter_metadata"
PLAIN_KEYS = ("lora_alpha", "network_alpha", "alpha")
"""Header fields of trainers that write no alpha tensors. `ss_network_alpha` is not one: its files have the tensors."""

_FLAT_KEY = re.compile(r"((?P<component>[\w-]{1,40})\.)?(?P<name>r|lora_alpha|use_rslora|rank_pattern|alpha_pattern)")
"""A field of a PEFT config that stands by itself in the header, as text: "unet.lora_alpha"."""


@dataclass(frozen=True, kw_only=True)
class PeftSettings:
    """What a PEFT config says about the scale. alphas, ranks: by pattern of the end of a layer's name. loose: from a
    header field of no known format, used only for layers with PEFT's names."""

    alpha: float | None = None
    rank: int | None = None
    alphas: NamePatterns[float] = field(default_factory=lambda: NamePatterns[float]({}))
    ranks: NamePatterns[int] = field(default_factory=lambda: NamePatterns[int]({}))
    rank_stabilized: bool = False
    loose: bool = False

    def alpha_for(self, stem: str) -> float | None:
        """Alpha of one layer."""
        found = self.alphas.find(stem)
        return self.alpha if found is None else found

    def rank_for(self, stem: str) -> int | None:
        """Rank of one layer: what PEFT divides by, where the tensors do not show it."""
        found = self.ranks.find(stem)
        return self.rank if found is None else found

    def scale(self, stem: str, rank: int) -> float | None:
        """Alpha over the rank, or over its root; `None` without an alpha."""
        alpha = self.alpha_for(stem)
        if alpha is None:
            return None
        return alpha / (sqrt(rank) if self.rank_stabilized else rank)


def settings_of_config(path: Path, config: Mapping[str, Any]) -> PeftSettings:
    """From `adapter_config.json`, or its copy in a header. Errors: `CorruptFile`."""
    try:
        return PeftSettings(
            # LoHa's and LoKr's configs call it alpha.
            alpha=_number(config.get("lora_alpha", config.get("alpha"))),
            rank=_whole(config.get("r")),
            alphas=NamePatterns({key: _finite(value) for key, value in (config.get("alpha_pattern") or {}).items()}),
            ranks=NamePatterns({key: _positive(value) for key, value in (config.get("rank_pattern") or {}).items()}),
            rank_stabilized=bool(config.get("use_rslora", False)),
        )
    except UnreadablePattern as err:
        raise CorruptFile(path, f"a name pattern that cannot be read: {err}", "write out the layers' names") from err
    except (TypeError, ValueError, AttributeError) as err:
        raise CorruptFile(
            path, f"its adapter config cannot be read ({in_plain_words(err)})", "write it again with PEFT"
        ) from err


def settings_of_header(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """From the header of a safetensors file, by the prefix of the layers that they are for; "" for all layers."""
    found = {
        prefix: replace(settings_of_config(path, config), loose=not prefix)
        for prefix, config in _flat_configs(metadata).items()
    }
    for key in PLAIN_KEYS:
        if key in metadata:
            alpha = _number(metadata[key])
            if alpha is not None:
                found[""] = replace(found.get("", PeftSettings(loose=True)), alpha=alpha)
                break
    if HEADER_KEY not in metadata:
        return found
    try:
        given = json.loads(metadata[HEADER_KEY])
    except (ValueError, RecursionError) as err:
        raise CorruptFile(
            path, f"the header's {HEADER_KEY} is not JSON ({in_plain_words(err)})", "write the file again"
        ) from err
    if not isinstance(given, dict):
        raise CorruptFile(path, f"the header's {HEADER_KEY} is not an object", "write the file again")
    by_prefix: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        prefix, dot, name = key.partition(".")
        by_prefix.setdefault(prefix + dot if dot else "", {})[name if dot else key] = value
    return {**found, **{prefix: settings_of_config(path, config) for prefix, config in by_prefix.items()}}


def _flat_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The configs whose fields are header fields of their own, by the prefix of the layers that they are for."""
    configs: dict[str, dict[str, Any]] = {}
    for key, text in metadata.items():
        match = _FLAT_KEY.fullmatch(key)
        if match is None:
            continue
        prefix = "" if match["component"] is None else f"{match['component']}."
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = {"True": True, "False": False}.get(text)  # as Python writes it
        if value is not None:
            configs.setdefault(prefix, {})[match["name"]] = value
    return configs


def _number(value: object) -> float | None:
    """A finite number, which may be written as text."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < float("inf"):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _positive(value: Any) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(f"{value!r} is not a rank")
    return number


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
