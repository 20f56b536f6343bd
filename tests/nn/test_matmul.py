"""The routes around slow matrix products give the numbers of PyTorch's own."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from undertow.nn import matmul
from undertow.nn.matmul import (
    PATCH_CELLS,
    convolve,
    convolve_doubled,
    doubling_is_left_out,
    linear,
    onednn_linear,
    opaque_onednn_linear,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # sums of a few hundred unit products, in another order


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def channels_last(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    tolerance = TOLERANCE[found.dtype] * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 24), (2, 7, 24), (1, 3, 5, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_onednn_s_product_is_a_linear_layer(shape, with_bias):
    x, weight, bias = torch.randn(shape), torch.randn(40, 24), torch.randn(40) if with_bias else None

    with torch.no_grad():
        assert_same(onednn_linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("vendor", [True, False])
def test_linear_is_exact_on_either_vendor(vendor, monkeypatch):
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: vendor)
    x, weight, bias = torch.randn(2, 7, 24), torch.randn(40, 24), torch.randn(40)

    with torch.no_grad():
        assert_same(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [
        (8, 8, 3, 1),
        (7, 5, 3, 1),  # odd
        (8, 8, 3, 2),
        (7, 5, 3, 2),
        (2, 2, 3, 2),
        (1, 1, 3, 1),  # only the padding around one cell
        (8, 8, 1, 1),
        (40, 40, 3, 1),  # too large to gather patches
        (40, 40, 1, 1),
    ],
)
def test_a_convolution_by_any_route_is_pytorch_s(height, width, kernel, stride, dtype):
    x = channels_last(2, 16, height, width, dtype=dtype)
    weight, bias = channels_last(24, 16, kernel, kernel, dtype=dtype), torch.randn(24, dtype=dtype)
    padding = kernel // 2

    with torch.no_grad():
        found = convolve(x, weight, bias, stride, padding)

    assert_same(found, F.conv2d(x, weight, bias, stride, padding))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_patch_route_is_taken_for_small_maps_only(monkeypatch):
    monkeypatch.setattr(F, "conv2d", lambda *_: pytest.fail("not gathered"))
    weight, bias = channels_last(24, 16, 3, 3), torch.randn(24)

    with torch.no_grad():
        convolve(channels_last(1, 16, 16, PATCH_CELLS // 16), weight, bias, 1, 1)
        with pytest.raises(pytest.fail.Exception, match="not gathered"):
            convolve(channels_last(1, 16, 16, PATCH_CELLS // 16 + 1), weight, bias, 1, 1)


@pytest.mark.parametrize(("stride", "side"), [(1, 16), (2, 32)])
def test_what_counts_for_the_patch_route_are_cells_of_the_output_over_all_rows(stride, side, monkeypatch):
    monkeypatch.setattr(F, "conv2d", lambda *_: pytest.fail("not gathered"))
    weight, bias = channels_last(8, 4, 3, 3), torch.randn(8)

    with torch.no_grad():
        convolve(channels_last(1, 4, side, side), weight, bias, stride, 1)
        convolve(channels_last(2, 4, side // 2, side), weight, bias, stride, 1)
        with pytest.raises(pytest.fail.Exception, match="not gathered"):
            convolve(channels_last(2, 4, side, side), weight, bias, stride, 1)


@torch.no_grad()
def test_a_1x1_convolution_of_no_maps_makes_none():
    assert convolve(torch.zeros(0, 16, 4, 5), torch.zeros(24, 16, 1, 1), torch.zeros(24), 1, 0).shape == (0, 24, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_a_1x1_convolution_leaves_channels_first_where_they_are(rows, biased, dtype, monkeypatch):
    """As those of autoencoders lie. A part of a map, as a tile is, is none of the whole's memory."""
    weight, bias = torch.randn(24, 16, 1, 1, dtype=dtype), torch.randn(24, dtype=dtype) if biased else None
    whole = torch.randn(rows, 16, 9, 11, dtype=dtype)
    expected = F.conv2d(whole, weight, bias)
    monkeypatch.setattr(F, "conv2d", lambda *_: pytest.fail("no product"))
    with torch.no_grad():
        found, part = convolve(whole, weight, bias, 1, 0), convolve(whole[:, :, 2:7, 3:], weight, bias, 1, 0)
    assert found.is_contiguous()
    assert_same(found, expected)
    assert_same(part, expected[:, :, 2:7, 3:])


