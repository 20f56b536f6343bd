"""The architecture of a CLIP text network: published ones by kind, and those read from transformers' config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from undertow.errors import ConfigError
from undertow.json_fields import is_whole, mapping, number, whole
from undertow.limits import LAYERS, WIDTH

Kind = Literal["clip_l", "openclip_h", "openclip_g"]
"""OpenAI's ViT-L/14 (SD1, SDXL), and OpenCLIP's ViT-H/14 (SD2) and ViT-bigG/14 (SDXL, refiner)."""

KINDS: tuple[Kind, ...] = get_args(Kind)

CLIP_VOCABULARY = 49408
"""Words of CLIP's tokenizer, which comes with undertow; the last two are the marks around a prompt."""

Activation = Literal["quick_gelu", "gelu"]
"""transformers' names; GELU is quick in OpenAI's networks only (trap T2)."""


def require_size(field: str, value: int) -> None:
    """Refuses sizes that no network has. Errors: `ConfigError`."""
    if value < 1:
        raise ConfigError(field, value, "must be at least 1")
    limit = LAYERS if field == "layers" else WIDTH
    if value > limit.most:
        raise ConfigError(field, value, limit.rule)


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """layers: of the whole network, also where a file leaves out a last one that nobody reads. positions: tokens of a
    chunk, with the marks around it. projected: a pooled vector is read, so the projection must be there.
    """

    width: int
    layers: int
    heads: int
    intermediate: int
    projection: int
    activation: Activation
    vocabulary: int = CLIP_VOCABULARY
    positions: int = 77
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in ("width", "layers", "heads", "intermediate", "projection", "vocabulary"):
            require_size(field, getattr(self, field))
        if self.width % self.heads:
            raise ConfigError("heads", self.heads, f"must divide width {self.width}")
        require_size("positions", self.positions)
        if self.positions < 3:
            raise ConfigError("positions", self.positions, "must hold a token between its two marks")


# Published with the models: openai/clip-vit-large-patch14 and open_clip's model_configs/ViT-H-14, ViT-bigG-14. GELU is
# quick only in OpenAI's (trap T2).
PUBLISHED: dict[Kind, ClipTextConfig] = {
    "clip_l": ClipTextConfig(
        width=768, layers=12, heads=12, intermediate=3072, projection=768, activation="quick_gelu"
    ),
    "openclip_h": ClipTextConfig(
        width=1024, layers=24, heads=16, intermediate=4096, projection=1024, activation="gelu"
    ),
    "openclip_g": ClipTextConfig(
        width=1280, layers=32, heads=20, intermediate=5120, projection=1280, activation="gelu"
    ),
}


TRANSFORMER_SIZES: Mapping[str, str] = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}
"""transformers' names of what text and vision networks have in common."""


def config_from_transformers(config: Mapping[str, Any], kind: Kind) -> ClipTextConfig:
    """The architecture that a `config.json` of transformers describes.

    SD2's files leave out the last of their 24 layers and say 23, since nothing reads it: for `openclip_h` the whole
    network has one layer more than the config. Errors: `ConfigError` for missing fields and other networks.
    """
    given = mapping(config, "text_config", config)
    sizes = read_sizes(given, TRANSFORMER_SIZES, "CLIP text model")
    sizes["layers"] += 1 if kind == "openclip_h" else 0
    return ClipTextConfig(
        **sizes,
        projection=whole(given, "projection_dim", 512),
        activation=read_activation(given),
        vocabulary=whole(given, "vocab_size", CLIP_VOCABULARY),
        positions=whole(given, "max_position_embeddings", 77),
        norm_eps=number(given, "layer_norm_eps", 1e-5),
    )


def read_sizes(given: Mapping[str, Any], names: Mapping[str, str], of: str) -> dict[str, int]:
    """Whole numbers by our names. names: transformers', by ours. Errors: `ConfigError` for one that is none."""
    for name in names.values():
        if not is_whole(given.get(name)):
            raise ConfigError(name, given.get(name), f"must be a whole number in the config of a {of}")
    return {ours: given[theirs] for ours, theirs in names.items()}


def read_activation(given: Mapping[str, Any]) -> Activation:
    """Errors: `ConfigError` for one that no CLIP has."""
    activation = given.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise ConfigError("hidden_act", activation, "must be quick_gelu or gelu")
    return activation
