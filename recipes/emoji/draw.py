"""Pictures of many captions at once, by networks in memory: for sample sheets and the measurements."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recipes.emoji.text_to_image import OBJECTIVE, OUTPUT_SELECTION, TextToImage, token_ids
from undertow.engine.direct import DirectModel, SamplingSettings
from undertow.pictures.pixels import to_uint8
from undertow.unet.conditioning import Conditioning
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.latent_values import latents_from_model

SETTINGS = SamplingSettings(sampler="dpmpp_2m", schedule="karras", steps=20, guidance=4.0)


@torch.inference_mode()
def draw(
    model: TextToImage,
    vae: AutoencoderKL,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    settings: SamplingSettings = SETTINGS,
    batch_size: int = 50,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> UInt8[Tensor, "count 3 side side"]:
    """One picture per caption and seed, as `undertow generate` draws it."""
    conditional, empty = _conditionings(model, captions)
    pictures = []
    for latents in _direct(model).draw(conditional, empty, seeds, settings, batch_size=batch_size):
        pictures.append(
            to_uint8(vae.decode(latents_from_model(vae.config.latent_space, torch.cat(latents))).clamp(-1, 1))
        )
        on_pictures(len(latents))
    return torch.cat(pictures)


@torch.inference_mode()
def redraw(
    model: TextToImage,
    z: Float[Tensor, "count channels height width"],
    captions: Sequence[str],
    seeds: Sequence[int],
    first_step: int,
    *,
    settings: SamplingSettings = SETTINGS,
) -> Float[Tensor, "count channels height width"]:
    """Latents of pictures as the model draws them: noise is put over them, and `first_step` and what follows draw them
    anew. A later first step leaves more of the picture."""
    conditional, empty = _conditionings(model, captions)
    (drawn,) = _direct(model).draw(
        conditional, empty, seeds, settings, over=z.split(1), first_step=first_step, batch_size=len(z)
    )
    return torch.cat(drawn)


def _direct(model: TextToImage) -> DirectModel:
    side = model.unet.config.sample_size
    return DirectModel(
        unet=model.unet,
        parameterization=OBJECTIVE.parameterization,
        schedule=OBJECTIVE.schedule,
        size=(side, side),
    )


def _conditionings(model: TextToImage, captions: Sequence[str]) -> tuple[list[Conditioning], Conditioning]:
    """Those of captions, and that of the empty one."""
    encoded = {text: _conditioning(model, text) for text in {*captions, ""}}
    return [encoded[caption] for caption in captions], encoded[""]


def _conditioning(model: TextToImage, text: str) -> Conditioning:
    ids = torch.tensor([token_ids(text, model.text.tokenizer)])
    return Conditioning(context=model.text(ids, OUTPUT_SELECTION).tokens)
