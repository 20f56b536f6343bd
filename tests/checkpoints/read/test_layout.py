"""How weights lie in memory: as the maps do that they are multiplied with."""

import pytest
import torch

import undertow
from tests.services import fresh_service, pipeline_folder
from undertow.nn import memory_order
from undertow.nn.memory_order import order_of

CPU = torch.device("cpu")


def test_on_a_cpu_channels_are_last_in_the_u_net_and_first_in_the_autoencoder():
    service = fresh_service("sd1")
    unet, vae = service.unet.conv_in.weight, service.vae.decoder.conv_in.weight
    assert unet.is_contiguous(memory_format=torch.channels_last)
    assert vae.is_contiguous()
    assert not vae.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "device", "bfloat16", "amx", "last"),
    [
        (torch.bfloat16, "cpu", True, False, True),
        (torch.bfloat16, "cpu", True, True, False),
        (torch.bfloat16, "cpu", False, False, False),
        (torch.bfloat16, "cuda", True, False, False),
        (torch.float32, "cpu", True, False, False),
        (torch.float16, "cpu", True, False, False),
    ],
)
def test_maps_of_autoencoders_have_channels_last_where_bfloat16_is_multiplied_without_tiles(
    monkeypatch, dtype, device, bfloat16, amx, last
):
    monkeypatch.setattr(memory_order, "has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(memory_order, "has_amx", lambda: amx)
    assert (order_of(dtype, torch.device(device)) == torch.channels_last) == last


@pytest.mark.skipif(order_of(torch.bfloat16, CPU) != torch.channels_last, reason="not on this processor")
def test_weights_of_an_autoencoder_lie_as_its_maps():
    vae = undertow.load(pipeline_folder("sd1"), dtype=torch.bfloat16).vae
    assert vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
