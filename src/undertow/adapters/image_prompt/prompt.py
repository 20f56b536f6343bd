"""An IP-Adapter in memory: pictures' features to tokens, and tokens to keys and values of every cross-attention."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.adapters.image_prompt.projection import (
    HEAD_DIM,
    BaseProjection,
    FullProjection,
    PlusProjection,
    Projection,
    Tokens,
    Variant,
    Wants,
    encoder_for,
)
from undertow.adapters.image_prompt.sites import site_numbers
from undertow.encoders.image import ImageEncoder, ImageFeatures
from undertow.errors import AdapterMismatch, InvalidInput
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

TITLES: Mapping[Variant, str] = {"base": "IP-Adapter", "plus": "IP-Adapter Plus", "full": "IP-Adapter Full"}

UNSAVED = Path("(not saved)")
"""The path of an adapter that was made here."""

RESAMPLER_DEPTH = 4
"""Layers of the Plus adapters' resampler, the only number that diffusers reads."""


class SiteProjections(nn.Module):
    """The two matrices of one cross-attention, of which its own `to_k` and `to_v` are the model."""

    def __init__(self, context_dim: int, width: int):
        super().__init__()
        self.to_k_ip = nn.Linear(context_dim, width, bias=False)
        self.to_v_ip = nn.Linear(context_dim, width, bias=False)


class ImagePrompt(nn.Module):
    """One adapter for one U-Net. Parameter names are those of the authors' files: `image_proj.*`,
    `ip_adapter.N.to_k_ip.weight`.

    path, content_hash: of what was read; equal hashes are equal adapters.
    """

    def __init__(
        self, config: UNetConfig, projection: Projection, *, path: str | Path = UNSAVED, content_hash: str = ""
    ):
        super().__init__()
        context_dim, widths = projection.context_dim, config.cross_attentions()
        self.path = Path(path)
        self.content_hash = content_hash
        self.sites = site_numbers(config)
        self.image_proj = projection
        self.ip_adapter = nn.ModuleDict(
            {str(number): SiteProjections(context_dim, widths[site]) for number, site in self.sites.items()}
        )

    @classmethod
    def new(
        cls,
        unet: UNet,
        feature_dim: int,
        *,
        variant: Variant = "base",
        tokens: int = 4,
        width: int | None = None,
    ) -> "ImagePrompt":
        """An adapter to train, in float32: the projection random (torch's global generator), keys and values as those
        of the text, as the authors' training code begins.

        feature_dim: width of the encoder's pooled vector (base) or hidden states. tokens: of one picture; for "full" as
        many as the encoder has hidden states; diffusers reads "base" with 4 only. width: of the resampler in "plus",
        the text's when `None`. Errors: `InvalidInput`.
        """
        context = unet.config.context_dim
        if context is None:
            raise InvalidInput(
                "unet", "without cross-attention", "one that reads text", "an image prompt acts beside it"
            )
        for name, number in (("feature_dim", feature_dim), ("tokens", tokens), ("width", width)):
            if number is not None and number < 1:
                raise InvalidInput(name, number, "at least 1")
        match variant:
            case "base":
                projection = BaseProjection(feature_dim, context, tokens)
            case "full":
                projection = FullProjection(feature_dim, context, tokens)
            case "plus":
                inner = context if width is None else width
                heads = max(1, inner // HEAD_DIM)
                projection = PlusProjection(
                    feature_dim, context, tokens, width=inner, depth=RESAMPLER_DEPTH, heads=heads
                )
        prompt = cls(unet.config, projection).to(unet.device)
        with torch.no_grad():
            for number, site in prompt.sites.items():
                ours, texts = prompt.ip_adapter[str(number)], unet.get_submodule(site)
                for name in ("to_k", "to_v"):
                    copied = texts.get_submodule(name).get_parameter("weight")
                    ours.get_submodule(f"{name}_ip").get_parameter("weight").copy_(copied)
        return prompt

    @property
    def variant(self) -> Variant:
        return self.image_proj.variant

    @property
    def wants(self) -> Wants:
        """Which of an encoder's features it reads."""
        return self.image_proj.wants

    @property
    def feature_dim(self) -> int:
        return self.image_proj.feature_dim

    @property
    def tokens_per_image(self) -> int:
        return self.image_proj.tokens

    @property
    def size_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{TITLES[self.variant]} ({self.tokens_per_image} tokens a picture)"

    @property
    def dtype(self) -> torch.dtype:
        return next(self.image_proj.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.image_proj.parameters()).device

    def require_encoder(self, encoder: ImageEncoder) -> None:
        """Passes an encoder whose features this adapter reads. Errors: `AdapterMismatch` names the right one."""
        given = encoder.pooled_dim if self.wants == "pooled" else encoder.hidden_dim
        self._require_width(given, "the encoder's")

    def tokens(self, features: ImageFeatures) -> Tokens:
        """Tokens of every picture. Errors: `InvalidInput` for features without what it `wants`, `AdapterMismatch` for
        those of another encoder."""
        wanted = features.pooled if self.wants == "pooled" else features.hidden
        if wanted is None:
            raise InvalidInput(
                "features", f"without {self.wants}", f"{self.wants} features", "encode the pictures anew"
            )
        self._require_width(wanted.shape[-1], "those given")
        return self.image_proj(wanted.to(device=self.device, dtype=self.dtype))

    def nothing(self, encoder: ImageEncoder, count: int = 1) -> ImageFeatures:
        """The features of no picture, for unconditional rows: base adapters read a vector of zeros, Plus and Full ones
        what the encoder sees in an all-zero tensor of pixels (the authors' `get_image_embeds`)."""
        if self.wants == "pooled":
            return ImageFeatures(pooled=torch.zeros(count, self.feature_dim, device=encoder.device))
        return encoder.nothing(count)

    def keys_values(self, tokens: Float[Tensor, "batch tokens context"]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Keys and values of every cross-attention, [batch, tokens, its width], by its name: for `Ports.image`."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for number, site in self.sites.items():
            projections = cast(SiteProjections, self.ip_adapter[str(number)])
            found[site] = projections.to_k_ip(tokens), projections.to_v_ip(tokens)
        return found

    def _require_width(self, given: int, whose: str) -> None:
        if given != self.feature_dim:
            part = "pooled vectors" if self.wants == "pooled" else "hidden states"
            raise AdapterMismatch(
                self.path,
                f"it reads {part} {self.feature_dim} wide, and {whose} are {given} wide",
                f"give {encoder_for(self.wants, self.feature_dim)}",
            )
