"""A CLIP vision network: reference pictures as the features that image prompts (IP-Adapter) read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from undertow.encoders.clip_network import ClipVision
from undertow.encoders.image_config import ClipVisionConfig, vision_config_from_transformers
from undertow.encoders.image_pixels import Pixels, Preprocessing
from undertow.errors import ConfigError
from undertow.extras import optional_package
from undertow.state_dicts import compare_names, compare_shapes, require_layers, shapes_of

PROJECTION = "visual_projection.weight"
_EMBEDDING = "vision_model.embeddings.patch_embedding.weight"
_POSITIONS = "vision_model.embeddings.position_ids"
# Of a whole CLIP, the text network; positions are counted here, since merged files carry rounded ones.
_UNUSED = ("text_model.", "text_projection.", "logit_scale", _POSITIONS)


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What an encoder sees in pictures, in float32. pooled: one vector of each. hidden: the states before the last
    layer, one of the whole picture and one of each patch. What no reader wants may be left out."""

    pooled: Float[Tensor, "images pooled_dim"] | None = None
    hidden: Float[Tensor, "images patches hidden_dim"] | None = None


class ImageEncoder(nn.Module):
    """A CLIP vision network and what is done to pictures before it; `preprocessing` may be replaced."""

    def __init__(self, config: ClipVisionConfig, network: ClipVision, preprocessing: Preprocessing):
        super().__init__()
        self.config = config
        self.network = network
        self.preprocessing = preprocessing

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        config: ClipVisionConfig | Mapping[str, Any],
        *,
        preprocessing: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        source: str | Path = "image encoder",
    ) -> "ImageEncoder":
        """An encoder from tensors with transformers' names; those of a text network beside it are left.

        The network is built without memory and takes the tensors one by one; a lazy mapping is read one tensor at a
        time. config: ours, or the contents of transformers' `config.json`. preprocessing: the contents of
        `preprocessor_config.json`; `None` takes CLIP's. dtype: `None` keeps the patch embedding's for everything.
        Errors: `KeyMismatch` names `source` and the tensors missing, unexpected or of another shape; `ConfigError`.
        """
        if isinstance(config, Mapping):
            config = vision_config_from_transformers(config)
        side = config.image_size
        prepared = Preprocessing.square(side)
        if preprocessing is not None:
            prepared = Preprocessing.from_transformers(preprocessing, side)
        network = _build(config, tensors, dtype=dtype, device=device, source=source)
        return cls(config, network, prepared).eval()

    @property
    def dtype(self) -> torch.dtype:
        return self.network.visual_projection.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.network.visual_projection.weight.device

    @property
    def pooled_dim(self) -> int:
        return self.config.projection

    @property
    def hidden_dim(self) -> int:
        return self.config.width

    def encode(self, pictures: Sequence[Image.Image]) -> ImageFeatures:
        """The pictures' features; their transparent parts are white. Errors: `InvalidInput` for what is no picture."""
        return self(self.preprocessing.pixels(pictures))

    def nothing(self, count: int = 1) -> ImageFeatures:
        """The features of an all-zero tensor of pixels, `count` times: no picture at all, which is not a black one.

        What Plus and Full adapters read in unconditional rows, as in their authors' code.
        """
        side = self.config.image_size
        features = self(torch.zeros(1, self.config.channels, side, side))
        assert features.pooled is not None  # `forward` gives both
        assert features.hidden is not None
        return ImageFeatures(pooled=features.pooled.expand(count, -1), hidden=features.hidden.expand(count, -1, -1))

    def forward(self, pixels: Pixels) -> ImageFeatures:
        """Features of pictures that are preprocessed already, [images, 3, image_size, image_size]."""
        given = pixels.to(device=self.device, dtype=self.dtype)
        pooled, hidden = self.network(given)
        return ImageFeatures(pooled=pooled.float(), hidden=hidden.float())


def _build(
    config: ClipVisionConfig,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    source: str | Path,
) -> ClipVision:
    require_layers(source, config.layers, len(tensors))
    with torch.device("meta"):
        network = ClipVision(config)
    expected = shapes_of(network.state_dict())
    compare_names(expected.keys(), [name for name in tensors if not name.startswith(_UNUSED)]).require_none(source)
    if dtype is None:
        dtype = tensors[_EMBEDDING].dtype
    if not dtype.is_floating_point:
        raise ConfigError("dtype", dtype, "must be a floating-point type: quantized encoders are not supported")
    placed = {name: tensors[name].to(device=device, dtype=dtype) for name in expected}
    compare_shapes(expected, shapes_of(placed)).require_none(source)
    network.load_state_dict(placed, assign=True)
    return network.requires_grad_(False)


def random_image_encoder(config: ClipVisionConfig) -> dict[str, Tensor]:
    """Weights to train from, as transformers initializes them, from torch's global generator. Errors:
    `MissingDependency`."""
    with optional_package("transformers", "train"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: PLC0415  an extra, and slow

    described = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.intermediate,
        projection_dim=config.projection,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_channels=config.channels,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act=config.activation,
        layer_norm_eps=config.norm_eps,
    )
    return dict(CLIPVisionModelWithProjection(described).named_parameters())
