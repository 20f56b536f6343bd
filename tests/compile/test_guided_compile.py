"""Guidance inside a compiled U-Net: a graph for each set of perturbed layers, and none for values.

Run without type checks, which the compiler cannot trace: pytest -o addopts= tests/compile
"""

import math
from dataclasses import replace

import pytest
import torch

from tests.compile.test_unet_compile import SMALL_TEXT, TINY, TINY_TEXT, Counter
from tests.golden.minis import Mini, build, conditioning_for, latents_for
from undertow.diffusion.guidance import Perturbation
from undertow.unet.conditioning import Ports
from undertow.unet.free_u import FreeU
from undertow.unet.free_u_factors import free_u_factors
from undertow.unet.perturbation import perturbed_rows
from undertow.unet.self_attentions import first_self_attention

TOLERANCE = 1e-5
"""float32; the traced graph runs the same operations."""

LAYERS = {"text": ("mid_block", "up_blocks.0"), "pixels": ("down_blocks.1",)}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _ports(mini: Mini, *, identity: bool | None, blur: float | None, free_u: FreeU | None) -> Ports:
    """Two rows: a perturbation whose value may be that it does nothing, and factors."""
    layers = LAYERS["text" if mini.config.context_dim else "pixels"]
    given = [
        None if identity is None else Perturbation(kind="identity", layers=layers),
        None if blur is None else Perturbation(kind="blurred", layers=layers, sigma=blur),
    ]
    rows = perturbed_rows(mini.config, given)
    if identity is False and rows is not None:
        rows = {name: replace(change, identity=change.identity & False) for name, change in rows.items()}
    return Ports(self_attention=rows, free_u=None if free_u is None else free_u_factors(mini.config, [free_u, None]))


@pytest.mark.parametrize("mini", [TINY_TEXT, TINY], ids=["text", "pixels"])
@torch.no_grad()
def test_values_of_perturbations_and_factors_never_recompile(mini):
    counter, unet = Counter(), build(mini)
    compiled = torch.compile(unet.predict, fullgraph=True, dynamic=False, backend=counter)
    call = latents_for(mini, 8, 8), torch.tensor([3.0, 871.5]), conditioning_for(mini)
    free = FreeU(keyed="index")
    compiled(*call, _ports(mini, identity=True, blur=1.0, free_u=free))
    outputs = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for identity, blur, b1, version in ((True, 0.7, 1.2, 1), (False, math.inf, 0.8, 2), (True, 20.0, 1.6, 2)):
            ports = _ports(mini, identity=identity, blur=blur, free_u=replace(free, b1=b1, version=version))
            output = compiled(*call, ports).prediction
            assert (output - unet(*call, ports)).abs().max() <= TOLERANCE * max(1, output.abs().max())
            outputs.append(output)
    assert counter.graphs == 1
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


@pytest.mark.slow
@torch.no_grad()
def test_graphs_are_enumerated():
    """One for each of: nothing, identity, blur, both, each with and without FreeU; what is absent is not in it."""
    mini, sizes, counter = SMALL_TEXT, [], Counter()

    def count(module, inputs):
        sizes.append(len(module.graph.nodes))
        return counter(module, inputs)

    unet = build(mini)
    compiled = torch.compile(unet.predict, fullgraph=True, dynamic=False, backend=count)
    call = latents_for(mini, 8, 8), torch.tensor([3.0, 871.5]), conditioning_for(mini)
    kinds = [
        {"identity": identity, "blur": blur, "free_u": free_u}
        for free_u in (None, FreeU(keyed="index"))
        for identity, blur in ((None, None), (True, None), (None, 1.0), (True, 1.0))
    ]
    for _ in range(2):
        for kind in kinds:
            compiled(*call, _ports(mini, **kind))
        assert counter.graphs == len(kinds) == 8
    assert sizes[0] == min(sizes)
    assert sizes[-1] == max(sizes)
    assert len(set(sizes)) == len(kinds)


@torch.no_grad()
def test_observations_compile():
    """A graph for those who ask for a map; the prediction is that of the others."""
    counter, unet = Counter(), build(SMALL_TEXT)
    compiled = torch.compile(unet.predict, fullgraph=True, dynamic=False, backend=counter)
    site = first_self_attention(SMALL_TEXT.config, "mid_block")
    for seed in (0, 1):
        call = latents_for(SMALL_TEXT, 8, 8, seed=seed), torch.tensor([3.0, 871.5]), conditioning_for(SMALL_TEXT)
        output, expected = compiled(*call, Ports(), (site,)), unet(*call, observed=(site,))
        assert (output.prediction - unet(*call)).abs().max() <= TOLERANCE
        assert (output.observations[site] - expected.observations[site]).abs().max() <= TOLERANCE
    assert counter.graphs == 1


@torch.no_grad()
def test_aot_autograd_accepts_the_graphs():
    """The compiler's second stage decomposes every operation of the blur and of FreeU."""
    unet = build(SMALL_TEXT)
    call = latents_for(SMALL_TEXT, 8, 8), torch.tensor([3.0, 871.5]), conditioning_for(SMALL_TEXT)
    ports = _ports(SMALL_TEXT, identity=True, blur=1.3, free_u=FreeU(keyed="index", version=2))
    output = torch.compile(unet.predict, fullgraph=True, backend="aot_eager")(*call, ports).prediction
    assert (output - unet(*call, ports)).abs().max() <= TOLERANCE
