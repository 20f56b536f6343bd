"""ControlNet against diffusers', with random weights: cases C1 to C5 of the parity plan."""

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from tests.golden.conftest import T0, largest_difference
from tests.golden.minis import MINIS, TIMESTEPS, build_twin, conditioning_for, latents_for, pair, randomize
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.file import read_control
from undertow.adapters.control.write import write_control
from undertow.unet.conditioning import Conditioning, Residuals

WITH_TEXT = ("M15", "M21", "MXL", "MRF", "M9")
HINT_CHANNELS = (8, 16, 24, 32)


def controlnet(name: str, *, seed: int = 20) -> ControlNet:
    """A ControlNet of a mini with random weights everywhere, its zero convolutions too."""
    network = ControlNet.from_unet(pair(name)[0], HINT_CHANNELS).eval()
    randomize(network, seed)
    return network


def twin_of(name: str, network: ControlNet) -> ControlNetModel:
    """diffusers' own ControlNet of diffusers' own mini, with our weights."""
    twin = ControlNetModel.from_unet(build_twin(MINIS[name]), conditioning_embedding_out_channels=HINT_CHANNELS)
    twin.load_state_dict(network.state_dict())
    return twin.eval()


def hint_for(height: int = 16, width: int = 16, *, seed: int = 3) -> Tensor:
    return torch.rand(2, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(seed))


def run_control_twin(
    twin: ControlNetModel, latents: Tensor, given: Conditioning, hint: Tensor, scale: float = 1.0, **extra: bool
) -> Residuals:
    """diffusers' forward as our record."""
    added = {} if given.pooled is None else {"text_embeds": given.pooled, "time_ids": given.time_ids}
    skips, middle = twin(
        latents,
        TIMESTEPS,
        encoder_hidden_states=given.context,
        controlnet_cond=hint,
        conditioning_scale=scale,
        added_cond_kwargs=added,
        return_dict=False,
        **extra,
    )
    return Residuals(skips=tuple(skips), middle=middle)


def largest_of_all(ours: Residuals, reference: Residuals) -> float:
    pairs = zip((*ours.skips, ours.middle), (*reference.skips, reference.middle), strict=True)
    return max(largest_difference(a, b.expand_as(a)) for a, b in pairs)


@pytest.mark.parametrize("size", [(16, 16), (9, 13)])
@pytest.mark.parametrize("name", WITH_TEXT)
def test_residuals_equal_diffusers(name, size):
    """C1. Every residual of random zero convolutions."""
    network = controlnet(name)
    latents, given, hint = latents_for(MINIS[name], *size), conditioning_for(MINIS[name]), hint_for(*size)
    ours = network(latents, TIMESTEPS, given, network.embed_hint(hint))
    reference = run_control_twin(twin_of(name, network), latents, given, hint)
    assert len(ours.skips) == len(MINIS[name].config.skip_shapes(*size))
    assert largest_of_all(ours, reference) <= T0


@pytest.mark.parametrize("name", WITH_TEXT)
def test_a_copy_of_the_unet_changes_nothing_and_copies_its_encoder(name):
    unet = pair(name)[0]
    network = ControlNet.from_unet(unet, HINT_CHANNELS)
    latents, given = latents_for(MINIS[name]), conditioning_for(MINIS[name])
    silent = network(latents, TIMESTEPS, given, network.embed_hint(hint_for()))
    assert not any(skip.any() for skip in (*silent.skips, silent.middle))
    theirs = ControlNetModel.from_unet(pair(name)[1], conditioning_embedding_out_channels=HINT_CHANNELS).state_dict()
    own = network.state_dict()
    assert own.keys() == theirs.keys()
    copied = [key for key in own if not key.startswith("controlnet_")]
    assert all(torch.equal(own[key], theirs[key]) for key in copied)
    assert all(own[key].data_ptr() != tensor.data_ptr() for key, tensor in unet.state_dict().items() if key in own)
    assert own["controlnet_cond_embedding.conv_in.weight"].any()
    zeros = [key for key in own if key.startswith("controlnet_") and not own[key].any()]
    assert len(zeros) == 2 * (len(silent.skips) + 2)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_a_written_folder_is_read_by_diffusers_and_by_us(name, tmp_path):
    network = controlnet(name)
    folder = write_control(network, tmp_path / "canny")
    theirs = ControlNetModel.from_pretrained(folder).state_dict()
    read = read_control(folder, pair(name)[0])
    assert read.network.config == network.config
    for key, tensor in network.state_dict().items():
        assert torch.equal(theirs[key].float(), tensor.half().float())
        assert torch.equal(read.network.state_dict()[key], tensor.half().float())
