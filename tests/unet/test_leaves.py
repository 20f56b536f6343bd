"""Names of layers that are known from a config, beside those of the network that is built from it."""

import pytest
import torch

from undertow.adapters.lora.targets import Targets
from undertow.unet.config import UNetConfig
from undertow.unet.leaves import layers_with_weights
from undertow.unet.unet import UNet

PUBLISHED = ("sd15", "sd21", "sdxl", "sdxl_refiner", "ssd_1b", "lcm_sd15", "instruct_pix2pix", "cifar10")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layer_with_weights_is_named(name):
    config = getattr(UNetConfig, name)()
    with torch.device("meta"):
        built = Targets.of(UNet(config)).layers["unet"]
    assert set(layers_with_weights(config)) == set(built)
    assert len(layers_with_weights(config)) == len(built)
