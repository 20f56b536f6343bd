"""Every kind of change, against LyCORIS' own forward and against formulas written out in float64."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from undertow.adapters.lora.additive import Difference, Hadamard, Kronecker, LowRank
from undertow.adapters.lora.updates import Update
from undertow.adapters.lora.weight_dependent import ChannelScale, GeneralizedLora, Orthogonal, WeightDecomposed

T1 = 2e-5
"""Largest difference in float32, relative to the largest reference value (at least 1): products in another order."""

EFFECT = 0.1

SCALE = 0.5
RANK, ALPHA = 2, 1.0

LAYERS = {
    "linear": lambda: nn.Linear(24, 32),
    "square": lambda: nn.Linear(32, 32),
    "strided": lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1),
    "pointwise": lambda: nn.Conv2d(16, 32, 1),
}


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    torch.manual_seed(5)
    with torch.no_grad():
        yield


def reference(algorithm: str, layer: nn.Module, **options: object) -> nn.Module:
    """LyCORIS' module with random values in everything that is trained."""
    from lycoris.modules.boft import ButterflyOFTModule
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.ia3 import IA3Module
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    kinds = {
        "lora": LoConModule,
        "loha": LohaModule,
        "lokr": LokrModule,
        "glora": GLoRAModule,
        "ia3": IA3Module,
        "oft": DiagOFTModule,
        "boft": ButterflyOFTModule,
    }
    module = kinds[algorithm]("layer", layer, **{"lora_dim": RANK, "alpha": ALPHA, **options})
    for parameter in module.parameters():
        parameter.copy_(0.8 * torch.randn_like(parameter))
    module.org_forward = layer.forward
    return module


