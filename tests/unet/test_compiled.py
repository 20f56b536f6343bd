"""What compiling asks PyTorch for; tests/compile shows what comes of it."""

from dataclasses import replace

import pytest
import torch

from tests.golden.minis import MINIS, TIMESTEPS, build, conditioning_for, latents_for
from undertow.errors import InvalidInput
from undertow.unet.compiled import GRAPHS, CompiledUNet, Graphs
from undertow.unet.unet import UNet


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, object]]:
    """The settings of every call of `torch.compile`, which compiles nothing, and those at every run."""
    settings = []

    def compile_nothing(function, **options):
        def run(*inputs):
            limits = torch._dynamo.config
            settings.append(
                {
                    "limits": (limits.recompile_limit, limits.accumulated_recompile_limit),
                    "freezing": torch._inductor.config.freezing,
                }
            )
            return function(*inputs)

        settings.append(options)
        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return settings


def call(unet: UNet) -> torch.Tensor:
    return unet(latents_for(MINIS["MPIX"], 8, 8), TIMESTEPS, conditioning_for(MINIS["MPIX"]))


@torch.no_grad()
@pytest.mark.parametrize("freeze", [False, True])
def test_a_network_is_one_graph_of_fixed_sizes_with_room_for_many_more(asked, freeze):
    """PyTorch's own limit is 8 graphs, and the ninth size would be an error. Dynamo must know while it traces whether
    weights are constants."""
    unet = build(MINIS["MPIX"])
    plain = torch._dynamo.config.recompile_limit, torch._inductor.config.freezing
    assert torch.equal(call(CompiledUNet.of(unet, Graphs(freeze=freeze))), call(unet))
    assert asked == [
        {"fullgraph": True, "dynamic": False, "mode": None},
        {"limits": (GRAPHS, GRAPHS), "freezing": freeze},
    ]
    assert GRAPHS > 100
    now = torch._dynamo.config.recompile_limit, torch._inductor.config.freezing
    assert now == plain, "and nobody else's settings are touched"


@torch.no_grad()
@pytest.mark.parametrize(("mode", "own"), [("reduce-overhead", True), ("max-autotune-no-cudagraphs", False)])
def test_what_a_recorded_graph_gives_is_copied_before_the_next_replay_writes_there(monkeypatch, mode, own):
    """CUDA graphs write every result where the one before is; here a function does."""
    kept, steps = [], []

    def compile_into_one_place(function, **settings):
        assert settings["mode"] == mode

        def run(*inputs):
            output = function(*inputs)
            kept.append(kept[0] if kept else output.prediction)
            kept[0].copy_(output.prediction)
            return replace(output, prediction=kept[0])

        return run

    monkeypatch.setattr(torch, "compile", compile_into_one_place)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    unet = build(MINIS["MPIX"])
    compiled = CompiledUNet.of(unet, Graphs(mode=mode))
    first = call(compiled)
    before = first.clone()
    compiled(1 + latents_for(MINIS["MPIX"], 8, 8), TIMESTEPS, conditioning_for(MINIS["MPIX"]))
    assert torch.equal(first, before) == own
    assert len(steps) == (2 if own else 0)


@torch.no_grad()
def test_observations_are_computed_in_graphs_too(asked):
    unet, site = build(MINIS["MPIX"]), "mid_block.attentions.0"
    inputs = latents_for(MINIS["MPIX"], 8, 8), TIMESTEPS, conditioning_for(MINIS["MPIX"])
    output = CompiledUNet.of(unet)(*inputs, observed=(site,))
    assert len(asked) == 2
    assert torch.equal(output.observations[site], unet(*inputs, observed=(site,)).observations[site])


def test_a_compiled_network_shares_its_layers_and_is_a_network_of_its_own(asked):
    unet = build(MINIS["MPIX"]).requires_grad_(False)
    unet.gradient_checkpointing = True
    compiled = CompiledUNet.of(unet)
    assert [name for name, _ in compiled.named_children()] == [name for name, _ in unet.named_children()]
    assert all(one is other for one, other in zip(compiled.parameters(), unet.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert (compiled.config, compiled.kernel) == (unet.config, unet.kernel)
    assert (compiled.training, compiled.gradient_checkpointing) == (False, True)
    call(unet)
    assert not asked, "the first network still runs as it did"


def test_the_checks_stay_outside(asked):
    with pytest.raises(InvalidInput, match="class_labels"):
        CompiledUNet.of(build(MINIS["MPIX"]))(latents_for(MINIS["MPIX"], 8, 8), TIMESTEPS)
    assert not asked


def test_frozen_weights_have_no_gradients(asked):
    with pytest.raises(InvalidInput, match="frozen weights have no gradients"):
        call(CompiledUNet.of(build(MINIS["MPIX"]), Graphs(freeze=True)))
