"""Quantized layers in a compiled graph: one graph, whatever the values, and the predictions of eager layers.

Run without type checks, which the compiler cannot trace: pytest -o addopts= tests/compile
"""

import pytest
import torch

from tests.compile.test_unet_compile import SMALL_TEXT, TOLERANCE, Counter, _calls, _refill, _with_slots
from tests.golden.minis import build
from undertow.nn.adaptable import Linear, WeightRows
from undertow.nn.quantized import quantize_layers, quantized_layers
from undertow.unet.conditioning import Ports

SCHEMES = ("int8-weights", "int8-dynamic")

ROUNDING = 1e-3
"""Of predictions near 1 by other kernels: a number that stands between two integers may become the other one."""


def quantized_unet(scheme):
    unet = build(SMALL_TEXT)
    layers = [name for name, module in unet.named_modules() if isinstance(module, Linear)]
    quantize_layers(unet, dict.fromkeys(layers, scheme))
    assert len(quantized_layers(unet)) > 10
    return unet


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_one_graph_whatever_the_values_and_what_lies_in_slots(scheme):
    torch._dynamo.reset()
    counter, unet = Counter(), quantized_unet(scheme)
    plain = build(SMALL_TEXT)
    buffers = _with_slots(unet)
    compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend=counter)
    ports = [Ports(weights=WeightRows(slots=torch.tensor([[0, 2], [1, 0]]), gains=torch.randn(2, 2))) for _ in range(3)]
    compiled(*_calls(SMALL_TEXT)[0], ports=ports[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, (call, given) in enumerate(zip(_calls(SMALL_TEXT), ports, strict=True)):
            _refill(buffers, seed)
            output = compiled(*call, ports=given)
            assert (output - unet(*call, ports=given)).abs().max() <= TOLERANCE * max(1, output.abs().max())
            assert (output - plain(*call)).abs().max() > 0.01, "slots act"
    assert counter.graphs == 1


# PyTorch's own: importing a part of its compiler.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_the_compiler_s_kernels_compute_the_same(scheme):
    torch._dynamo.reset()
    unet = quantized_unet(scheme)
    call = _calls(SMALL_TEXT)[0]
    compiled = torch.compile(unet, fullgraph=True, dynamic=False)
    expected = unet(*call)
    assert (compiled(*call) - expected).abs().max() <= ROUNDING * max(1, expected.abs().max())
    assert (build(SMALL_TEXT)(*call) - expected).abs().max() > ROUNDING, "quantized"
