"""T2I-Adapter against diffusers', with random weights: case C6 of the parity plan."""

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.conftest import EFFECT, T0, change, largest_difference
from tests.golden.controls import T2I_FORMS, author_tensors, t2i, t2i_hint, t2i_twin
from tests.golden.minis import MINIS, TIMESTEPS, conditioning_for, latents_for, pair, run_twin
from undertow.adapters.control.config import T2IConfig
from undertow.adapters.control.control_file import read_control
from undertow.adapters.control.residuals import scaled
from undertow.adapters.control.t2i import T2IAdapter
from undertow.unet.conditioning import Ports
from undertow.unet.config import UNetConfig

PLACES = {
    "full": ("running.2", "running.5", "running.8", "running.11"),
    "light": ("running.2", "running.5", "running.8", "running.11"),
    "xl": ("running.3", "running.5", "running.8", "middle"),
}
"""SD1: before each downsampler, and the last level's last. SDXL: behind the first downsampler, before the second, the
last level's last, behind the middle."""


@pytest.mark.parametrize(
    ("form", "size"), [("full", (16, 16)), ("full", (10, 12)), ("light", (16, 16)), ("xl", (16, 12))]
)
def test_features_and_their_injection_equal_diffusers(form, size):
    name = T2I_FORMS[form][0]
    unet, unet_twin = pair(name)
    network = t2i(form)
    assert network.points == PLACES[form]
    hint = t2i_hint(network, *size)
    ours = network(hint)
    theirs = t2i_twin(form, network)(hint)
    features = [one for one in (*ours.running, ours.middle) if one is not None]
    assert max(largest_difference(a, b) for a, b in zip(features, theirs, strict=True)) <= T0
    latents, given = latents_for(MINIS[name], *size), conditioning_for(MINIS[name])
    reference = run_twin(
        unet_twin,
        latents,
        TIMESTEPS,
        given,
        down_intrablock_additional_residuals=[0.8 * feature for feature in theirs],
    )
    gains = torch.full((2, len(network.points)), 0.8)
    controlled = unet(latents, TIMESTEPS, given, Ports(residuals=scaled(ours, gains)))
    assert largest_difference(controlled, reference) <= T0
    assert change(controlled, unet(latents, TIMESTEPS, given)) > EFFECT


@pytest.mark.parametrize(
    ("config", "unet", "parameters"),
    [
        (T2IConfig(), UNetConfig.sd15(), 77_369_280),
        (T2IConfig(kind="light", channels=(320, 640, 1280), resnets=4), UNetConfig.sd15(), 18_689_200),
        (T2IConfig(kind="xl", hint_factor=16), UNetConfig.sdxl(), 79_028_160),
    ],
)
def test_published_sizes(config, unet, parameters):
    with torch.device("meta"):
        network = T2IAdapter(config, unet)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("form", T2I_FORMS)
def test_every_format_is_read(form, tmp_path):
    """diffusers' folder, its names in a single file, the authors' names bare and wrapped, a pickle."""
    unet, network = pair(T2I_FORMS[form][0])[0], t2i(form)
    folder = tmp_path / "folder"
    t2i_twin(form, network).save_pretrained(folder)
    files = {
        "single": network.state_dict(),
        "authors": author_tensors(network),
        "wrapped": {f"adapter.{name}": tensor for name, tensor in author_tensors(network).items()},
    }
    sources = [folder]
    for name, tensors in files.items():
        sources.append(tmp_path / f"{name}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, sources[-1])
    sources.append(tmp_path / "t2iadapter_sketch.pth")
    torch.save(author_tensors(network), sources[-1])
    for source in sources:
        read = read_control(source, unet).network
        assert isinstance(read, T2IAdapter)
        assert read.config == network.config
        own = read.state_dict()
        assert all(torch.equal(own[key], tensor) for key, tensor in network.state_dict().items()), source
