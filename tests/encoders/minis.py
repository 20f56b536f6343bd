"""Miniature CLIP text networks with every structural feature, and transformers' own with the same weights."""

from functools import cache

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from undertow.encoders.clip import TextEncoder
from undertow.encoders.clip_config import Kind
from undertow.encoders.text_stack import TextStack
from undertow.encoders.tokenizer import OfficialTokenizer

WIDTHS: dict[Kind, int] = {"clip_l": 64, "openclip_h": 96, "openclip_g": 128}
LAYERS = 3


def config_for(kind: Kind, **changes: object) -> dict[str, object]:
    """A transformers config of three layers; other widths for each kind, so that mixing them up is noticed."""
    return {
        "vocab_size": 49408,
        "hidden_size": WIDTHS[kind],
        "intermediate_size": 2 * WIDTHS[kind],
        "projection_dim": WIDTHS[kind] // 2,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu" if kind == "clip_l" else "gelu",
        "eos_token_id": 2,  # published configs have it wrong; transformers then looks for the largest id
        "bos_token_id": 0,
        "pad_token_id": 1,
        **changes,
    }


def randomize(network: nn.Module, seed: int) -> None:
    """Random values of realistic size for every parameter; see tests/golden/minis.py for why not the default ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                normal = torch.randn(parameter.shape, generator=generator)
                if isinstance(module, nn.LayerNorm) and name == "weight":
                    parameter.copy_(1 + 0.2 * normal)
                elif parameter.ndim == 1:
                    parameter.copy_(0.1 * normal)
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(normal)
                else:
                    parameter.copy_(2 * normal * parameter[0].numel() ** -0.5)


@cache
def reference(kind: Kind, **changes: object) -> CLIPTextModelWithProjection:
    """transformers' network with random weights; shared between tests, so never changed."""
    network = CLIPTextModelWithProjection(CLIPTextConfig(**config_for(kind, **changes)))
    randomize(network, seed=len(kind))
    return network.eval()


def tensors_for(kind: Kind) -> dict[str, Tensor]:
    """The weights of `reference`, the caller's own."""
    return {name: tensor.clone() for name, tensor in reference(kind).state_dict().items()}


@cache
def shared_tokenizer() -> OfficialTokenizer:
    return OfficialTokenizer()


def encoder_for(kind: Kind, **options: object) -> TextEncoder:
    options = {"config": config_for(kind), "tokenizer": shared_tokenizer(), **options}
    return TextEncoder.from_tensors(kind, tensors_for(kind), **options)


@cache
def shared_encoder(kind: Kind) -> TextEncoder:
    return encoder_for(kind)


def stack_for(*kinds: Kind, **options: object) -> TextStack:
    """A stack of its own around shared encoders."""
    return TextStack([shared_encoder(kind) for kind in kinds], **options)
