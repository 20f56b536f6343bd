"""Two runs that should agree: equal ones agree to the bit, and a module that was changed is found by its name."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.services import fresh_service, pipeline_folder, service_of
from undertow import Adapter, GenerationRequest, InvalidInput
from undertow.inspection.departure import usual_tolerance
from undertow.inspection.departure_tape import Forced, Tape, listening, relative_error
from undertow.inspection.diff import compare_runs
from undertow.inspection.diffusers_tree import DiffusersTree, load_diffusers_unet
from undertow.nn.resnet import ResBlock
from undertow.unet.runner import Capabilities
from undertow.unet.unet import UNetOutput

REQUEST = GenerationRequest(prompt="red apple", steps=1, seed=3, guidance_scale=1.0)
"""One forward."""
BLOCK = "up_blocks.0.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def other():
    """Like the fixture `service`, to be changed and put back."""
    return fresh_service("sd1")


@pytest.fixture
def weight(other):
    """Weights by name, put back afterwards."""
    before: dict[str, torch.Tensor] = {}

    def get(name: str) -> torch.Tensor:
        data = other.unet.get_parameter(name).data
        before[name] = data.clone()
        return data

    yield get
    for name, data in before.items():
        other.unet.get_parameter(name).data.copy_(data)


def test_two_equal_runs_agree_to_the_bit(service, other):
    found = compare_runs(service, other, REQUEST)
    assert found.agree
    assert (found.largest, found.picture, found.free) == (0.0, 0.0, (0.0,))
    assert found.modules > 150
    assert {"unet.conv_in", "unet.conv_out", "text_encoder.clip.encoder.layers.0.self_attn"} <= {
        *found.text,
        *found.forwards[0].own,
    }
    assert "agree to the bit" in found.verdict()
    networks = (other.unet, *other.model.text.encoders)
    assert not [one for net in networks for one in net.modules() if one._forward_hooks or one._forward_pre_hooks]


@pytest.mark.parametrize("name", ["conv_in", f"{BLOCK}.attn2.to_k"])
def test_a_changed_weight_is_found_by_its_module_and_by_how_much(service, other, weight, name):
    """A weight 1 % larger gives an output 1 % larger, but for the bias, which tiny random networks have too."""
    weight(f"{name}.weight").mul_(1.01)
    found = compare_runs(service, other, REQUEST, alone=False)
    assert found.first is not None
    assert found.first.module == f"unet.{name}"
    assert (found.first.place.step, found.first.place.branch) == (0, "cond")
    assert found.first.own.error == pytest.approx(0.01, rel=0.3)
    assert found.first.agreed == found.first.own.received == 0.0
    assert [one for one, _, _ in found.top(5)] == [f"unet.{name}"], "what follows it departs by nothing of its own"
    assert found.forwards[0].grown["unet.conv_out"] > 0, "and yet its output has departed"


def test_code_between_modules_is_found_at_the_module_that_runs_it(service, other, monkeypatch):
    block = other.unet.get_submodule("mid_block.resnets.0")
    assert isinstance(block, ResBlock)

    def with_relu(x, embedding=None, weights=None):
        hidden = block.conv1(F.relu(block.norm1(x)), weights)
        hidden = hidden + block.time_emb_proj(embedding, weights)[:, :, None, None]
        return x + block.conv2(F.silu(block.norm2(hidden)), weights)

    monkeypatch.setattr(block, "forward", with_relu)
    found = compare_runs(service, other, REQUEST, alone=False)
    assert found.first is not None
    assert (found.first.module, found.first.kind) == ("unet.mid_block.resnets.0", "ResBlock")
    assert found.first.own.before == "unet.mid_block.resnets.0.conv1"
    assert "in what it gives to" in found.verdict()


def test_a_changed_text_encoder_is_found_before_the_first_step(service, other, monkeypatch):
    layer = other.model.text.encoders[0].clip.encoder.layers[0].mlp.fc1
    monkeypatch.setattr(layer.weight, "data", layer.weight.data * 1.01)
    found = compare_runs(service, other, REQUEST, alone=False)
    assert found.first is not None
    assert found.first.module == "text_encoder.clip.encoder.layers.0.mlp.fc1"
    assert found.first.place.stage == "text"
    assert found.forwards[0].conditioning == 0.0, "every other module of it agrees"
    assert all(error == 0.0 for error in found.forwards[0].own.values()), "the U-Net received A's conditioning"


def test_numbers_that_are_not_finite_are_a_departure(service, other, weight):
    weight("mid_block.resnets.0.conv1.bias")[0] = math.inf
    found = compare_runs(service, other, REQUEST)
    assert found.first is not None
    assert found.first.module == "unet.mid_block.resnets.0.conv1"
    assert "not finite" in found.verdict()
    assert found.to_json()["first"]["error"] is None


def test_half_precision_agrees_within_a_tolerance_of_its_own(service):
    """Also where the processor imitates the type."""
    half = service_of("sd1", torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16 or half.model.report.notes != ()
    found = compare_runs(service, half, REQUEST, alone=False)
    assert found.agree
    if half.unet.dtype == torch.bfloat16:
        assert found.tolerance == 4 * 2**-7
        assert 2**-10 < found.largest < found.tolerance
        assert not compare_runs(service, half, REQUEST, alone=False, tolerance=1e-4).agree


def test_tolerances_follow_the_coarser_type():
    pairs = [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16)]
    assert [usual_tolerance(pair, same_way=False) for pair in pairs] == [100 * 2**-23, 4 * 2**-10, 4 * 2**-7]
    assert usual_tolerance(pairs[0], same_way=True) == 8 * 2**-23


def test_the_network_of_diffusers_over_the_same_folder_agrees(service):
    found = compare_runs(service, load_diffusers_unet(pipeline_folder("sd1")), REQUEST)
    assert found.agree
    assert found.largest > 0
    assert found.modules > 150
    assert found.notes


def test_a_change_of_diffusers_network_is_found(service):
    tree = load_diffusers_unet(pipeline_folder("sd1"))
    tree.network.get_submodule(f"{BLOCK}.norm2").eps = 0.1
    found = compare_runs(service, tree, REQUEST)
    assert found.first is not None
    assert found.first.module == f"unet.{BLOCK}.norm2"


def test_a_lora_is_found_where_it_acts_first(service, files):
    """With itself: one model, of which one run has the adapter."""
    found = compare_runs(service, service, REQUEST, adapters_b=(Adapter(files["style"]),))
    assert found.first is not None
    assert ".attn" in found.first.module
    assert found.free[-1] > 0
    service.adapters.unmerge()


def test_a_compiled_graph_is_compared_as_a_whole(service, other, monkeypatch):
    class Graphs:
        capabilities = Capabilities(observable=False, fixed_shapes=True, slots=True, merging=True)

        def run(self, network, *inputs):
            output = network(*inputs)
            if not isinstance(output, UNetOutput):
                return output
            return UNetOutput(prediction=output.prediction * 1.5, observations=output.observations)

    monkeypatch.setattr(other, "runner", Graphs())
    found = compare_runs(service, other, REQUEST, alone=False)
    assert found.first is not None
    assert found.first.module == "unet, compiled"
    assert found.first.own.error == pytest.approx(0.5)
    assert all(error == 0.0 for error in found.forwards[0].own.values())
    assert any("compiled" in note for note in found.notes)


def test_what_cannot_be_compared_is_refused(service, other):
    with pytest.raises(InvalidInput, match=r"unet\.mid_block"):
        compare_runs(service, other, REQUEST, modules=("unet.mid_blok",))
    with pytest.raises(InvalidInput, match="another architecture"):
        compare_runs(service, DiffusersTree(network=nn.Linear(2, 2)), REQUEST)
    with pytest.raises(InvalidInput, match="some that are called"):
        compare_runs(service, other, REQUEST, modules=("unet.down_blocks",), alone=False)


def test_only_the_modules_that_are_named_are_compared(service, other):
    found = compare_runs(service, other, REQUEST, modules=("unet.mid_block.resnets.*",), alone=False)
    assert {name.rpartition(".resnets")[0] for name in found.forwards[0].own} <= {"unet.mid_block", ""}
    assert not found.text


def test_a_tape_that_is_full_says_so():
    layer, tape = nn.Linear(4, 4), Tape(limit_bytes=16)
    with listening({"layer": layer}, tape), torch.inference_mode():
        layer(torch.ones(1, 4))
    assert tape.is_full
    assert tape.size_bytes == 16


def test_every_call_of_a_module_is_compared_with_the_same_call():
    layer, tape = nn.Linear(1, 1, bias=False), Tape()
    with listening({"layer": layer}, tape), torch.inference_mode():
        layer(layer(torch.ones(1, 1)))
    forced = Forced(tape=tape, tolerance=0.1, root="root")
    with listening({"layer": layer}, forced), torch.inference_mode():
        layer(2 * layer(torch.ones(1, 1)))
    assert [(one.module, one.before, one.error) for one in forced.errors] == [
        ("root", "layer", 0.0),
        ("layer", "", 0.0),
        ("root", "layer", 1.0),
        ("layer", "", 0.0),
    ]


def test_relative_errors():
    three = torch.tensor([3.0, 4.0])
    assert relative_error(three, three) == 0.0
    assert relative_error(three + torch.tensor([0.0, 0.5]), three) == pytest.approx(0.1)
    assert relative_error(three, torch.zeros(2)) == math.inf
    assert relative_error(torch.tensor([math.nan, 4.0]), three) == math.inf


@pytest.mark.parametrize("tolerance", [math.nan, math.inf, -1.0])
def test_a_tolerance_under_which_every_pair_or_none_would_agree_is_refused(service, other, tolerance):
    with pytest.raises(InvalidInput, match=r"tolerance is (nan|inf|-1), expected a finite number from 0"):
        compare_runs(service, other, REQUEST, tolerance=tolerance)