def leaves(module: nn.Module) -> dict[str, Tensor]:
    """What LyCORIS would save, under the names of its files."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def ours(algorithm: str, tensors: dict[str, Tensor], *, over_inputs: bool = False) -> Update:
    """The update of these tensors; `test_files.py` tests that they are found in files."""

    def starting(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    match algorithm:
        case "lora":
            down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
            update = LowRank(down=down, up=up, mid=tensors.get("lora_mid.weight"), scale=SCALE)
        case "loha":
            update = Hadamard(**starting("hada_"), scale=SCALE)
        case "lokr":
            update = Kronecker(**starting("lokr_"))
            update = Kronecker(**starting("lokr_"), scale=1.0 if update.rank is None else SCALE)
        case _:
            factors = {name.split(".")[0]: tensor for name, tensor in tensors.items() if name.endswith(".weight")}
            update = GeneralizedLora(**factors, scale=SCALE)
    if "dora_scale" in tensors:
        return WeightDecomposed(inner=update, magnitude=tensors["dora_scale"], over_inputs=over_inputs)
    return update


def forward(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def assert_same_forward(layer: nn.Module, module: nn.Module, update: Update, gain: float = 1.0) -> None:
    x = torch.randn(3, layer.weight.shape[1], *([] if isinstance(layer, nn.Linear) else [9, 9]))
    expected = module(x)
    found = forward(layer, update.weight(layer.weight, gain), x)
    assert float((found - expected).abs().max()) <= T1 * max(1.0, float(expected.abs().max()))
    base = layer(x)
    assert float((expected - base).norm() / base.norm()) > EFFECT
    assert update.fits(tuple(layer.weight.shape))


FORMS = [
    pytest.param(algorithm, options, id=f"{algorithm}-{'-'.join(f'{k}={v}' for k, v in options.items())}")
    for algorithm, options in [
        ("lora", {}),
        ("lora", {"use_tucker": True}),
        ("loha", {}),
        ("loha", {"use_tucker": True}),
        ("lokr", {"factor": 4}),
        ("lokr", {"factor": 4, "decompose_both": True, "lora_dim": 1, "alpha": 0.5}),
        ("lokr", {"factor": 4, "full_matrix": True}),
        ("lokr", {"factor": 4, "use_tucker": True}),
        ("lokr", {"factor": 4, "use_tucker": True, "decompose_both": True, "lora_dim": 1, "alpha": 0.5}),
        ("glora", {}),
    ]
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("algorithm", "options"), FORMS)
def test_the_kinds_of_lycoris_are_its_forward(algorithm, options, layer):
    layer = LAYERS[layer]()
    module = reference(algorithm, layer, **options)
    update = ours(algorithm, leaves(module))
    assert_same_forward(layer, module, update)
    module.multiplier = 0.7
    assert_same_forward(layer, module, update, 0.7)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("on_outputs", [True, False])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
def test_dora_on_both_axes_is_lycoris_forward(algorithm, on_outputs, layer):
    layer = LAYERS[layer]()
    module = reference(algorithm, layer, weight_decompose=True, wd_on_out=on_outputs)
    module.dora_scale.abs_().add_(0.5)
    update = ours(algorithm, leaves(module), over_inputs=not on_outputs)
    assert_same_forward(layer, module, update)
    assert update.kind == "dora"
    assert not update.additive
    assert update.factors() is None


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("constraint", [0, 0.004])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("algorithm", ["oft", "boft"])
def test_orthogonal_updates_are_lycoris_forward(algorithm, layer, constraint, rescaled):
    layer = LAYERS[layer]()
    module = reference(algorithm, layer, lora_dim=4, constraint=constraint, rescaled=rescaled)
    tensors = leaves(module)
    update = Orthogonal(
        blocks=tensors["oft_blocks"], constraint=constraint * layer.weight.shape[0], rescale=tensors.get("rescale")
    )
    if constraint and not rescaled:
        # A tight constraint makes a small rotation.
        x = layer.weight
        assert float((update.weight(x, 1.0) - x).norm() / x.norm()) < EFFECT * 10
        expected = module.make_weight()
        assert float((update.weight(x, 1.0) - expected).abs().max()) <= T1
    else:
        assert_same_forward(layer, module, update)
    assert update.kind == algorithm


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_ia3_is_lycoris_forward(layer, on_input):
    layer = LAYERS[layer]()
    module = reference("ia3", layer, train_on_input=on_input)
    update = ChannelScale(factor=leaves(module)["weight"], on_input=on_input)
    assert_same_forward(layer, module, update)
    module.multiplier = 0.3
    assert_same_forward(layer, module, update, 0.3) if on_input else None


def test_dora_moves_on_a_straight_line_between_base_and_trained():
    base = torch.randn(8, 6)
    inner = LowRank(down=torch.randn(2, 6), up=torch.randn(8, 2), scale=SCALE)
    update = WeightDecomposed(inner=inner, magnitude=torch.rand(8) + 0.5)
    whole = (base.double() + SCALE * inner.up.double() @ inner.down.double()).numpy()
    trained = torch.tensor(whole / (whole**2).sum(1, keepdims=True) ** 0.5) * update.magnitude.double()[:, None]
    for gain in (0.0, 0.3, 1.0, -0.5):
        expected = base.double() + gain * (trained - base.double())
        assert float((update.weight(base, gain).double() - expected).abs().max()) < T1
    assert torch.equal(update.weight(base, 0.0), base)


def test_a_row_without_direction_stays_zero():
    inner = LowRank(down=torch.zeros(1, 3), up=torch.zeros(2, 1))
    update = WeightDecomposed(inner=inner, magnitude=torch.ones(2))
    assert torch.equal(update.weight(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))


def test_differences_and_biases():
    weight, bias = torch.randn(4, 3), torch.randn(4)
    update = Difference(weight_change=torch.randn(4, 3, 1, 1), bias_change=torch.randn(4))
    assert torch.equal(update.weight(weight, 0.5), weight + 0.5 * update.weight_change[..., 0, 0])
    assert torch.equal(update.bias(bias, 0.5), bias + 0.5 * update.bias_change)
    assert torch.equal(update.bias(None, 2.0), 2.0 * update.bias_change)
    assert Difference(weight_change=weight).bias(None, 1.0) is None
    assert torch.equal(Difference(bias_change=bias).weight(weight, 1.0), weight)
    assert Difference(weight_change=torch.ones(4), norm=True).fits((4,))
    assert not Difference(weight_change=torch.ones(4)).fits((4,))


def test_a_change_of_the_bias_is_not_low_rank():
    update = LowRank(down=torch.randn(2, 6), up=torch.randn(8, 2), bias_change=torch.randn(8))
    assert update.factors() is None
    assert update.factored_rank is None


@st.composite
def factored(draw) -> tuple[Update, tuple[int, ...]]:
    """An update that has factors, and the shape of its weight."""
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3)]))
    outputs, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    first, second = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    core = draw(st.booleans()) and kernel != ()
    scale = draw(st.sampled_from([0.25, 1.0, 3.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def low(outputs: int, inputs: int, rank: int) -> tuple[Tensor, Tensor, Tensor | None]:
        if core:
            return tensor(rank, outputs), tensor(rank, inputs), tensor(rank, rank, *kernel)
        return tensor(outputs, rank), tensor(rank, inputs * torch.Size(kernel).numel()), None

    match draw(st.sampled_from(["lora", "loha", "lokr"])):
        case "lora":
            ones = [1] * len(kernel)
            down = tensor(first, inputs, *(ones if core else kernel))
            mid = tensor(first, first, *kernel) if core else None
            return LowRank(down=down, up=tensor(outputs, first, *ones), mid=mid, scale=scale), (
                outputs,
                inputs,
                *kernel,
            )
        case "loha":
            (a1, b1, t1), (a2, b2, t2) = (low(outputs, inputs, rank) for rank in (first, second))
            update = Hadamard(w1_a=a1, w1_b=b1, w2_a=a2, w2_b=b2, t1=t1, t2=t2, scale=scale)
            return update, (outputs, inputs, *kernel)
        case _:
            rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
            shape = (outputs * rows, inputs * columns, *kernel)
            whole = draw(st.sampled_from(["first", "second", "none"]))
            w1 = {"w1": tensor(rows, columns)} if whole == "first" else {}
            if not w1:
                w1 = {"w1_a": tensor(rows, first), "w1_b": tensor(first, columns)}
            if whole == "second":
                return Kronecker(**w1, w2=tensor(outputs, inputs, *kernel), scale=scale), shape
            a, b, t = low(outputs, inputs, second)
            return Kronecker(**w1, w2_a=a, w2_b=b, t2=t, scale=scale), shape


@given(factored(), st.floats(-2, 2))
@settings(max_examples=150)
def test_factors_are_the_whole_change(made, gain):
    update, shape = made
    base = torch.ones(shape)
    factors = update.factors()
    assert update.fits(shape)
    assert factors is not None
    assert factors.down.shape[0] == factors.up.shape[1] == update.factored_rank
    delta = update.weight(base, 1.0) - base
    product = (factors.up @ factors.down).reshape(shape)
    assert float((delta - product).abs().max()) <= T1 * max(1.0, float(product.abs().max()))
    moved = update.weight(base, gain) - base
    assert float((moved - gain * product).abs().max()) <= T1 * max(1.0, float(product.abs().max()))
    assert not update.fits((shape[0] + 1, *shape[1:]))
    assert not update.fits(shape[:1])


def test_a_tucker_factor_with_a_side_of_one_has_its_factors():
    """torch.kron refuses the view that its transpose is (torch 2.13)."""
    update = Kronecker(w1=torch.randn(2, 2), w2_a=torch.randn(1, 2), w2_b=torch.randn(1, 1), t2=torch.randn(1, 1, 1, 1))
    factors, base = update.factors(), torch.zeros(4, 2, 1, 1)
    assert factors is not None
    torch.testing.assert_close((factors.up @ factors.down).reshape(base.shape), update.weight(base, 1.0))


def test_the_tensors_of_an_update_must_fit_each_other():
    assert not LowRank(down=torch.ones(2, 6), up=torch.ones(8, 3)).fits((8, 6))
    assert not LowRank(down=torch.ones(6, 2), up=torch.ones(2, 8)).fits((8, 6))
    assert not LowRank(down=torch.ones(2), up=torch.ones(8, 2)).fits((8, 1))
    assert not WeightDecomposed(
        inner=LowRank(down=torch.ones(2, 6), up=torch.ones(8, 2)), magnitude=torch.ones(6)
    ).fits((8, 6))
    assert not Orthogonal(blocks=torch.ones(2, 3, 4)).fits((6, 5))
    assert not Orthogonal(blocks=torch.ones(4, 3, 4, 4)).fits((12, 5))
    assert not ChannelScale(factor=torch.ones(5)).fits((8, 5))
    pair = {"a1": torch.ones(6, 2), "a2": torch.ones(2, 6), "b1": torch.ones(8, 2), "b2": torch.ones(2, 5)}
    assert not GeneralizedLora(**pair).fits((8, 6))


def test_half_precision_files_are_computed_in_float32():
    update = LowRank(down=torch.randn(2, 6).half(), up=torch.randn(8, 2).half(), scale=SCALE)
    base = torch.randn(8, 6, dtype=torch.bfloat16)
    expected = base.double() + SCALE * update.up.double() @ update.down.double()
    found = update.weight(base, 1.0)
    assert found.dtype == torch.float32
    assert float((found.double() - expected).abs().max()) < T1
    assert update.size_bytes == 2 * (12 + 16)