@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (1, 1), (2, 1)])
def test_a_1x1_convolution_with_strides_or_a_rim_is_no_plain_product(stride, padding):
    x, weight, bias = channels_last(2, 16, 5, 7), channels_last(24, 16, 1, 1), torch.randn(24)

    with torch.no_grad():
        assert_same(convolve(x, weight, bias, stride, padding), F.conv2d(x, weight, bias, stride, padding))


def test_a_convolution_over_plain_memory_or_with_gradients_or_autocast_is_pytorch_s_own(monkeypatch):
    """The routes are for inference; training needs PyTorch's gradients, and autocast its types."""
    asked = []
    real = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *inputs: asked.append(1) or real(*inputs))
    x, weight, bias = channels_last(1, 4, 4, 4), channels_last(8, 4, 3, 3), torch.randn(8)

    convolve(x, weight, bias, 1, 1)
    with torch.no_grad():
        convolve(x, weight.contiguous(), bias, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            assert convolve(x, weight, bias, 1, 1).dtype == torch.bfloat16
        assert len(asked) == 3
        convolve(x, weight, bias, 1, 1)
    assert len(asked) == 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_of_a_doubled_map_is_pytorch_s_for_every_window(dtype, layout):
    x, weight, bias = torch.randn(2, 6, 3, 4), torch.randn(5, 6, 3, 3), torch.randn(5)
    x, weight, bias = (one.to(dtype) for one in (x, weight, bias))
    x = x.contiguous(memory_format=layout)
    whole = F.conv2d(F.interpolate(x.float(), scale_factor=2.0), weight.float(), bias.float(), padding=1).to(dtype)
    with torch.no_grad():
        for start, stop in combinations(range(7), 2):
            for left, right in ((0, 8), (1, 2), (3, 7)):
                rows, columns = slice(start, stop), slice(left, right)
                assert_same(convolve_doubled(x, weight, bias, rows, columns), whole[:, :, rows, columns])


def test_doubling_is_left_out_of_large_maps_without_gradients_on_a_processor():
    large, small = torch.randn(1, 1, 32, 32), torch.randn(2, 1, 16, 32)
    assert not doubling_is_left_out(large)
    with torch.no_grad():
        assert doubling_is_left_out(large)
        assert doubling_is_left_out(large.bfloat16())
        assert not doubling_is_left_out(large.half())
        assert not doubling_is_left_out(small)
        assert not doubling_is_left_out(large.to("meta"))


@pytest.mark.parametrize("vendor", [True, False])
def test_a_product_takes_onednn_s_route_for_float32_inference_on_its_vendor_alone(vendor, monkeypatch):
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: vendor)
    asked = []
    monkeypatch.setattr(matmul, "onednn_linear", lambda *inputs: asked.append(1) or F.linear(*inputs))
    x, weight, bias = torch.randn(2, 24, requires_grad=True), torch.randn(40, 24), torch.randn(40)

    linear(x, weight, bias).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
        linear(x.double(), weight.double(), bias.double())
        linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
        assert not asked
        linear(x, weight, bias)
    assert bool(asked) == vendor


@pytest.mark.parametrize("shape", [(2, 24), (1, 3, 5, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_compiler_knows_the_shape_of_onednn_s_product(shape, with_bias):
    """PyTorch's own check of an operator: its schema, its fake and its real results."""
    torch.library.opcheck(
        opaque_onednn_linear,
        (torch.randn(shape), torch.randn(40, 24), torch.randn(40) if with_bias else None),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_gradients_flow_where_they_are_wanted():
    x = channels_last(1, 16, 4, 4).requires_grad_()
    weight, bias = channels_last(24, 16, 3, 3), torch.randn(24)

    convolve(x, weight, bias, 1, 1).sum().backward()

    assert x.grad is not None
    assert x.grad.abs().max() > 0
