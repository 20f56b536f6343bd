"""OpenVINO computes what the network does; what it has no inputs for, the network computes."""

import logging

import pytest
import torch

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.compile.test_unet_compile import CLASSES, SMALL_TEXT, TINY, TINY_TEXT
from tests.golden.minis import Mini, build, conditioning_for, latents_for
from tests.services import fresh_service
from undertow import Adapter, AdapterCapacity, InvalidInput, UNetService
from undertow.unet.conditioning import Ports, Residuals
from undertow.unet.openvino import OpenVINONetworks
from undertow.unet.runner import OpenVINORunner
from undertow.unet.unet import UNet

TOLERANCE = 1e-4
"""float32, whose products another library sums up."""

TIMESTEPS = torch.tensor([3.0, 871.5])


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    return bool((found - expected).abs().max() <= tolerance * max(1, expected.abs().max()))


@pytest.fixture(scope="module")
def networks() -> OpenVINONetworks:
    return OpenVINONetworks()


@torch.inference_mode()
@pytest.mark.parametrize("mini", [TINY_TEXT, CLASSES], ids=["sdxl", "classes"])
def test_it_predicts_what_the_network_does(networks, caplog, mini: Mini):
    unet = build(mini).requires_grad_(False)
    for seed, side in ((0, 8), (1, 8), *[(2, 12)] * (mini is CLASSES)):
        inputs = latents_for(mini, side, side, seed=seed), TIMESTEPS, conditioning_for(mini, seed=seed), Ports()
        assert near(networks.predict(unet, *inputs).prediction, unet.predict(*inputs).prediction)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], (
        "nothing that users would see"
    )


@torch.inference_mode()
def test_bfloat16_is_computed_in_bfloat16(networks):
    unet = build(SMALL_TEXT).requires_grad_(False)
    inputs = latents_for(SMALL_TEXT, 8, 8), TIMESTEPS, conditioning_for(SMALL_TEXT), Ports()
    expected = unet.predict(*inputs).prediction
    half = unet.to(torch.bfloat16)
    found = networks.predict(half, inputs[0].bfloat16(), TIMESTEPS, inputs[2].to(dtype=torch.bfloat16), Ports())
    assert found.prediction.dtype == torch.bfloat16
    assert near(found.prediction.float(), expected, tolerance=0.1)
    assert not near(found.prediction.float(), expected)


@torch.inference_mode()
def test_ports_act(networks, monkeypatch):
    """By the network itself."""
    unet = build(SMALL_TEXT).requires_grad_(False)
    inputs = latents_for(SMALL_TEXT, 8, 8), TIMESTEPS, conditioning_for(SMALL_TEXT)
    plain = networks.predict(unet, *inputs, Ports()).prediction
    ports = Ports(residuals=Residuals(middle=torch.ones(2, 8, 4, 4)))
    found = networks.predict(unet, *inputs, ports).prediction
    assert torch.equal(found, unet.predict(*inputs, ports).prediction)
    assert not near(found, plain)


@torch.inference_mode()
def test_only_a_cpu(networks):
    with torch.device("meta"):
        unet = UNet(TINY.config)
    inputs = latents_for(TINY, 8, 8), TIMESTEPS, conditioning_for(TINY), Ports()
    with pytest.raises(InvalidInput, match="device is meta, expected cpu with backend='openvino'"):
        networks.predict(unet, *inputs)


def test_a_service_draws_with_it_and_with_lora_in_slots_and_merged(tmp_path):
    plain = fresh_service("sd1")
    layers = {name: shape for name, shape in layers_of(plain.unet).items() if is_attention(name)}
    lora = write(tmp_path / "lora.safetensors", kohya(layers, rank=2))
    capacity = AdapterCapacity(slots=2, rank=4)
    service = UNetService(plain.model, adapter_capacity=capacity, runner=OpenVINORunner())
    settings = {"seed": 3, "steps": 2, "guidance_scale": 1.0, "size": 32}
    for adapters in ((), (Adapter(lora),), (Adapter(lora, residency="merged"),), ()):
        found = service.generate("a", adapters=adapters, **settings).latents
        expected = plain.generate("a", adapters=adapters, **settings).latents
        assert near(found, expected, tolerance=1e-3)
