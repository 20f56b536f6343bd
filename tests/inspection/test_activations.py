"""Activations over the steps: what layers return, what skip connections bring, and the film."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch

from undertow.inspection.probe import ModuleProbe

SETTINGS = {"steps": 3, "seed": 3}


@pytest.fixture(scope="module")
def history(service):
    return service.visualize_activations("red cat", **SETTINGS)


def test_statistics_are_those_of_what_layers_return(service, history):
    seen = defaultdict(list)

    def see(site, x):
        if site.origin.branch == "cond":
            seen[site.module, site.side].append(x)

    probes = [
        ModuleProbe(patterns=("mid_block.resnets.0",), probe=see),
        ModuleProbe(patterns=("up_blocks.0.resnets.0",), probe=see, side="input"),
    ]
    service.engine.probes[:] = probes
    try:
        plain = service.generate("red cat", **SETTINGS)
    finally:
        service.engine.probes.clear()
    assert torch.equal(plain.latents, history.result.latents), "no bit changes"
    outputs, inputs = seen["mid_block.resnets.0", "output"], seen["up_blocks.0.resnets.0", "input"]
    row = history.layers.index("mid_block.resnets.0")
    assert history.std[row] == pytest.approx([float(one.std(correction=0)) for one in outputs], rel=1e-5)
    assert history.largest[row] == pytest.approx([float(one.abs().max()) for one in outputs])
    assert history.headroom[row] == pytest.approx([65504 / float(one.abs().max()) for one in outputs])
    skip = service.unet.config.skip_shapes(1, 1)[-1][0]
    energies = [one.square().mean((0, 2, 3)) for one in inputs]
    shares = [float(one[-skip:].mean() / (one[-skip:].mean() + one[:-skip].mean())) for one in energies]
    assert history.skip_share[history.joins.index("up_blocks.0.resnets.0")] == pytest.approx(shares, rel=1e-5)


def test_every_layer_has_a_number_at_every_step(service, history):
    assert history.layers == tuple(service.unet.config.layer_names())
    assert np.isfinite(history.std).all()
    assert history.std.shape == (len(history.layers), 3)


def test_the_film_ends_in_the_picture(service, history):
    assert list(history.frames) == [0, 1, 2]
    from undertow.vae.latent_values import latents_as_picture

    last = latents_as_picture(service.vae.config.latent_space, history.result.latents)[0].numpy()
    assert np.array_equal(np.asarray(history.frames[2][1]), last)


def test_what_is_saved_can_be_read(history, tmp_path):
    strips, film, numbers = history.save(tmp_path)
    assert (strips.name, film.name, numbers.name) == ("activations.png", "activations-film.png", "activations.json")
    read = json.loads(numbers.read_text())
    assert read["layers"]["conv_in"]["std"] == pytest.approx(list(history.std[history.layers.index("conv_in")]))
    assert history.film().width > history.film().height
