"""Which pictures a model reads beside the noisy latents. Imports no torch, so that they are asked for at the door."""

from dataclasses import dataclass
from typing import Literal

from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.unet.config import UNetConfig

Kind = Literal["latents", "inpainting", "editing", "depth"]


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """What a U-Net reads beside the noisy latents, by its input channels: nothing; a mask and the masked picture; the
    picture to edit (InstructPix2Pix); a depth map."""

    kind: Kind

    @classmethod
    def of(cls, unet: UNetConfig, latent_channels: int) -> "ImageInputs":
        """latent_channels: of the autoencoder. Errors: `InvalidInput` for a network that reads something else."""
        channels = latent_channels
        kinds: dict[int, Kind] = {
            channels: "latents",
            2 * channels + 1: "inpainting",
            2 * channels: "editing",
            channels + 1: "depth",
        }
        kind = kinds.get(unet.in_channels)
        if kind is None:
            raise InvalidInput(
                "model", f"a U-Net of {unet.in_channels} input channels", f"one of {', '.join(map(str, kinds))}"
            )
        return cls(kind=kind)

    @property
    def edits(self) -> bool:
        return self.kind == "editing"

    def are_needed(self, request: GenerationRequest) -> bool:
        """Whether there is anything to encode; an inpainting model reads a white mask where none is given."""
        return self.kind == "inpainting" or request.image is not None or request.depth is not None

    def check(self, request: GenerationRequest) -> None:
        """Refuses a request without the pictures that this kind of model reads, or with others. Errors:
        `InvalidInput`."""
        match self.kind:
            case "editing" if request.image is None:
                raise InvalidInput("image", "missing", "the picture to edit, for this InstructPix2Pix model")
            case "editing" if request.mask is not None:
                raise InvalidInput(
                    "mask", "given", "nothing for an InstructPix2Pix model", "it edits the whole picture"
                )
            case "depth" if request.depth is None:
                raise InvalidInput("depth", "missing", "a depth map, for this depth model")
            case "latents" | "inpainting" | "editing" if request.depth is not None:
                raise InvalidInput("depth", "given", "nothing, because this model reads none", "use a depth model")
            case _:
                pass
