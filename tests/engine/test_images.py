"""Which pictures a model reads, and as what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from undertow import GenerationRequest, InvalidInput, UNetConfig
from undertow.engine.image_inputs import ImageInputs, Kind
from undertow.engine.images import encode_images
from undertow.vae.config import VAEConfig

PICTURE = Image.new("RGB", (32, 32))
MASK = Image.new("L", (32, 32))

BROUGHT = {
    "nothing": {},
    "image": {"image": PICTURE},
    "mask": {"image": PICTURE, "mask": MASK},
    "depth": {"depth": MASK},
}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (UNetConfig.sd15(), "latents"),
        (UNetConfig.sd15_inpaint(), "inpainting"),
        (UNetConfig.instruct_pix2pix(), "editing"),
        (replace(UNetConfig.sd21(), in_channels=5), "depth"),
    ],
)
def test_the_kind_of_a_model_is_told_by_its_input_channels(config: UNetConfig, kind: Kind):
    assert ImageInputs.of(config, VAEConfig.sd().latent_channels).kind == kind


@pytest.mark.parametrize(
    ("kind", "brought", "message"),
    [
        ("latents", "nothing", None),
        ("latents", "image", None),
        ("latents", "mask", None),
        ("latents", "depth", "use a depth model"),
        ("inpainting", "nothing", None),
        ("inpainting", "image", None),
        ("inpainting", "mask", None),
        ("inpainting", "depth", "use a depth model"),
        ("editing", "nothing", "the picture to edit"),
        ("editing", "image", None),
        ("editing", "mask", "it edits the whole picture"),
        ("depth", "nothing", "a depth map"),
        ("depth", "image", "a depth map"),
        ("depth", "depth", None),
    ],
)
def test_a_model_is_given_the_pictures_of_its_kind(kind: Kind, brought: str, message: str | None):
    request = GenerationRequest(prompt="a", **BROUGHT[brought])
    if message is None:
        ImageInputs(kind=kind).check(request)
    else:
        with pytest.raises(InvalidInput, match=message):
            ImageInputs(kind=kind).check(request)


def test_a_depth_map_is_read_from_its_farthest_to_its_nearest(service):
    """Whatever gray it begins and ends with; bicubic as in the code of Stable Diffusion 2."""
    gray = np.linspace(100, 160, 32).astype(np.uint8)
    depth = Image.fromarray(np.tile(gray, (32, 1)))
    extra = encode_images(
        GenerationRequest(prompt="a", depth=depth), ImageInputs(kind="depth"), service.model, (32, 32)
    ).extra
    assert extra.shape == (1, 1, 16, 16)
    assert (extra.min(), extra.max()) == (-1, 1)
    assert (extra.diff(dim=3) > 0).all()


def test_a_flat_depth_map_is_no_division_by_zero(service):
    request = GenerationRequest(prompt="a", depth=MASK)
    assert torch.isfinite(encode_images(request, ImageInputs(kind="depth"), service.model, (32, 32)).extra).all()
