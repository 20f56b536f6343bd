"""What is given for an argument is refused by name at the door of every public function."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import undertow
from tests.services import service_of
from undertow import (
    Adapter,
    AttentionConfig,
    BatchLimits,
    Conditioning,
    GenerationRequest,
    InvalidInput,
    Region,
    UNet,
    UNetConfig,
)
from undertow.doors import nearest
from undertow.engine.events import StepEvent


def cancel(event: StepEvent) -> None:
    event.cancel()


@pytest.mark.slow
def test_wrong_values_are_refused_by_every_public_function():
    """In a process of its own: what tests check annotations with would refuse first, and differently."""
    walk = [sys.executable, "-m", "tests.wrong_values"]
    done = subprocess.run(walk, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.stdout == "walked\n", done.stdout + done.stderr


def test_of_many_names_a_message_lists_a_few():
    many = [f"layer.{number}" for number in range(201)]
    assert nearest("bogus*", many) == "it has 201, such as layer.0, layer.1, layer.2"
    assert nearest("bogus*", many[:2]) == "it has layer.0, layer.1"
    assert nearest("layr.7", many) == "did you mean 'layer.7'?"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: GenerationRequest(prompt="a", steps="three"),
            "steps is 'three', expected a number, which text is not",
        ),
        (lambda: GenerationRequest(prompt="a", seed=None), "seed is None, expected a valid integer"),
        (lambda: GenerationRequest(steps=3), "prompt is missing, expected a value; what to draw"),
        (lambda: GenerationRequest("a"), "given 'a' without a name, expected every value by its name; write prompt="),
        (lambda: GenerationRequest(prompt="a", num_inference_steps=3), "here it is called 'steps'"),
        (lambda: GenerationRequest(prompt="a", cfg_scale=3), "here it is called 'guidance_scale'"),
        (lambda: GenerationRequest(prompt="a", stepps=3), "did you mean 'steps'?"),
        (lambda: service_of("sd1").generate("a", callback=print), "here it is called 'observe'"),
        (lambda: service_of("sd1").generate("a", guidance=3), "here it is called 'guidance_scale'"),
        (lambda: service_of("sd1").generate("a", width=64), "here it is called 'size'"),
        (lambda: service_of("sd1").generate(["a"]), "prompt is ['a'], expected text"),
        (lambda: service_of("sd1").generate(), "prompt is missing, expected a value"),
        (lambda: service_of("sd1").generate("a", observe=3), "observe is 3, expected a function"),
        (
            lambda: service_of("sd1").generate_many("owl"),
            "a list, each entry a GenerationRequest or text; put it into a list: [",
        ),
        (lambda: service_of("sd1").run(3), "request is 3, expected a GenerationRequest or text"),
        (
            lambda: undertow.load("emoji", device="banana"),
            "device is 'banana', expected a device such as cpu, cuda, cuda:1 or mps",
        ),
        (lambda: undertow.load("emoji", torch_dtype=torch.float16), "here it is called 'dtype'"),
        (lambda: undertow.load("emoji", dtype="float16"), "expected torch.float32, torch.float16 or torch.bfloat16"),
        (lambda: undertow.load("emoji", adapter_capacity=3), "expected an AdapterCapacity or None"),
        (lambda: undertow.load(3), "source is 3, expected text or a Path"),
        (lambda: Adapter("mosaic", 0.5), "Adapter is given 0.5 without a name, expected only source without one"),
        (
            lambda: Adapter("mosaic", weight=0.5),
            "adapter.weight is 0.5, expected a field of Adapter; here it is called",
        ),
        (
            lambda: Adapter("edges", image=torch.zeros(3, 8, 8)),
            "image is Tensor, expected a PIL image, a NumPy array, or a picture's file by its path or its bytes",
        ),
        (
            lambda: GenerationRequest(prompt="a", image=torch.zeros(3, 8, 8)),
            "image is Tensor, expected a PIL image, a NumPy array, or a picture's file by its path or its bytes",
        ),
        (lambda: Adapter("mosaic", scale="strong"), "adapter.scale is 'strong', expected a number, which text is not"),
        (lambda: Region(prompt="a", box=(0, 0, 1)), "region.box.3 is missing"),
        (lambda: Region("a", 5), "Region is given 'a' without a name, expected every value by its name; write prompt="),
        (lambda: GenerationRequest(prompt="a", size="64x64"), "size is '64x64', expected a pair of height and width"),
        (lambda: GenerationRequest(prompt="a", size=(64, 64, 3)), "size is (64, 64, 3), expected a pair of height"),
        (lambda: service_of("sd1").generate("a", width=64, height=64), "'size', a pair of height and width"),
        (lambda: UNetConfig.sd15(5), "arguments is 5, expected none: this function takes no arguments"),
        (lambda: BatchLimits(rows="two"), "rows is 'two', expected a whole number or None"),
        (lambda: UNet(UNetConfig.sd15), "config is of type method, expected a UNetConfig"),
        (lambda: UNet(), "config is missing"),
        (lambda: AttentionConfig(num_head=2, head_dim=2), "did you mean 'num_heads'?"),
        (lambda: Conditioning(contxt=None), "did you mean 'context'?"),
    ],
)
def test_the_sentence_names_the_argument_the_value_and_what_was_expected(call, words):
    with pytest.raises(InvalidInput) as refusal:
        call()
    assert words in str(refusal.value)


def test_a_prompt_is_taken_for_a_request():
    service = service_of("sd1")
    assert service.run("a", observe=cancel).report.request == GenerationRequest(prompt="a")
    asked = ["a", GenerationRequest(prompt="b")]
    drawn = service.generate_many(asked, observe=cancel)
    assert [one.report.request.prompt for one in drawn] == ["a", "b"]
    assert service.engine.submit("c", cancel).result().report.request.prompt == "c"


def test_one_timestep_is_that_of_all_rows():
    unet = UNet(UNetConfig.cifar10())
    latents, given = torch.randn(2, 3, 32, 32), Conditioning(class_labels=torch.tensor([1, 2]))
    with torch.inference_mode():
        assert torch.equal(unet(latents, 5, given), unet(latents, torch.tensor([5, 5]), given))
