"""ControlNet against diffusers', with random weights: cases C1 to C5 of the parity plan."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from tests.golden.conftest import EFFECT, T0, change, largest_difference
from tests.golden.controls import (
    HINT_CHANNELS,
    controlnet,
    hint_for,
    largest_of_all,
    ldm_name,
    ldm_tensors,
    run_control_twin,
    twin_of,
)
from tests.golden.minis import MINIS, TIMESTEPS, conditioning_for, latents_for, pair, run_twin
from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.control.control_file import read_control, write_control
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.residuals import pooled, residual_gains, scaled
from undertow.unet.conditioning import Ports, Residuals
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig

T1 = 2e-5
"""Where the arithmetic differs from the reference's: products added to weights in another order."""


@pytest.mark.parametrize(("name", "size"), [("M15", (16, 16)), ("M21", (9, 13)), ("MXL", (16, 12)), ("MRF", (9, 9))])
def test_residuals_equal_diffusers(name, size):
    """C1. Every residual of random zero convolutions."""
    network = controlnet(name)
    latents, given, hint = latents_for(MINIS[name], *size), conditioning_for(MINIS[name]), hint_for(*size)
    embedded = network.embed_hint(hint)
    ours = network(latents, TIMESTEPS, given, embedded)
    reference = run_control_twin(twin_of(name, network), latents, given, hint)
    assert len(ours.skips) == len(MINIS[name].config.skip_shapes(*size)) == len(network.points) - 1
    assert largest_of_all(ours, reference) <= T0
    silent = network(latents, TIMESTEPS, given, torch.zeros_like(embedded))
    assert change(ours.middle, silent.middle) > EFFECT


@pytest.mark.parametrize("name", ["M15", "MXL"])
def test_scaled_control_of_the_unet_equals_diffusers(name):
    """C1: one scale, and one for each residual; C3: two networks added up."""
    unet, unet_twin = pair(name)
    latents, given, hint = latents_for(MINIS[name]), conditioning_for(MINIS[name]), hint_for()
    networks = [controlnet(name, seed=seed) for seed in (20, 21)]
    count = len(networks[0].points)
    scales = [(0.8,) * count, tuple(0.1 * index for index in range(count))]
    theirs = [run_control_twin(twin_of(name, net), latents, given, hint) for net in networks]
    both = [
        sum(scale * one for (scale, one) in pairs)
        for pairs in (
            [(scales[net][point], (*theirs[net].skips, theirs[net].middle)[point]) for net in (0, 1)]
            for point in range(count)
        )
    ]
    reference = run_twin(
        unet_twin,
        latents,
        TIMESTEPS,
        given,
        down_block_additional_residuals=both[:-1],
        mid_block_additional_residual=both[-1],
    )
    parts = [
        scaled(
            network(latents, TIMESTEPS, given, network.embed_hint(hint)),
            torch.tensor([residual_gains(count, scale)]).expand(2, -1),
        )
        for network, scale in zip(networks, scales, strict=True)
    ]
    both = Residuals(
        skips=tuple(map(torch.add, *(part.skips for part in parts))), middle=parts[0].middle + parts[1].middle
    )
    ours = unet(latents, TIMESTEPS, given, Ports(residuals=both))
    base = unet(latents, TIMESTEPS, given)
    assert largest_difference(ours, reference) <= T0
    assert change(ours, base) > EFFECT
    nothing = scaled(parts[0], torch.zeros(2, count))
    assert torch.equal(unet(latents, TIMESTEPS, given, Ports(residuals=nothing)), base)


@pytest.mark.parametrize(("name", "count"), [("M15", 13), ("MXL", 10)])
def test_guess_mode_and_global_pooling_equal_diffusers(name, count):
    """C3."""
    network = controlnet(name)
    twin = twin_of(name, network)
    latents, given, hint = latents_for(MINIS[name]), conditioning_for(MINIS[name]), hint_for()
    found = network(latents, TIMESTEPS, given, network.embed_hint(hint))
    gains = torch.tensor([residual_gains(count, 0.7, "control")]).expand(2, -1)
    guessed = run_control_twin(twin, latents, given, hint, scale=0.7, guess_mode=True)
    assert largest_of_all(scaled(found, gains), guessed) <= T0
    twin.register_to_config(global_pool_conditions=True)
    flat = torch.tensor([residual_gains(count, 0.7, "control", global_pool=True)]).expand(2, -1)
    reference = run_control_twin(twin, latents, given, hint, scale=0.7, guess_mode=True)
    assert largest_of_all(pooled(scaled(found, flat)), reference) <= T0


def test_a_hint_with_blue_first_equals_diffusers():
    network = controlnet("M15")
    turned = ControlNet(replace(network.config, bgr=True)).eval()
    turned.load_state_dict(network.state_dict())
    twin = twin_of("M15", network, controlnet_conditioning_channel_order="bgr")
    latents, given, hint = latents_for(MINIS["M15"]), conditioning_for(MINIS["M15"]), hint_for()
    ours = turned(latents, TIMESTEPS, given, turned.embed_hint(hint))
    assert largest_of_all(ours, run_control_twin(twin, latents, given, hint)) <= T0
    assert not torch.equal(turned.embed_hint(hint), network.embed_hint(hint))


