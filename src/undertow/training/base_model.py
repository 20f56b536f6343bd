"""The frozen base model of a training: whether it is suitable, training pictures as its latents, and fingerprints."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.checkpoints.files.destination import require_elsewhere
from undertow.checkpoints.read.model import LoadedModel
from undertow.encoders.text_stack import TextStack
from undertow.errors import InvalidInput
from undertow.pictures.pixels import from_uint8
from undertow.training.captioned import CaptionedPictures
from undertow.unet.config import ClassLabels
from undertow.unet.unet import UNet
from undertow.vae.latent_values import latents_to_model

BATCH_SIZE = 4
"""How many pictures the autoencoder encodes at once."""

COMPARED = 64
"""How many numbers of each tensor enter a fingerprint; further training of a model would change them all."""


def require_trainable(model: LoadedModel) -> tuple[UNet, TextStack]:
    """Returns the U-Net and the text encoders of a latent text-to-image model in float32. Errors: `InvalidInput` for
    other models, `MissingComponent`."""
    unet = model.require_unet()
    config = unet.config
    if config.context_dim is None or isinstance(config.added, ClassLabels):
        raise InvalidInput("model", "a network that reads no text", "a text-to-image model", "name another model")
    text, channels = model.require_text(), model.require_vae().config.latent_channels
    if config.in_channels != channels:
        raise InvalidInput(
            "model",
            f"a network of {config.in_channels} input channels",
            f"one that receives nothing beside its {channels} latent channels",
            "inpainting and editing networks want masks or pictures beside the captions: train on their base model, "
            "and use the LoRA on them",
        )
    if config.guidance_dim is not None:
        raise InvalidInput(
            "model", "distilled to take guidance as an input", "one trained by denoising", "train on its base model"
        )
    if unet.dtype != torch.float32:
        raise InvalidInput("model", f"in {unet.dtype}", "one in float32", "load it with dtype=torch.float32")
    return unet, text


def require_size(model: LoadedModel, size: int) -> None:
    """Checks the side of the pictures. Errors: `InvalidInput` if the autoencoder or the U-Net cannot downsample it."""
    levels, factor = len(model.require_unet().config.levels), model.require_vae().config.factor
    multiple = factor * 2 ** (levels - 1)
    if size % multiple:
        raise InvalidInput(
            "size", size, f"a multiple of {multiple} pixels", f"for example {max(1, size // multiple) * multiple}"
        )


def require_own_folder(model: LoadedModel, folder: Path) -> None:
    """Refuses to train in the model's own folder, whose files would be mixed with the run's. Errors: `InvalidInput`."""
    require_elsewhere("the folder of the run", folder, [model.path])


def native_size(model: LoadedModel) -> int:
    """Returns the side in pixels of the pictures that the model was trained on."""
    return model.require_unet().config.sample_size * model.require_vae().config.factor


@torch.no_grad()
def encode_pictures(model: LoadedModel, pictures: CaptionedPictures) -> Float[Tensor, "count channels height width"]:
    """Returns the scaled means of the posteriors: latents as the U-Net receives them."""
    vae = model.require_vae()
    space = vae.config.latent_space
    batches = pictures.pixels.split(BATCH_SIZE)
    pixels = (from_uint8(batch).to(device=vae.device, dtype=vae.dtype) for batch in batches)
    return torch.cat([latents_to_model(space, vae.encode(batch).mean).float().cpu() for batch in pixels])


def fingerprint(*parts: object) -> str:
    """Returns a short hash of networks, tensors and texts, by which a resumed run recognizes them."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        match part:
            case nn.Module():
                for name, tensor in part.state_dict().items():
                    few = tensor.detach().flatten()[:COMPARED].float().cpu()
                    digest.update(f"{name} {list(tensor.shape)}".encode() + few.numpy().tobytes())
            case Tensor():
                digest.update(str(list(part.shape)).encode() + part.cpu().contiguous().numpy().tobytes())
            case _:
                digest.update(repr(part).encode())
    return digest.hexdigest()
