"""A published architecture in place of a model: shapes without weights, for questions that need no more."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from undertow.adapters.manager import AdapterManager


def manager_of_preset(name: str) -> "AdapterManager":
    """What adapters meet in an architecture of `PRESETS`, with its family's text encoders; it cannot draw."""
    import torch

    from undertow.adapters.manager import AdapterManager
    from undertow.checkpoints.identify.families import ENCODERS, find_family
    from undertow.encoders.clip import TextEncoder
    from undertow.encoders.clip_config import PUBLISHED
    from undertow.encoders.clip_network import ClipText
    from undertow.encoders.text_stack import TextStack
    from undertow.encoders.tokenizer import OfficialTokenizer
    from undertow.unet.presets import PRESETS
    from undertow.unet.unet import UNet

    config = PRESETS[name]()
    family = find_family(config)
    kinds = () if family is None else ENCODERS[family.name]
    with torch.device("meta"):
        unet = UNet(config)
        networks = [ClipText(PUBLISHED[kind], PUBLISHED[kind].layers) for kind in kinds]
    encoders = [
        TextEncoder(kind, PUBLISHED[kind], network, None, OfficialTokenizer())
        for kind, network in zip(kinds, networks, strict=True)
    ]
    return AdapterManager(unet, TextStack(encoders) if encoders else None)
