"""Names of the same tensors in LDM/SGM files and in diffusers' and transformers' folders, as rules in both directions.

A rule is a pair of module names. A tensor's name is translated by the longest rule that is a whole dotted prefix of it,
so "input_blocks.1" never means "input_blocks.10". Every table is built from the network's layout; nothing is guessed.
"""

from collections.abc import Callable, Iterable

from undertow.checkpoints.keymap.mapping import Move
from undertow.checkpoints.keymap.renaming import Renaming
from undertow.checkpoints.keymap.text_names import CLIP_NAMES, openclip_from_ours, openclip_to_ours
from undertow.checkpoints.keymap.unet_names import BlockLayout, LevelLayout, control_renaming, unet_renaming
from undertow.checkpoints.keymap.vae_names import OLD_ATTENTION, vae_move, vae_renaming

Translate = Callable[[str], Move | None]
"""From a file's name of a tensor to the tensors it fills; `None` for a name that the network does not have."""

__all__ = [
    "CLIP_NAMES",
    "OLD_ATTENTION",
    "BlockLayout",
    "LevelLayout",
    "Move",
    "Renaming",
    "Translate",
    "control_renaming",
    "openclip_from_ours",
    "openclip_to_ours",
    "unet_renaming",
    "vae_move",
    "vae_renaming",
]


def renamed(names: Iterable[str], renaming: Renaming) -> list[Move]:
    """One move per name of ours that has a foreign name."""
    return [Move(foreign, (name,)) for name in names if (foreign := renaming.to_foreign(name)) is not None]
