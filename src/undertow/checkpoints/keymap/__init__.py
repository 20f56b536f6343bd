"""Names of the same tensors in LDM/SGM files and in diffusers' and transformers' folders, as rules in both directions.

A rule is a pair of module names. A tensor's name is translated by the longest rule that is a whole dotted prefix of it,
so "input_blocks.1" never means "input_blocks.10". Every table is built from the network's layout; nothing is guessed.
"""

from undertow.checkpoints.keymap.mapping import TensorMapping
from undertow.checkpoints.keymap.text_names import CLIP_NAMES, openclip_from_ours, openclip_to_ours
from undertow.checkpoints.keymap.unet_names import BlockLayout, control_renaming, unet_renaming
from undertow.checkpoints.keymap.vae_names import OLD_ATTENTION, vae_mapping, vae_renaming

__all__ = [
    "CLIP_NAMES",
    "OLD_ATTENTION",
    "BlockLayout",
    "TensorMapping",
    "control_renaming",
    "openclip_from_ours",
    "openclip_to_ours",
    "unet_renaming",
    "vae_mapping",
    "vae_renaming",
]
