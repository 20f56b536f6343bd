"""Packed weights: the same predictions, by copies that share all else, in memory twice."""

import copy
from dataclasses import replace
from threading import Lock

import pytest
import torch

import undertow
from tests.adapters.lora.files import kohya, layers_of, write
from tests.golden.minis import M15, MXL, build, conditioning_for, latents_for
from tests.services import pipeline_folder
from undertow.adapters.adapter import Adapter
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.engine.limits import BatchLimits
from undertow.engine.options import RunOptions
from undertow.engine.request import GenerationRequest
from undertow.memory.families import family
from undertow.memory.forecast import component_bytes
from undertow.memory.ladder import Economy, StepDown
from undertow.memory.work import Work
from undertow.nn.adaptable import Conv2d
from undertow.nn.packed import PATIENCE, PackedConv2d, PackedLinear, can_pack, packed
from undertow.nn.quantized import QuantizedLinear
from undertow.processor import has_bfloat16
from undertow.quantization import QuantizedWeights
from undertow.unet.packed import PackedNetworks
from undertow.unet.runner import EAGER, PackedRunner

SIDE = 8


def inputs_of(config, rows=2, dtype=torch.float32):
    conditioning = conditioning_for(config, batch=rows)
    return latents_for(config, SIDE, SIDE, batch=rows).to(dtype), torch.full((rows,), 500.0), conditioning


