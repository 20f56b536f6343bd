"""Linear layers with quantized weights: the products of the numbers that codes stand for, as near as torchao's."""

import pytest
import torch
from torch import nn

from undertow.errors import InvalidInput
from undertow.nn.adaptable import Linear
from undertow.nn.quantized import (
    QuantizedLinear,
    dequantize_layers,
    dequantized,
    plain_weights,
    quantize_layers,
    quantized,
    quantized_layers,
    require_scheme,
)
from undertow.processor import multiplies_int8

STEP = 0.5 / 127
"""The largest error of a weight, of the largest in its row."""

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of sums in another order, relative."""

SCHEMES = ["int8-weights", *["int8-dynamic"] * multiplies_int8()]
"""Whose products are exact on this processor."""


def layer(inputs: int = 48, outputs: int = 32, dtype: torch.dtype = torch.float32) -> Linear:
    made = Linear(inputs, outputs).to(dtype)
    rows = torch.logspace(-3, 2, outputs)[:, None]  # scales differ from row to row
    made.weight = nn.Parameter((torch.randn(outputs, inputs) * rows).to(dtype), requires_grad=False)
    return made.requires_grad_(False)


@pytest.mark.parametrize("scheme", ["int8-weights", "float8"])
def test_numbers_are_near_and_quantize_again_to_the_same_bits(scheme):
    weight = layer(outputs=512).weight
    codes, scales = quantized(weight, scheme)
    numbers = dequantized(codes, scales, torch.float32)
    largest = weight.abs().amax(1, keepdim=True)
    assert (numbers - weight).abs().le(1.001 * largest * (STEP if scheme == "int8-weights" else 1 / 16)).all()
    again = quantized(numbers, scheme)
    assert torch.equal(again[0].float(), codes.float())
    assert torch.equal(again[1], scales)


def test_a_row_of_zeros_stays_zero():
    weight = layer().weight
    weight[3] = 0
    assert not dequantized(*quantized(weight, "int8-weights"), torch.float32)[3].any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_product_is_that_of_the_numbers_which_codes_stand_for(scheme, dtype):
    plain = layer(dtype=dtype)
    made = QuantizedLinear.of(plain, scheme)
    x = torch.randn(2, 7, 48).to(dtype)
    assert made(x).dtype == dtype
    rounded = x.double()
    if scheme == "int8-dynamic":
        scale = x.abs().amax(-1, keepdim=True).double() / 127
        rounded = (rounded / scale).round() * scale
    expected = rounded @ made.dequantized(torch.float32).double().T + plain.bias.double()
    assert (made(x).double() - expected).norm() <= ROUNDING[dtype] * expected.norm()


TORCHAO = {"int8-weights": 0.0073, "int8-dynamic": 0.0104}
"""The error of torchao 0.18's products of these sizes, with `Int8WeightOnlyConfig` and
`Int8DynamicActivationInt8WeightConfig`. It is not among what tests need: wherever it is installed, transformers imports
it, for seconds and with warnings."""


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.inference_mode()
def test_products_are_as_near_as_those_of_torchao(scheme):
    plain, x = layer(512, 256), torch.randn(64, 512)
    expected = plain(x)
    error = (QuantizedLinear.of(plain, scheme)(x) - expected).norm() / expected.norm()
    assert 0.9 * TORCHAO[scheme] <= error <= 1.1 * TORCHAO[scheme]  # its scales are of 127.5, which cut the largest


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@torch.inference_mode()
def test_what_is_not_finite_stays_in_its_row_and_is_seen(bad):
    made, x = QuantizedLinear.of(layer(), "int8-dynamic"), torch.randn(4, 48)
    expected = made(x)
    x[2, 5] = bad
    seen = made(x)
    assert not seen[2].isfinite().any()
    assert torch.equal(seen[[0, 1, 3]], expected[[0, 1, 3]])


def test_inputs_have_gradients_and_weights_have_none():
    made, x = QuantizedLinear.of(layer(), "int8-dynamic"), torch.randn(4, 48, requires_grad=True)
    made(x).sum().backward()
    assert torch.allclose(x.grad, made.dequantized().sum(0).expand(4, -1), rtol=1e-4, atol=1e-4)
    assert not any(one.requires_grad for one in made.parameters())


def test_scales_keep_their_type_when_a_network_is_moved_to_another():
    made = QuantizedLinear.of(layer(), "int8-weights")
    before = made.weight_scale.clone()
    made.to(torch.bfloat16)
    assert (made.bias.dtype, made.weight.dtype) == (torch.bfloat16, torch.int8)
    assert torch.equal(made.weight_scale, before)


def test_layers_are_replaced_and_given_back():
    network = nn.ModuleDict({"a": layer(), "b": nn.ModuleList([layer()])})
    bias = network["a"].bias
    quantize_layers(network, {"b.0": "int8-weights", "a": "int8-dynamic"})
    assert quantized_layers(network) == {"a": "int8-dynamic", "b.0": "int8-weights"}
    assert network["a"].bias is bias
    plain = plain_weights(network)
    assert plain.keys() == {"a.weight", "a.bias", "b.0.weight", "b.0.bias"}
    dequantize_layers(network)
    assert not quantized_layers(network)
    assert torch.equal(network["a"].weight, plain["a.weight"])


def test_weights_that_are_not_finite_are_refused():
    bad = layer()
    bad.weight[0, 0] = float("inf")
    with pytest.raises(InvalidInput, match=r"a with weights that are not finite.*float16 file of it has overflowed"):
        quantize_layers(nn.ModuleDict({"a": bad}), {"a": "int8-weights"})


def test_a_scheme_that_the_device_has_not_is_refused(monkeypatch):
    with pytest.raises(InvalidInput, match=r"'float8'.*this CPU has no instructions for it.*take 'int8-weights'"):
        require_scheme("float8", "cpu")
    monkeypatch.setattr("undertow.nn.quantized.multiplies_int8", lambda: False)
    with pytest.raises(InvalidInput, match=r"'int8-dynamic'.*no VNNI instructions; take 'int8-weights'"):
        require_scheme("int8-dynamic", None)
    require_scheme("int8-weights", None)


@torch.inference_mode()
def test_float8_multiplies_as_its_numbers_do():
    """By PyTorch's stand-in, which CPUs have, and takes seconds where a layer is large."""
    made, x = QuantizedLinear.of(layer(16, 16), "float8"), torch.randn(3, 16)
    expected = x.double() @ made.dequantized(torch.float32).double().T + made.bias.double()
    assert (made(x).double() - expected).norm() <= 0.05 * expected.norm()  # e4m3 has three bits
