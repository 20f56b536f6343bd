"""Weights are counted from architectures; the networks themselves say how many there are."""

import subprocess
import sys

import pytest
import torch

from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.control.controlnet import ControlNet
from undertow.encoders.clip_config import PUBLISHED
from undertow.encoders.clip_network import ClipText
from undertow.memory import weights
from undertow.memory.families import CLIP_L, OPENCLIP_G, OPENCLIP_H, VAE, VAE_XL
from undertow.memory.work import VAENetwork
from undertow.unet.config import UNetConfig
from undertow.unet.presets import PRESETS
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["lcm-sd15", "sd21", "ssd-1b", "cifar10"])
def test_unets(name):
    config = PRESETS[name]()
    with torch.device("meta"):
        assert weights.unet_weights(config) == numbers(UNet(config))


def test_published_numbers():
    """As their authors give them."""
    assert weights.unet_weights(UNetConfig.sd15()) == 859_520_964
    assert weights.unet_weights(UNetConfig.sdxl()) == 2_567_463_684
    assert weights.unet_weights(UNetConfig.sdxl_refiner()) == 2_259_526_660


def test_controlnets():
    config = ControlNetConfig(unet=UNetConfig.sd15())
    with torch.device("meta"):
        assert weights.controlnet_weights(config) == numbers(ControlNet(config))


def test_autoencoders():
    other = VAEConfig(level_channels=(32, 64), resnets=1, middle_attention=False, quant_conv=False)
    for config, network in ((VAEConfig.sd(), VAE), (VAEConfig.sdxl(), VAE_XL), (other, VAENetwork.of(other))):
        assert VAENetwork.of(config) == network
        with torch.device("meta"):
            assert weights.vae_weights(network) == numbers(AutoencoderKL(config))


def test_text_encoders():
    for kind, network in (("clip_l", CLIP_L), ("openclip_h", OPENCLIP_H), ("openclip_g", OPENCLIP_G)):
        with torch.device("meta"):
            clip = ClipText(PUBLISHED[kind], network.layers)
        projection = 0 if network.projection is None else network.width * network.projection
        assert weights.text_weights(network) == numbers(clip) + projection


def test_no_torch():
    code = "import sys, undertow.memory.forecast, undertow.memory.families; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
