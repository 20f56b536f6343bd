"""The architecture of a text encoder as transformers' `config.json`, from published configs or from shapes."""

import re
from collections.abc import Mapping
from typing import Any

from undertow.checkpoints.keymap.prefixes import TEXT_WIDTHS, TextKind
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.encoders.clip_config import PUBLISHED, config_from_transformers
from undertow.json_fields import whole

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 64
"""The head width of every published CLIP text encoder."""

_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")

LEGACY_EOS, LEGACY_PAD = 2, 1
"""The published configs have a wrong end token id, 2, which makes transformers pool at the largest id."""


def transformers_config(kind: TextKind, shapes: Shapes) -> dict[str, Any]:
    """The config.json of the encoder with these tensors (our names)."""
    published = PUBLISHED[kind]
    vocabulary, width = shapes[f"{ROOT}embeddings.token_embedding.weight"]
    first = f"{ROOT}encoder.layers.0.mlp.fc1.weight"
    return {
        "architectures": ["CLIPTextModelWithProjection" if kind == "openclip_g" else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": shapes[first][0] if first in shapes else 4 * width,
        "num_hidden_layers": _hidden_layers(kind, shapes),
        "num_attention_heads": published.heads if width == published.width else max(1, width // HEAD_DIM),
        "max_position_embeddings": shapes[f"{ROOT}embeddings.position_embedding.weight"][0],
        "vocab_size": vocabulary,
        "hidden_act": published.activation,
        "layer_norm_eps": published.norm_eps,
        "projection_dim": shapes.get("text_projection.weight", (published.projection,))[0],
        "bos_token_id": 0 if vocabulary == published.vocabulary else vocabulary - 2,
        "eos_token_id": LEGACY_EOS if vocabulary == published.vocabulary else vocabulary - 1,
        "pad_token_id": LEGACY_PAD,
    }


def is_text_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a CLIP text encoder."""
    said = f"{config.get('model_type', '')} {config.get('architectures', '')} {config.get('_class_name', '')}"
    return "clip_text" in said or "CLIPText" in said


def kind_of_text(name: str, config: Mapping[str, Any]) -> TextKind:
    """The kind of the text encoder in a folder of this name, by its config."""
    exact_gelu = config.get("hidden_act") == "gelu"
    by_place: TextKind = "openclip_g" if name == "text_encoder_2" else "openclip_h" if exact_gelu else "clip_l"
    return TEXT_WIDTHS.get(whole(config, "hidden_size", 0), by_place)


def _hidden_layers(kind: TextKind, shapes: Shapes) -> int:
    """The number that transformers expects: without SD2's last layer, which is never used and may be in the file."""
    count = layer_count(shapes)
    return count - 1 if kind == "openclip_h" and count == PUBLISHED[kind].layers else count


def whole_layers(kind: TextKind, config: Mapping[str, Any] | None) -> int:
    """The number of layers of the whole network, from which clip skip counts. config: transformers'; `None` takes the
    published one."""
    if config is None:
        return PUBLISHED[kind].layers
    return config_from_transformers(config, kind).layers


def layer_count(shapes: Mapping[str, object]) -> int:
    """Number of transformer layers among names of ours."""
    return 1 + max((layer for name in shapes if (layer := layer_of(name)) is not None), default=-1)


def layer_of(name: str) -> int | None:
    """The transformer layer that a tensor of ours belongs to."""
    match = _LAYER.match(name)
    return None if match is None else int(match[1])
