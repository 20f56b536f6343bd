"""The doors of control networks: what they take, what they refuse."""

import pytest
import torch

from tests.golden.controls import HINT_CHANNELS, controlnet, hint_for, t2i, t2i_hint
from tests.golden.minis import MINIS, TIMESTEPS, conditioning_for, latents_for, pair
from undertow.adapters.control.config import ControlNetConfig, T2IConfig
from undertow.adapters.control.controlnet import ControlNet, check_hint
from undertow.adapters.control.t2i import T2IAdapter
from undertow.errors import ConfigError, InvalidInput
from undertow.unet.config import UNetConfig


@pytest.fixture(scope="module")
def network() -> ControlNet:
    return controlnet("M15")


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (torch.full((3, 128, 128), 0.5), r"hint is \[3, 128, 128\], expected \[batch, 3, height, width\]"),
        (torch.full((2, 1, 128, 128), 0.5), "expected .batch, 3, height, width"),
        (torch.full((2, 3, 127, 128), 0.5), "whole multiples of 8"),
        (torch.full((2, 3, 128, 128), 0.5).half(), "the network's type torch.float32"),
        (torch.full((2, 3, 128, 128), torch.nan), "non-finite in 98304 of 98304 values"),
        (torch.full((2, 3, 128, 128), 255.0), "divide 8-bit pixels by 255"),
    ],
)
def test_what_is_no_hint_is_refused(hint, message):
    with pytest.raises(InvalidInput, match=message):
        check_hint(hint, 3, 8, torch.float32)


def test_a_hint_of_another_size_is_refused(network):
    latents, given = latents_for(MINIS["M15"]), conditioning_for(MINIS["M15"])
    with pytest.raises(InvalidInput, match=r"hint_embedding .* 8 times the latents' height and width"):
        network(latents, TIMESTEPS, given, network.embed_hint(hint_for(8, 16)))
    with pytest.raises(InvalidInput, match="one for each row"):
        network(latents, TIMESTEPS, given, network.embed_hint(hint_for()[:1]))
    assert network.hint_size(16, 12) == (128, 96)


def test_it_needs_the_text_and_the_sizes_that_the_unet_needs():
    network, mini = controlnet("MXL"), MINIS["MXL"]
    embedded, given = network.embed_hint(hint_for()), conditioning_for(mini)
    with pytest.raises(InvalidInput, match="pooled"):
        network(latents_for(mini), TIMESTEPS, conditioning_for(MINIS["M15"]), embedded)
    latents = latents_for(mini)
    latents[0, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidInput, match="latents is non-finite"):
        network(latents, TIMESTEPS, given, embedded)


def test_training_reaches_every_parameter_once_the_zero_convolutions_moved():
    network = ControlNet.from_unet(pair("M15")[0], HINT_CHANNELS).train()
    network.gradient_checkpointing = True
    with torch.no_grad():
        for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            layer.weight.normal_(generator=torch.Generator().manual_seed(1))
    found = network(
        latents_for(MINIS["M15"]), TIMESTEPS, conditioning_for(MINIS["M15"]), network.embed_hint(hint_for())
    )
    sum(part.square().mean() for part in (*found.skips, found.middle)).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # Behind the hint embedder's last layer, which is zero, no gradient comes through yet.
    assert all(
        name.startswith(("controlnet_cond_embedding.conv_in", "controlnet_cond_embedding.blocks")) for name in still
    )


def test_a_t2i_adapter_refuses_other_hints_and_other_networks():
    network = t2i("light")
    with pytest.raises(InvalidInput, match=r"expected .batch, 1, height, width"):
        network(torch.full((2, 3, 128, 128), 0.5))
    with pytest.raises(InvalidInput, match="finite"):
        network(t2i_hint(network) / 0)
    with pytest.raises(ConfigError, match="must give the U-Net's 3 levels"):
        T2IAdapter(T2IConfig(), UNetConfig.sdxl())
    assert t2i("xl").hint_size(17, 16) == (144, 128)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ControlNetConfig(unet=UNetConfig.sd15(), hint_channels=()), "at least one width"),
        (lambda: ControlNetConfig(unet=UNetConfig.sd15(), hint_in=0), "hint_in = 0"),
        (lambda: ControlNetConfig(unet=UNetConfig.lcm_sd15()), "takes no guidance"),
        (lambda: T2IConfig(kind="xl", channels=(32, 64, 128)), "must be four in the XL form"),
        (lambda: T2IConfig(kind="light", channels=(30,)), "multiples of 4"),
        (lambda: T2IConfig(resnets=0), "resnets = 0"),
    ],
)
def test_impossible_configs_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
