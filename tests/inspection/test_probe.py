"""Probes observe and replace what flows in a U-Net, row by row, and leave nothing behind."""

import pytest
import torch

from undertow import GenerationRequest, InvalidInput
from undertow.engine.engine import Engine
from undertow.inspection.probe import ModuleProbe

REQUEST = GenerationRequest(prompt="red apple", steps=2, seed=3)
OTHER = GenerationRequest(prompt="green tree", steps=2, seed=4)


@pytest.fixture
def probed(service):
    """Adds probes to the engine for one test."""
    yield service.engine.probes
    service.engine.probes.clear()


def test_observing_changes_no_bit_and_names_every_row(service, probed):
    plain = service.run(REQUEST).latents
    seen = []
    probed.append(ModuleProbe(patterns=("mid_block",), probe=lambda site, x: seen.append((site, x.shape[0]))))
    assert torch.equal(service.run(REQUEST).latents, plain)
    assert {(site.origin.step, site.origin.branch) for site, _ in seen} == {
        (step, branch) for step in range(2) for branch in ("cond", "uncond")
    }
    assert {(site.module, site.kind, site.side, rows) for site, rows in seen} == {
        ("mid_block", "MiddleStage", "output", 1)
    }


def test_nothing_is_left_in_the_network(service, probed):
    probed.append(ModuleProbe(patterns=("*",), probe=lambda site, x: None))
    service.run(REQUEST)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in service.unet.modules())


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_replacement_acts_in_its_row_alone(service, probed, side):
    pair = [REQUEST, OTHER]
    plain = [result.latents for result in service.generate_many(pair)]
    first = service.engine._submitted
    probed.append(
        ModuleProbe(
            patterns=("mid_block",),
            side=side,
            probe=lambda site, x: torch.zeros_like(x),
            rows=lambda origin: origin.request == first,
        )
    )
    changed = [handle.result().latents for handle in service.engine.submit_together(pair, numbers=(first, first + 1))]
    assert not torch.equal(changed[0], plain[0])
    assert torch.equal(changed[1], plain[1])


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_are_near(service, probed):
    probed.append(ModuleProbe(patterns=("mid_blok",), probe=lambda site, x: None))
    with pytest.raises(InvalidInput, match="mid_block"):
        service.run(REQUEST)


def test_a_replacement_of_another_shape_is_refused(service, probed):
    probed.append(ModuleProbe(patterns=("mid_block",), probe=lambda site, x: x[:, :1]))
    with pytest.raises(InvalidInput, match="as it received"):
        service.run(REQUEST)


def test_a_replacement_that_is_no_tensor_is_refused(service, probed):
    probed.append(ModuleProbe(patterns=("mid_block",), probe=lambda site, x: 3))
    with pytest.raises(InvalidInput, match="mid_block is 3, expected None, or a tensor"):
        service.run(REQUEST)


def test_a_runner_of_graphs_gives_way_to_probes_alone(service):
    class Graphs:
        capabilities = type(service.runner.capabilities)(observable=False, fixed_shapes=True, slots=True, merging=True)
        runs = 0

        def run(self, network, *inputs):
            Graphs.runs += 1
            return network(*inputs)

    engine = Engine(service.model, adapters=service.adapters, runner=Graphs())
    engine.probes.append(ModuleProbe(patterns=("mid_block",), probe=lambda site, x: None, rows=lambda o: o.step == 1))
    engine.submit(REQUEST).result()
    assert Graphs.runs == 1, "of two steps one is looked into"
