"""Files of cloneofsimo/lora (lora_diffusion/lora.py, `save_safeloras_with_embeds`), whose layers have numbers.

`unet:N:up` and `unet:N:down` belong to the N-th linear layer or convolution under the modules whose classes the header
names, in the order in which PyTorch's `modules()` found them in the diffusers of 2022 and 2023. There the middle block
comes last, attentions come before ResNet blocks and, at first, the feed-forward network between the two attentions. A
key with the header's value "<embed>" is a textual inversion of that name. There is no alpha: the strength is 1.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from undertow.adapters.lora.targets import NetworkName, Target
from undertow.errors import CorruptFile, UnsupportedModel, in_plain_words

COMPONENTS = ("unet", "text_encoder")

Order = Literal["before diffusers 0.15", "since"]
ORDERS: tuple[Order, ...] = ("before diffusers 0.15", "since")
"""Where the feed-forward network stands: between the attentions, or behind them."""

_MAX_NUMBER = 10_000
_CLASSES: Mapping[NetworkName, Mapping[str, str]] = {
    "unet": {
        "CrossAttention": r".*\.attn[12]\.[^.]+(\.0)?",
        "Attention": r".*\.attn[12]\.[^.]+(\.0)?",
        "GEGLU": r".*\.ff\.net\.0\.proj",
        "ResnetBlock2D": r".*\.resnets\.\d+\.(conv1|time_emb_proj|conv2|conv_shortcut)",
    },
    "clip_l": {"CLIPAttention": r".*\.self_attn\.[kvq]_proj|.*\.self_attn\.out_proj"},
}
"""The layers under modules of a class, as patterns of their names."""

_RANKS: Sequence[tuple[str, ...]] = (
    ("down_blocks", "up_blocks", "mid_block"),
    ("attentions", "resnets"),
    ("conv1", "time_emb_proj", "conv2", "conv_shortcut"),
    ("to_q", "to_k", "to_v", "to_out"),
    ("k_proj", "v_proj", "q_proj", "out_proj"),
)
"""Siblings in the order in which their classes register them."""

_FEED_FORWARD: Mapping[Order, tuple[str, ...]] = {
    "before diffusers 0.15": ("attn1", "ff", "attn2"),
    "since": ("attn1", "attn2", "ff"),
}


def module_classes(path: Path, metadata: Mapping[str, str], stems: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The classes whose layers are numbered, by the component that has such layers among `stems`.

    Errors: `UnsupportedModel` when the header does not name them, or names classes that are not known; `CorruptFile`.
    """
    found: dict[str, tuple[str, ...]] = {}
    for component in COMPONENTS:
        if not any(split_number(component, stem) is not None for stem in stems):
            continue
        if component not in metadata:
            problem = f"a LoRA of numbered layers whose header does not say which {component} modules they belong to"
            raise UnsupportedModel(path, problem, "use the file as its trainer saved it, with its header")
        try:
            names = json.loads(metadata[component])
        except (ValueError, RecursionError) as err:
            raise CorruptFile(
                path, f"the header's {component} is not JSON ({in_plain_words(err)})", "download it again"
            ) from err
        known = _CLASSES["unet" if component == "unet" else "clip_l"]
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name in known for name in names)
        ):
            shown = metadata[component][:80]
            raise UnsupportedModel(
                path, f"a LoRA of numbered layers under {shown}", f"undertow knows the order of {', '.join(known)}"
            )
        found[component] = tuple(sorted(names))
    return found


def split_number(component: str, stem: str) -> int | None:
    """The number in "unet:12", for the component "unet"."""
    prefix, colon, number = stem.partition(":")
    if prefix != component or not colon or not number.isdecimal() or len(number) > len(str(_MAX_NUMBER)):
        return None
    return int(number)


def numbered_layers(
    layers: Mapping[str, Target], network: NetworkName, classes: Sequence[str], order: Order
) -> list[str]:
    """The names of the layers that are numbered 0, 1, ... in a file with these classes."""
    patterns = _CLASSES["unet" if network == "unet" else "clip_l"]
    pattern = re.compile("|".join(patterns[name] for name in classes))
    chosen = [name for name, target in layers.items() if len(target.shape) > 1 and pattern.fullmatch(name)]
    ranks = {part: rank for group in (*_RANKS, _FEED_FORWARD[order]) for rank, part in enumerate(group)}
    return sorted(chosen, key=lambda name: [_rank(part, ranks) for part in name.split(".")])


def _rank(part: str, ranks: Mapping[str, int]) -> tuple[int, str]:
    """Numbers by value, known siblings in their order, and others by name."""
    return (int(part), "") if part.isdecimal() else (ranks.get(part, 0), "" if part in ranks else part)
