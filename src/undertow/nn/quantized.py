"""Linear layers with quantized weights (`undertow.quantization`): int8 or float8 numbers, and a scale for each output.

Symmetric, as torchao's `Int8WeightOnlyConfig` and `Int8DynamicActivationInt8WeightConfig` are, which are as near to the
plain product (tests/nn/test_quantized.py). torchao's tensors are not used: on a CPU dynamic products take 1.1 to 4.2
times as long through their dispatch, small ones most (docs/results/compression.md), of which a U-Net has hundreds; and
where weights are plain parameters they leave memory, stream, compile and are saved as all others are.

Nothing here is trained: weights have no gradients, inputs do, so that a LoRA can be trained beside them.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from undertow.errors import InvalidInput
from undertow.nn.adaptable import Linear, Slots
from undertow.nn.matmul import linear
from undertow.processor import multiplies_int8
from undertow.quantization import Scheme

STORED: Mapping[Scheme, torch.dtype] = {
    "int8-weights": torch.int8,
    "int8-dynamic": torch.int8,
    "float8": torch.float8_e4m3fn,
}
"""The type of the weights."""

LARGEST: Mapping[torch.dtype, int] = {torch.int8: 127, torch.float8_e4m3fn: 448}
SMALLEST_SCALE = 2.0**-100
"""Of rows that are zero."""

SCALE_BITS = 16
"""Of the mantissa of a weight's scale. Then 127 · scale and every weight · scale are exact in float32, and weights that
were read as float32 numbers quantize to the same bits again."""

FEWEST_ROWS = 17
"""Of a product of integers on CUDA."""

Codes = Shaped[Tensor, "outputs inputs"]
Scales = Float[Tensor, "outputs 1"]
Network = TypeVar("Network", bound=nn.Module)


def quantized(weight: Float[Tensor, "outputs inputs"], scheme: Scheme) -> tuple[Codes, Scales]:
    """The nearest numbers of the scheme's type, and their scales, so that `codes · scales` is about `weight`."""
    wide, dtype = weight.float(), STORED[scheme]
    scales = _rounded((wide.abs().amax(1, keepdim=True) / LARGEST[dtype]).clamp_min(SMALLEST_SCALE))
    return _codes(wide / scales, dtype), scales


def dequantized(codes: Codes, scales: Scales, dtype: torch.dtype) -> Float[Tensor, "outputs inputs"]:
    """The weights that codes stand for: exact in float32, else rounded to `dtype`."""
    return codes.to(dtype).mul_(scales.to(dtype))


def _rounded(scales: Scales) -> Scales:
    """To `SCALE_BITS` of the mantissa, the nearest."""
    mantissa, exponent = torch.frexp(scales)
    return torch.ldexp(torch.round(mantissa * 2.0**SCALE_BITS) / 2.0**SCALE_BITS, exponent)


def _codes(x: Tensor, dtype: torch.dtype) -> Tensor:
    largest = LARGEST[dtype]
    if dtype == torch.int8:
        x = x.round_()
    return x.clamp_(-largest, largest).to(dtype)


class QuantizedLinear(Linear):
    """`Linear` with weights of `scheme`. weight: its codes, [outputs, inputs]; weight_scale: float32, [outputs, 1],
    whatever type the network is moved to. compute_dtype: of its slots for LoRA."""

    def __init__(
        self, inputs: int, outputs: int, scheme: Scheme, *, bias: bool, compute_dtype: torch.dtype = torch.float32
    ):
        super().__init__(inputs, outputs, bias=bias)
        self.scheme: Scheme = scheme
        self.compute_dtype = compute_dtype
        device = self.weight.device
        self.weight = _constant(torch.empty(outputs, inputs, dtype=STORED[scheme], device=device))
        self.weight_scale = _constant(torch.empty(outputs, 1, device=device))

    @classmethod
    def of(cls, layer: nn.Linear, scheme: Scheme) -> "QuantizedLinear":
        """A layer quantized, with the bias itself."""
        has_bias = getattr(layer, "bias", None) is not None
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features, scheme, bias=has_bias, compute_dtype=layer.weight.dtype)
        codes, scales = quantized(layer.weight.detach(), scheme)
        made.weight, made.weight_scale = _constant(codes), _constant(scales)
        if has_bias:
            made.bias = layer.bias
        return made.train(layer.training)

    def allocate_slots(self, count: int, rank: int) -> None:
        like = torch.empty(0, dtype=self.compute_dtype, device=self.weight.device)
        self.slots = Slots(count, rank, self.in_features, self.out_features, like)

    def dequantized(self, dtype: torch.dtype | None = None) -> Float[Tensor, "outputs inputs"]:
        """Its weights as numbers. dtype: `None` is that of its slots."""
        if self.weight.dtype not in LARGEST:
            return self.weight
        return dequantized(self.weight, self.weight_scale, self.compute_dtype if dtype is None else dtype)

    def product(self, x: Float[Tensor, "batch *tokens inputs"]) -> Tensor:
        if self.weight.dtype not in LARGEST:  # put in its place for a call (`torch.func.functional_call`)
            return linear(x, self.weight, self.bias)
        if self.scheme == "int8-weights" or (torch.is_grad_enabled() and x.requires_grad):
            return linear(x, dequantized(self.weight, self.weight_scale, x.dtype), self.bias)
        rows = x.reshape(-1, self.in_features)
        multiply = _by_float8 if self.scheme == "float8" else _by_int8
        y = multiply(rows, self.weight, self.weight_scale)
        bias = getattr(self, "bias", None)
        y = y if bias is None else y.add_(bias)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scheme={self.scheme}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """A type that the network is moved to is not that of scales."""
        scales = self.weight_scale.data
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scales.dtype:
            self.weight_scale.data = scales.to(self.weight_scale.device)
        return self


