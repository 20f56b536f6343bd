"""Building a CLIP text network from a checkpoint's tensors: strictly, and one tensor at a time."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from undertow.encoders.clip_config import ClipTextConfig, Kind
from undertow.encoders.clip_network import ClipText
from undertow.extras import optional_package
from undertow.nn.quantized import quantize_layers
from undertow.quantization import Scheme
from undertow.state_dicts import Shape, compare_names, compare_shapes, require_layers, shapes_of

_PREFIX = "text_model."
_PROJECTION = "text_projection.weight"
_EMBEDDING = "embeddings.token_embedding.weight"
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")

# Positions are counted: merged and half-precision files carry rounded ones that shift words (A1111 issue 7450).
# Where no pooled vector is read, files may still bring the projection for it.
_UNUSED = frozenset({"embeddings.position_ids", "logit_scale", _PROJECTION})


def build_clip(
    kind: Kind,
    config: ClipTextConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    source: str | Path,
    quantized: Mapping[str, Scheme] = MappingProxyType({}),
) -> tuple[ClipText, nn.Linear | None]:
    """The network with the tensors in place, and its projection; only bigG must have one, only bigG's is read.
    quantized: layers whose tensors are codes and scales.

    Errors: `KeyMismatch`.
    """
    keys = {key.removeprefix(_PREFIX): key for key in tensors}
    layers = _present_layers(kind, config, keys)
    require_layers(source, layers, len(tensors))
    with torch.device("meta"):
        clip = ClipText(config, layers)
    dtype = tensors[keys[_EMBEDDING]].dtype if dtype is None and _EMBEDDING in keys else dtype
    modules = {name for name, _ in clip.named_modules()}
    there: dict[str, Scheme] = {
        name: scheme for key, scheme in quantized.items() if (name := key.removeprefix(_PREFIX)) in modules
    }
    quantize_layers(clip, there, compute_dtype=dtype)
    codes = {f"{name}.{which}" for name in there for which in ("weight", "weight_scale")}
    projection = _empty_projection(config) if kind == "openclip_g" else None
    slots: dict[str, Tensor] = dict(clip.named_parameters())
    if projection is not None:
        slots[_PROJECTION] = projection.weight
    found = [name for name in keys if name in slots or name not in _UNUSED]
    compare_names(slots.keys(), found, written=lambda name: keys.get(name, name)).require_none(source)
    shapes: dict[str, Shape] = {}
    for name in slots:
        tensor = tensors[keys[name]]
        shapes[name] = tuple(tensor.shape)
        owner, _, attribute = name.rpartition(".")
        module = projection if name == _PROJECTION and projection is not None else clip.get_submodule(owner)
        placed = tensor.to(device=device, dtype=None if name in codes else dtype)
        setattr(module, attribute, nn.Parameter(placed, requires_grad=False))
    compare_shapes(shapes_of(slots), shapes, written=keys.__getitem__).require_none(source)
    return clip, projection


def _present_layers(kind: Kind, config: ClipTextConfig, keys: Mapping[str, str]) -> int:
    """How many layers to build: all, but for SD2's encoder, whose files may leave out the last."""
    found = {int(match[1]) for key in keys if (match := _LAYER.match(key)) is not None}
    if kind == "openclip_h" and found and max(found) == config.layers - 2:
        return config.layers - 1
    return config.layers


def _empty_projection(config: ClipTextConfig) -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(config.width, config.projection, bias=False)


def random_clip(config: ClipTextConfig) -> dict[str, Tensor]:
    """Weights to train from, as transformers initializes them, from torch's global generator. Errors:
    `MissingDependency`."""
    with optional_package("transformers", "train"):
        from transformers import CLIPTextConfig, CLIPTextModel  # noqa: PLC0415  an extra, and slow to import

    described = CLIPTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.intermediate,
        projection_dim=config.projection,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.positions,
        hidden_act=config.activation,
        layer_norm_eps=config.norm_eps,
        bos_token_id=config.vocabulary - 2,
        eos_token_id=config.vocabulary - 1,
    )
    return dict(CLIPTextModel(described).named_parameters())
