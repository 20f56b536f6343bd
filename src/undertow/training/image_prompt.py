"""Training an image prompt (IP-Adapter, arXiv:2308.06721): tokens out of reference pictures, and keys and values for
them beside a frozen model's text, from pictures with captions.

As for a LoRA (`training.lora`): what is trained for is the model's own, and the loop is `fit`. Every picture is its own
reference, as in the authors' code, unless others are given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from undertow.adapters.image_prompt.projection import Variant
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.image import ImageEncoder, ImageFeatures
from undertow.errors import InvalidInput
from undertow.nn.attention import ImageTokens
from undertow.training.base_model import (
    encode_pictures,
    fingerprint,
    require_own_folder,
    require_size,
    require_trainable,
)
from undertow.training.captioned import CaptionedPictures
from undertow.training.checkpointing import checkpointing
from undertow.training.examples import (
    Examples,
    FixedCaptions,
    TrainingBatch,
    base_recipe,
    model_objective,
    require_settings,
)
from undertow.training.fit import FitSettings
from undertow.training.log import StepRecord
from undertow.training.low_rank import frozen
from undertow.training.randomness import seeded
from undertow.unet.blocks import Checkpointing
from undertow.unet.conditioning import Ports
from undertow.unet.unet import UNet

BATCH_SIZE = 16
"""How many references the encoder encodes at once."""


@dataclass(frozen=True, kw_only=True)
class ImagePromptSettings:
    """The settings of an image prompt training.

    variant: "base" uses the pooled image embedding, "plus" and "full" the hidden states of all patches. tokens: number
    of tokens per picture; "full" always uses the encoder's own number. dropped_images, dropped_captions, dropped_both:
    disjoint shares of examples without their image, caption or both; 0.05 each in the authors' code. timesteps,
    min_snr_gamma, gradient_checkpointing: see `LoraSettings`. Errors: `ConfigError`.
    """

    fit: FitSettings
    variant: Variant = "base"
    tokens: int = 4
    dropped_images: float = 0.05
    dropped_captions: float = 0.05
    dropped_both: float = 0.05
    timesteps: str = "uniform"
    min_snr_gamma: float | None = None
    gradient_checkpointing: Checkpointing = False

    def __post_init__(self):
        shares = (self.dropped_images, self.dropped_captions, self.dropped_both)
        names = "dropped_images, dropped_captions, dropped_both"
        rules = (
            ("variant", self.variant, self.variant in ("base", "plus", "full"), "must be 'base', 'plus' or 'full'"),
            ("tokens", self.tokens, self.tokens >= 1, "must be at least 1"),
            (names, shares, min(shares) >= 0 and sum(shares) < 1, "must be from 0 on, and together less than 1"),
        )
        require_settings(self.fit, self.timesteps, rules)

    def dropping(self, share: Float[Tensor, "batch"]) -> tuple[Bool[Tensor, "batch"], Bool[Tensor, "batch"]]:
        """Returns which examples lose their image and which their caption, from a random number in [0, 1) for each."""
        image, caption = self.dropped_images, self.dropped_images + self.dropped_captions
        both = (share >= caption) & (share < caption + self.dropped_both)
        return (share < image) | both, ((share >= image) & (share < caption)) | both


def train_image_prompt(
    model: LoadedModel,
    encoder: ImageEncoder,
    pictures: CaptionedPictures,
    settings: ImagePromptSettings,
    folder: Path,
    *,
    references: UInt8[Tensor, "count 3 height width"] | None = None,
    on_resume: Callable[[int], None] = lambda step: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    stop: Callable[[], bool] = lambda: False,
) -> ImagePrompt:
    """Trains an image prompt and returns it with its averaged weights (EMA); model and encoder are not changed.

    references: one for each picture; `None` uses the pictures themselves. folder: see `fit`. Errors: `InvalidInput` for
    models that cannot be trained and for a wrong number of references, `MissingComponent`; and those of `fit`.
    """
    unet, text = require_trainable(model)
    require_size(model, pictures.size)
    require_own_folder(model, folder)
    shown = pictures.pixels if references is None else references
    if len(shown) != len(pictures):
        raise InvalidInput("references", len(shown), f"{len(pictures)}, one for each picture")
    prompt = new_image_prompt(unet, encoder, settings)
    objective = model_objective(model, settings.timesteps, settings.min_snr_gamma)
    latents = encode_pictures(model, pictures)
    examples = Examples(
        latents=latents, fit=settings.fit, objective=objective, purpose="image prompt batch", device=unet.device
    )
    loss = _Loss(
        unet=unet,
        prompt=prompt,
        features=encode_references(prompt, encoder, shown).to(unet.device),
        captions=FixedCaptions.of(text, unet.config, pictures),
        settings=settings,
    )
    named = ("variant", "tokens", "dropped_images", "dropped_captions", "dropped_both")
    recipe = {
        **base_recipe(model, pictures, objective),
        "references": fingerprint(shown),
        "encoder": fingerprint(encoder),
        **{name: getattr(settings, name) for name in named},
    }

    with frozen(unet, *text.encoders), checkpointing(unet, settings.gradient_checkpointing):
        return examples.train(prompt, loss, folder, recipe, on_resume=on_resume, on_record=on_record, stop=stop)


def new_image_prompt(unet: UNet, encoder: ImageEncoder, settings: ImagePromptSettings) -> ImagePrompt:
    """Returns a new image prompt for the features of this encoder."""
    pooled = settings.variant == "base"
    with seeded(settings.fit.seed, "image prompt"):
        return ImagePrompt.new(
            unet,
            encoder.pooled_dim if pooled else encoder.hidden_dim,
            variant=settings.variant,
            tokens=encoder.config.tokens if settings.variant == "full" else settings.tokens,
        )


@torch.no_grad()
def encode_references(
    prompt: ImagePrompt, encoder: ImageEncoder, references: UInt8[Tensor, "count 3 height width"]
) -> Float[Tensor, "..."]:
    """Returns the features of every reference and, last, those of no image: [count + 1, ...]."""
    found: list[Tensor] = []
    for batch in references.split(BATCH_SIZE):
        images = [Image.fromarray(np.asarray(picture.permute(1, 2, 0).contiguous())) for picture in batch]
        found.append(_read(prompt, encoder.encode(images)))
    return torch.cat([*found, _read(prompt, prompt.nothing(encoder))])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loss:
    """The loss of a batch. features: of every reference and, last, of no picture."""

    unet: UNet
    prompt: ImagePrompt
    features: Float[Tensor, "..."]
    captions: FixedCaptions
    settings: ImagePromptSettings

    def __call__(self, batch: TrainingBatch) -> Tensor:
        device, dtype = self.unet.device, self.unet.dtype
        no_image, no_caption = self.settings.dropping(batch.uniform)
        inputs = batch.example.inputs.to(memory_format=torch.channels_last)
        given = self.captions.conditioning(batch.indices, no_caption).to(dtype=dtype)
        image = self._tokens(batch.indices.masked_fill(no_image, len(self.features) - 1).to(device))
        ports = Ports(image={site: (tokens,) for site, tokens in image.items()})
        prediction = self.unet(inputs, batch.example.timesteps.to(torch.float32), given, ports)
        return batch.example.loss(prediction)

    def _tokens(self, rows: Int[Tensor, "batch"]) -> dict[str, ImageTokens]:
        """The image port's, by cross-attention, for these rows of `features`."""
        features = self.features[rows]
        pooled = self.prompt.wants == "pooled"
        tokens = self.prompt.tokens(ImageFeatures(pooled=features) if pooled else ImageFeatures(hidden=features))
        gain = torch.ones(len(rows), device=rows.device, dtype=self.unet.dtype)
        dtype = self.unet.dtype
        # Autocast layers answer in bfloat16, and the U-Net's door asks for its own type.
        return {
            site: ImageTokens(keys=keys.to(dtype), values=values.to(dtype), gain=gain)
            for site, (keys, values) in self.prompt.keys_values(tokens).items()
        }


def _read(prompt: ImagePrompt, features: ImageFeatures) -> Tensor:
    wanted = features.pooled if prompt.wants == "pooled" else features.hidden
    assert wanted is not None
    return wanted
