"""The architecture of a CLIP vision network: published ones by name, and those read from transformers' config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.encoders.clip_config import TRANSFORMER_SIZES, Activation, read_activation, read_sizes, require_size
from undertow.errors import ConfigError
from undertow.json_fields import mapping, number, whole


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """A vision transformer (arXiv:2103.00020, section 2.4). image_size, patch_size: in pixels, square. projection:
    width of the pooled vector."""

    width: int
    layers: int
    heads: int
    intermediate: int
    projection: int
    activation: Activation
    image_size: int = 224
    patch_size: int = 14
    channels: int = 3
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in ("width", "layers", "heads", "intermediate", "projection", "image_size", "patch_size"):
            require_size(field, getattr(self, field))
        if self.width % self.heads:
            raise ConfigError("heads", self.heads, f"must divide width {self.width}")
        if self.patch_size > self.image_size:
            raise ConfigError("patch_size", self.patch_size, f"must be at most image_size {self.image_size}")
        if self.channels != 3:
            raise ConfigError("num_channels", self.channels, "must be 3: pictures are read as RGB")

    @property
    def tokens(self) -> int:
        """Hidden states of one picture: one of the whole, and one of each patch."""
        return 1 + (self.image_size // self.patch_size) ** 2


# Published with the models: openai/clip-vit-large-patch14 and open_clip's model_configs/ViT-H-14, ViT-bigG-14. GELU is
# quick only in OpenAI's (trap T2).
PUBLISHED_VISION: Mapping[str, ClipVisionConfig] = {
    "OpenAI CLIP ViT-L/14": ClipVisionConfig(
        width=1024, layers=24, heads=16, intermediate=4096, projection=768, activation="quick_gelu"
    ),
    "OpenCLIP ViT-H/14": ClipVisionConfig(
        width=1280, layers=32, heads=16, intermediate=5120, projection=1024, activation="gelu"
    ),
    "OpenCLIP ViT-bigG/14": ClipVisionConfig(
        width=1664, layers=48, heads=16, intermediate=8192, projection=1280, activation="gelu"
    ),
}


def vision_config_from_transformers(config: Mapping[str, Any]) -> ClipVisionConfig:
    """The architecture that a `config.json` of transformers describes, of a vision network alone or of a whole CLIP.

    Errors: `ConfigError` for missing fields and other networks.
    """
    given = mapping(config, "vision_config", config)
    kind = given.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ConfigError("model_type", kind, "must be clip_vision_model: give the folder of CLIP's vision network")
    names = {**TRANSFORMER_SIZES, "image_size": "image_size", "patch_size": "patch_size"}
    # In a whole CLIP's config, the projection is that of both networks and stands beside them.
    projection = whole(config if "projection_dim" in config else given, "projection_dim", 512)
    return ClipVisionConfig(
        **read_sizes(given, names, "CLIP vision model"),
        projection=projection,
        activation=read_activation(given),
        channels=whole(given, "num_channels", 3),
        norm_eps=number(given, "layer_norm_eps", 1e-5),
    )


def published_vision_config(shapes: Mapping[str, tuple[int, ...]]) -> ClipVisionConfig | None:
    """The published architecture with the widths and layers of these tensors (transformers' names); `None` for any
    other, whose heads and activation no shape tells."""
    embedding = shapes.get("vision_model.embeddings.patch_embedding.weight", ())
    projection = shapes.get("visual_projection.weight", ())
    for config in PUBLISHED_VISION.values():
        patches = (config.width, config.channels, config.patch_size, config.patch_size)
        last = f"vision_model.encoder.layers.{config.layers - 1}.layer_norm1.weight"
        if embedding == patches and projection == (config.projection, config.width) and last in shapes:
            return config
    return None