@pytest.mark.parametrize("config", [M15, MXL], ids=["sd1", "sdxl"])
@torch.inference_mode()
def test_predictions_are_those_of_the_network(config):
    unet, runner = build(config).requires_grad_(False), PackedRunner()
    for rows in (2, 1, 5):  # packed for the first, and right for all
        inputs = inputs_of(config, rows)
        found, expected = runner.run(unet, *inputs), EAGER.run(unet, *inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
        assert torch.equal(runner.run(unet, *inputs), found)


def test_every_plain_layer_is_packed_and_shares_its_weight():
    unet = build(M15).requires_grad_(False)
    made = packed(unet)
    with torch.inference_mode():
        made(*inputs_of(M15))
    layers = [one for one in made.modules() if isinstance(one, PackedLinear | PackedConv2d)]
    plain = [one for one in unet.modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(layers) == len(plain) > 50
    assert all(layer.kept.packed is not None for layer in layers)
    assert all(one.kept.packed is None for one in copy.deepcopy(made).modules() if isinstance(one, PackedLinear))
    theirs = {id(weight) for weight in unet.parameters()}
    assert {id(weight) for weight in made.parameters()} == theirs


def test_with_gradients_the_plain_layers_compute():
    unet = build(M15)
    made = packed(unet)
    inputs = inputs_of(M15)
    assert torch.equal(made(*inputs), unet(*inputs))
    made(*inputs).sum().backward()
    assert all(weight.grad is not None for weight in unet.parameters())


@torch.inference_mode()
def test_one_order_of_a_convolution_is_kept_and_another_takes_its_place_when_it_lasts():
    """oneDNN's orders of a convolution of 192 channels differ between 8 and 16 cells on some processors, and are many
    times slower in each other's place."""
    plain = Conv2d(192, 192, 3, padding=1).requires_grad_(False)
    layer = PackedConv2d.of(plain)

    def convolved(side: int) -> int:
        x = torch.randn(1, 192, side, side).to(memory_format=torch.channels_last)
        found = layer.product(x)
        torch.testing.assert_close(found, plain.product(x), rtol=0, atol=1e-3)
        assert torch.equal(layer.product(x), found), "packed or not"
        return layer.kept.orders[x.shape]

    first = convolved(8)
    assert layer.kept.order == first
    other = convolved(16)
    assert layer.kept.order == first
    for _ in range(PATIENCE):
        convolved(16)
    assert layer.kept.order == other
    assert convolved(8) == first


@pytest.mark.parametrize("layer", ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"])
@torch.no_grad()
def test_weights_that_change_are_packed_anew(layer):
    unet, runner, inputs = build(M15).requires_grad_(False), PackedRunner(), inputs_of(M15)
    before = runner.run(unet, *inputs)
    unet.get_submodule(layer).weight.mul_(3)
    found, expected = runner.run(unet, *inputs), EAGER.run(unet, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    assert (found - before).abs().max() > 1e-2


@torch.inference_mode()
def test_hooks_stay_with_the_network():
    class Watcher:
        lock = Lock()

        def hook(self, *_given):
            with self.lock:
                called.append("in")

    unet, called, watcher = build(M15).requires_grad_(False), [], Watcher()
    watcher.lock = Lock()  # which nobody can copy
    unet.conv_in.register_forward_hook(watcher.hook)
    unet.register_forward_hook(lambda *_: called.append("whole"))
    PackedRunner().run(unet, *inputs_of(M15))
    assert called == ["whole"]


def test_a_type_that_is_not_multiplied_here_is_computed_as_it_is():
    assert can_pack(torch.zeros(1))
    assert can_pack(torch.zeros(1, dtype=torch.bfloat16)) == has_bfloat16()
    assert not can_pack(torch.zeros(1, device="meta"))
    unet, inputs = build(M15).double().requires_grad_(False), inputs_of(M15, dtype=torch.float64)
    inputs = (*inputs[:2], replace(inputs[2], context=inputs[2].context.double()))
    with torch.inference_mode():
        found = unet(*inputs, compute=PackedNetworks().predict)
        assert torch.equal(found, unet(*inputs))


def test_quantized_layers_stay_quantized_and_the_others_are_packed():
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32, quantize="int8-weights", backend="packed")
    service.generate("red apple", steps=1)
    (made,) = service.runner.graphs._made.values()
    assert {QuantizedLinear, PackedConv2d} <= {type(one) for one in made.modules()}


def test_where_nothing_is_packed_the_report_says_so():
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float16, backend="packed")
    assert service.runner is EAGER
    assert service.model.report.notes[-1] == "nothing is packed for torch.float16 here: computed eagerly"


def test_nothing_is_packed_while_weights_come_and_go():
    packing, eager = (
        undertow.load(pipeline_folder("sd1"), dtype=torch.float32, backend=backend) for backend in ("packed", "eager")
    )
    request = GenerationRequest(prompt="red apple", steps=2, seed=1)
    expected = eager.generate_many([request])[0].latents
    offloaded = (StepDown(unit=0, reason="to keep to the budget", economy=Economy(offloaded_layers=True)),)
    for options in (RunOptions(course=offloaded), RunOptions(budget_bytes=8 * 2**30), RunOptions(low_vram=True)):
        found = packing.engine.submit(request, options=options).result()
        close(found.latents, expected)
        assert bool(packing.runner.graphs._made) == (options.course == ())


@pytest.fixture(scope="module")
def services():
    capacity = AdapterCapacity(slots=2, rank=8)
    return [
        undertow.load(pipeline_folder("sd1"), dtype=torch.float32, backend=backend, adapter_capacity=capacity)
        for backend in ("packed", "eager")
    ]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_pictures_are_those_of_the_eager_network(services):
    requests = [GenerationRequest(prompt="red apple", steps=3, seed=seed) for seed in (1, 2)]
    for found, expected in zip(*(service.generate_many(requests) for service in services), strict=True):
        assert not torch.equal(found.latents, expected.latents), "computed by the same"
        close(found.latents, expected.latents)


def test_what_shares_a_forward_does_not_matter_where_rows_are_fixed(services):
    ours, limits = services[0], BatchLimits(padded_to=4)
    one, other = (GenerationRequest(prompt=prompt, steps=2, seed=1) for prompt in ("red apple", "blue owl"))
    together = ours.generate_many([one, other], limits=limits)[0]
    assert torch.equal(together.latents, ours.generate_many([one], limits=limits)[0].latents)


@pytest.mark.parametrize("residency", ["banked", "merged"])
def test_lora_act_in_slots_and_where_they_are_merged(services, residency, tmp_path):
    file = write(tmp_path / "style.safetensors", kohya(layers_of(services[0].unet), rank=4))
    request = GenerationRequest(prompt="red apple", steps=2, seed=1)
    adapted = replace(request, adapters=(Adapter(str(file), residency=residency),))
    found, expected = (service.generate_many([adapted])[0].latents for service in services)
    plain = [service.generate_many([request])[0].latents for service in services]
    close(found, expected)
    close(plain[0], plain[1])
    assert (found - plain[0]).abs().max() > 0.01


def test_forecasts_count_the_second_copy(services):
    ours, theirs = (service.plan(steps=2).asked_bytes for service in services)
    weights = sum(one.numel() * one.element_size() for one in services[0].unet.parameters())
    assert ours - theirs == pytest.approx(weights, rel=0.02)


def test_quantized_numbers_are_not_copied():
    subject, work = family("sd15"), Work()
    unet, copies = (component_bytes(subject, replace(work, copied=True))[name] for name in ("unet", "copies"))
    assert copies == unet == component_bytes(subject, work)["unet"]
    some = QuantizedWeights(component="unet", numbers=10**6, rows=10, schemes=("int8-weights",))
    of_some = replace(subject, quantized=(some,))
    assert component_bytes(of_some, replace(work, copied=True))["copies"] == unet - 4 * 10**6