@pytest.mark.parametrize("name", ["M15", "MXL", "M9", "MLCM"])
def test_a_copy_of_the_unet_changes_nothing_and_copies_its_encoder(name):
    unet, unet_twin = pair(name)
    network = ControlNet.from_unet(unet, HINT_CHANNELS)
    silent = network(latents_for(MINIS[name]), TIMESTEPS, conditioning_for(MINIS[name]), network.embed_hint(hint_for()))
    assert not any(skip.any() for skip in (*silent.skips, silent.middle))
    theirs = ControlNetModel.from_unet(build_plain(unet_twin), conditioning_embedding_out_channels=HINT_CHANNELS)
    own, reference = network.state_dict(), theirs.state_dict()
    assert own.keys() == reference.keys()
    copied = [key for key in own if not key.startswith("controlnet_")]
    assert all(torch.equal(own[key], reference[key]) for key in copied)
    assert all(own[key].data_ptr() != tensor.data_ptr() for key, tensor in unet.state_dict().items() if key in own)
    zeros = [key for key in own if key.startswith("controlnet_") and not own[key].any()]
    assert len(zeros) == 2 * (len(silent.skips) + 2)


def build_plain(twin):
    """diffusers copies a guidance projection to nowhere and fails; ControlNets take no guidance in either."""
    if twin.config.time_cond_proj_dim is not None:
        twin = type(twin).from_config({**twin.config, "time_cond_proj_dim": None})
        twin.load_state_dict({k: v for k, v in pair("MLCM")[0].state_dict().items() if "cond_proj" not in k})
    return twin


@pytest.mark.parametrize("name", ["M15", "MXL", "M9"])
def test_a_written_folder_is_read_by_diffusers_and_by_us(name, tmp_path):
    network = controlnet(name)
    folder = write_control(network, tmp_path / "canny")
    theirs = ControlNetModel.from_pretrained(folder).state_dict()
    read = read_control(folder, pair(name)[0])
    assert read.network.config == network.config
    ours = read.network.state_dict()
    for key, tensor in network.state_dict().items():
        assert torch.equal(theirs[key].float(), tensor.half().float())
        assert torch.equal(ours[key], tensor.half().float())


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("name", ["M15", "MXL"])
def test_single_files_in_the_authors_names_equal_what_diffusers_reads(name, prefix, tmp_path):
    """C2."""
    network = controlnet(name)
    tensors = ldm_tensors(network, prefix)
    path = tmp_path / "control_canny.safetensors"
    save_file(tensors, path)
    read = read_control(path, pair(name)[0])
    assert read.network.config == network.config
    own = read.network.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in network.state_dict().items())
    if name == "M15":  # diffusers knows no names of the authors for SDXL's added embedding
        folder = write_control(network, tmp_path / "config")
        theirs = ControlNetModel.from_single_file(str(path), config=str(folder), local_files_only=True).state_dict()
        assert all(torch.equal(own[key], theirs[key]) for key in own)


SDXL = UNetConfig.sdxl()
COUNTS = {
    "sd15": (UNetConfig.sd15(), 361_279_120),
    "sd21": (UNetConfig.sd21(), 364_228_240),
    "sdxl": (SDXL, 1_251_014_160),
    "sdxl-mid": (
        replace(
            SDXL,
            levels=(*(Level(channels=c) for c in (320, 640)), Level(channels=1280, attention=CrossAttention(heads=20))),
            middle=Middle(attention=CrossAttention(heads=20, depth=1)),
        ),
        270_942_480,
    ),
    "sdxl-small": (
        replace(
            SDXL,
            levels=tuple(Level(channels=c) for c in (320, 640, 1280)),
            middle=Middle(attention=CrossAttention(heads=20, depth=0)),
        ),
        160_111_120,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    """C4, without memory."""
    config, parameters = COUNTS[name]
    with torch.device("meta"):
        network = ControlNet(ControlNetConfig(unet=config))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("name", ["M15", "MXL"])
def test_control_lora_equals_the_merged_network(name, tmp_path):
    """C5, with the biases that diffusers leaves out: the reference is diffusers' network with weights merged here."""
    unet, target = pair(name)[0], controlnet(name)
    generator = torch.Generator().manual_seed(40)
    base, merged, file = unet.state_dict(), dict(target.state_dict()), {"lora_controlnet": torch.zeros(0)}
    for key, tensor in target.state_dict().items():
        foreign = ldm_name(key, target.config.unet)
        if key.startswith("controlnet_") or tensor.ndim == 1:
            file[foreign] = tensor.clone()
            continue
        up = 0.5 * torch.randn(tensor.shape[0], 4, generator=generator)
        down = 0.5 * tensor[0].numel() ** -0.5 * torch.randn(4, *tensor.shape[1:], generator=generator)
        file[foreign.removesuffix("weight") + "up"] = up[:, :, None, None] if tensor.ndim == 4 else up
        file[foreign.removesuffix("weight") + "down"] = down
        merged[key] = base[key] + (up @ down.flatten(1)).reshape(tensor.shape)
    path = tmp_path / "control-lora-canny.safetensors"
    save_file(file, path)
    read = read_control(path, unet).network
    target.load_state_dict(merged)
    latents, given, hint = latents_for(MINIS[name]), conditioning_for(MINIS[name]), hint_for()
    ours = read(latents, TIMESTEPS, given, read.embed_hint(hint))
    assert largest_of_all(ours, run_control_twin(twin_of(name, target), latents, given, hint)) <= T1
    without = {**base, **{key: value for key, value in merged.items() if key.startswith("controlnet_")}}
    target.load_state_dict({key: without[key] for key in merged})
    plain: Residuals = target(latents, TIMESTEPS, given, target.embed_hint(hint))
    assert change(ours.middle, plain.middle) > EFFECT
