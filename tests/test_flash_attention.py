"""Which attention kernel runs is the caller's choice, and changes predictions by rounding alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import undertow
from tests.golden.minis import M15, M21, TIMESTEPS, build, conditioning_for, latents_for
from tests.golden.pipelines import save_pipeline
from undertow.adapters.control.control_file import read_control, write_control
from undertow.adapters.control.controlnet import ControlNet
from undertow.attention.catalogue import KERNELS
from undertow.attention.math import math_attention
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.cli import main
from undertow.errors import InvalidInput
from undertow.nn.attention import AttentionProjections

FLOAT32_ROUNDING = 1e-5
"""Sums in another order, of numbers near 1, through some layers."""

ONE_LEVEL = 1
"""Of 255: rounding may fall on either side."""

VAE_HEADS = 1
"""The VAE's attention, which plans its own memory, has one head; the U-Nets here have more."""


@pytest.fixture
def ran(monkeypatch):
    """How often each kernel ran for a U-Net."""
    counts = Counter()

    def counting(entry):
        def kernel(query, key, value, mask=None):
            if query.shape[1] > VAE_HEADS:
                counts[entry.name] += 1
            return entry.kernel(query, key, value, mask)

        return replace(entry, kernel=kernel)

    for name, entry in list(KERNELS.items()):
        monkeypatch.setitem(KERNELS, name, counting(entry))
    return counts


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_pipeline("sd1", tmp_path_factory.mktemp("flash") / "pipeline")


@pytest.mark.parametrize("name", ["math", "sdpa", "chunked"])
@torch.no_grad()
def test_load_unet_runs_the_kernel_that_is_named(name, tmp_path, ran):
    unet, latents, given = build(M15), latents_for(M15), conditioning_for(M15)
    save_unet(unet, tmp_path)
    expected = unet(latents, TIMESTEPS, given)
    ran.clear()
    prediction = undertow.load_unet(tmp_path, attention=name)(latents, TIMESTEPS, given)
    assert set(ran) == {name}
    assert (prediction - expected).abs().max() < FLOAT32_ROUNDING


def test_a_kernel_that_is_unknown_or_not_for_the_model_is_refused(tmp_path):
    """Stable Diffusion 2 needs scores in float32, which the chunked kernel does not keep."""
    save_unet(build(M21), tmp_path)
    with pytest.raises(InvalidInput, match="one of auto, speed, memory, balanced, math, sdpa, chunked"):
        undertow.load_unet(tmp_path, attention="flash3")
    with pytest.raises(InvalidInput, match="scores in float32"):
        undertow.load_unet(tmp_path, attention="chunked")


def test_a_controlnet_runs_the_kernel_of_its_unet(pipeline, tmp_path):
    unet = undertow.load(pipeline, attention="math").unet
    network = read_control(write_control(ControlNet.from_unet(unet), tmp_path / "control"), unet).network
    (kernel,) = {module.kernel for module in network.modules() if isinstance(module, AttentionProjections)}
    assert kernel is math_attention


def test_generate_runs_the_kernel_that_is_asked_for_and_draws_the_same(pipeline, tmp_path, ran):
    pictures = {}
    for option, kernel in ((None, "sdpa"), ("--flash-attention", "sdpa"), ("--no-flash-attention", "math")):
        ran.clear()
        line = ["generate", "red apple", "--model", pipeline, "--steps", "2", "--seed", "0", "--no-show", "--overwrite"]
        line += ["--out", tmp_path / "a.png"]
        assert main([*map(str, line), *([option] if option else [])]) == 0
        assert set(ran) == {kernel}
        pictures[option] = np.asarray(Image.open(tmp_path / "a.png"), dtype=int)
    assert np.array_equal(pictures[None], pictures["--flash-attention"])
    assert np.abs(pictures[None] - pictures["--no-flash-attention"]).max() <= ONE_LEVEL
    assert pictures[None].std() > 10 * ONE_LEVEL, "a flat picture would show nothing"
