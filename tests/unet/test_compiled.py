"""What compiling asks PyTorch for; tests/compile shows what comes of it."""

import pytest
import torch

from tests.golden.minis import MINIS, TIMESTEPS, build, conditioning_for, latents_for
from undertow.unet.compiled import GRAPHS, compile_unet


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, object]]:
    """The settings of every call of `torch.compile`, which compiles nothing."""
    settings = []

    def compile_nothing(function, **options):
        def run(*inputs, **named):
            limits = torch._dynamo.config
            settings.append({"limits": (limits.recompile_limit, limits.accumulated_recompile_limit)})
            return function(*inputs, **named)

        settings.append(options)
        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return settings


@pytest.mark.parametrize(
    ("freeze", "options"), [({}, None), ({"freeze": False}, None), ({"freeze": True}, {"freezing": True})]
)
def test_a_network_is_one_graph_of_fixed_sizes(asked, freeze, options):
    unet = build(MINIS["MUNC"])
    assert compile_unet(unet, **freeze) is unet
    assert asked == [{"fullgraph": True, "dynamic": False, "options": options}]


@torch.no_grad()
def test_a_compiled_network_may_have_a_graph_for_every_size(asked):
    """PyTorch's own limit is 8 graphs, and the ninth size would be an error."""
    unet, latents = compile_unet(build(MINIS["MPIX"])), latents_for(MINIS["MPIX"], 8, 8)
    plain = torch._dynamo.config.recompile_limit
    asked.clear()
    unet(latents, TIMESTEPS, conditioning_for(MINIS["MPIX"]))
    assert asked == [{"limits": (GRAPHS, GRAPHS)}]
    assert GRAPHS > 100
    assert torch._dynamo.config.recompile_limit == plain, "and nobody else's limit is touched"
