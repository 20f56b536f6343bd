"""What the tests of ControlNet and image prompt training share: a base that must stay as it was, and stopped runs."""

from dataclasses import replace

import torch

from tests.training.lora_runs import FIT
from undertow.encoders.image import ImageEncoder, random_image_encoder
from undertow.encoders.image_config import ClipVisionConfig

SMALL_VISION = ClipVisionConfig(
    width=16, layers=2, heads=2, intermediate=32, projection=12, activation="quick_gelu", image_size=16, patch_size=8
)


def fit_for(steps: int, **changes):
    return replace(FIT, **({"steps": steps, "checkpoint_every": steps} | changes))


def weights(model) -> list[torch.Tensor]:
    networks = (model.unet, model.vae, *model.text.encoders)
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def is_as_before(model, before: list[torch.Tensor]) -> bool:
    return (
        all(old.equal(new) for old, new in zip(before, weights(model), strict=True))
        and all(parameter.grad is None for parameter in model.unet.parameters())
        and not model.unet.training
    )


def equal_states(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def stop_at(step: int):
    """A listener that interrupts a run."""

    def stop(record):
        if record.step == step:
            raise KeyboardInterrupt

    return stop


def image_encoder(seed: int = 0) -> ImageEncoder:
    """A tiny one with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageEncoder.from_tensors(random_image_encoder(SMALL_VISION), SMALL_VISION)