def _by_int8(x: Float[Tensor, "rows inputs"], codes: Codes, scales: Scales) -> Float[Tensor, "rows outputs"]:
    """x Wᵀ in float32, of integers: `s_x s_w Σ q_x q_w`, exact but for the rounding of x. Inf and NaN of a row stay in
    it: its scale is not finite then."""
    largest = (x.abs().amax(1, keepdim=True).float() / 127).clamp_min_(SMALLEST_SCALE)
    whole = (x / largest).round_().to(torch.int8)
    padding = max(0, FEWEST_ROWS - len(x)) if x.is_cuda else 0
    product = torch.ops.aten._int_mm(F.pad(whole, (0, 0, 0, padding)) if padding else whole, codes.t())
    return product[: len(x)].to(torch.float32).mul_(largest).mul_(scales.view(-1))


def _by_float8(x: Float[Tensor, "rows inputs"], codes: Codes, scales: Scales) -> Float[Tensor, "rows outputs"]:
    """The same of float8 numbers, added up in float32."""
    largest = (x.abs().amax(1, keepdim=True).float() / LARGEST[codes.dtype]).clamp_min_(SMALLEST_SCALE)
    small = _codes(x / largest, codes.dtype)
    product = torch.ops.aten._scaled_mm(
        small, codes.t(), scale_a=largest, scale_b=scales.t().contiguous(), out_dtype=torch.bfloat16
    )
    return product.float()


def quantize_layers(
    network: Network, layers: Mapping[str, Scheme], *, compute_dtype: torch.dtype | None = None
) -> Network:
    """Puts quantized layers in the place of these, in place. On the meta device they wait for codes and scales.
    compute_dtype: `None` is that of each layer. Errors: `InvalidInput` for weights that are not finite."""
    for name, scheme in layers.items():
        layer: Any = network.get_submodule(name)
        if layer.weight.is_meta:
            dtype = layer.weight.dtype if compute_dtype is None else compute_dtype
            bias = layer.bias is not None
            with torch.device("meta"):
                made = QuantizedLinear(layer.in_features, layer.out_features, scheme, bias=bias, compute_dtype=dtype)
        else:
            if not bool(layer.weight.isfinite().all()):
                raise InvalidInput(
                    "quantize",
                    f"{name} with weights that are not finite",
                    "numbers, which alone have a scale",
                    "load the model in float32, or from its own file: a float16 file of it has overflowed",
                )
            made = QuantizedLinear.of(layer, scheme)
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, made)
    return network


def quantized_layers(network: nn.Module) -> dict[str, Scheme]:
    """The quantized layers of a network, by name."""
    return {name: one.scheme for name, one in network.named_modules() if isinstance(one, QuantizedLinear)}


def dequantize_layers(network: Network) -> Network:
    """Puts plain layers with the numbers that codes stand for in the place of quantized ones, in place."""
    for name in quantized_layers(network):
        layer: Any = network.get_submodule(name)
        with torch.device("meta"):
            made = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        made.weight, made.bias = _constant(layer.dequantized()), layer.bias
        owner, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(owner), attribute, made.train(layer.training))
    return network


def plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that the network would have without quantization: what copies are made of."""
    found = dict(network.state_dict())
    for name in quantized_layers(network):
        layer: Any = network.get_submodule(name)
        found[f"{name}.weight"] = layer.dequantized()
        del found[f"{name}.weight_scale"]
    return found


def require_scheme(scheme: Scheme, device: torch.device | str | None, argument: str = "quantize") -> None:
    """Passes schemes that this device computes. Errors: `InvalidInput` says what is missing."""
    kind = torch.device("cpu" if device is None else device).type
    if scheme == "float8" and not (
        kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 9)
    ):
        missing = (
            "this CPU has no instructions for it, and PyTorch's stand-in takes seconds for one layer"
            if kind == "cpu"
            else "it takes a GPU of compute capability 8.9 (Ada, Hopper) or later"
        )
        raise InvalidInput(argument, repr(scheme), "a scheme of this device", f"{missing}; take 'int8-weights'")
    if scheme == "int8-dynamic" and kind == "cpu" and not multiplies_int8():
        missing = "sums of int8 products overflow on this CPU, which has no VNNI instructions"
        raise InvalidInput(argument, repr(scheme), "a scheme of this device", f"{missing}; take 'int8-weights'")


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
