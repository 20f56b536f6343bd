"""How weights lie in memory: as the maps do that they are multiplied with."""

import torch

from tests.services import fresh_service


def test_on_a_cpu_channels_are_last_in_the_u_net_and_first_in_the_autoencoder():
    service = fresh_service("sd1")
    unet, vae = service.unet.conv_in.weight, service.vae.decoder.conv_in.weight
    assert unet.is_contiguous(memory_format=torch.channels_last)
    assert vae.is_contiguous()
    assert not vae.is_contiguous(memory_format=torch.channels_last)
