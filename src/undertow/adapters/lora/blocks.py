"""Whether the layers that a LoRA names can be those of a model, by the blocks that they are in. No torch: `targets.py`,
which knows every layer and its shape, builds the network."""

from collections.abc import Iterable
from functools import lru_cache

from undertow.adapters.lora.leaves import LDM_LAYER
from undertow.adapters.lora.names import SHARED_PREFIXES, UNET_PREFIXES, flatten
from undertow.unet.config import UNetConfig

_PREFIXES = sorted((*UNET_PREFIXES, *SHARED_PREFIXES), key=len, reverse=True)
_OTHERS = ("lora_te", "text_encoder", "text_model", "encoder.layers", "encoder_layers", "final_layer_norm")
_ELSEWHERE = (*_OTHERS, "text_projection", "unet:")
"""How the names of layers begin that only the engine can judge: those of text encoders, and numbered ones."""


def unknown_layers(stems: Iterable[str], config: UNetConfig) -> list[str]:
    """Of the layers that a file names, those that are in no block of a U-Net. stems: as the file spells them."""
    blocks = _flat_blocks(config)
    return [stem for stem in stems if not _is_known(stem, blocks)]


def _is_known(stem: str, blocks: tuple[str, ...]) -> bool:
    for prefix in _PREFIXES:
        if stem.startswith(prefix):
            bare = stem.removeprefix(prefix)
            inside = f"{flatten(bare)}_".startswith(blocks)
            if inside or LDM_LAYER.match(bare) is not None or bare.startswith(_ELSEWHERE):
                return True
    return False


@lru_cache(maxsize=64)
def _flat_blocks(config: UNetConfig) -> tuple[str, ...]:
    return tuple(f"{flatten(name)}_" for name in config.layer_names())
