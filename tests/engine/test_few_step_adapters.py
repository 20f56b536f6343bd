"""A LoRA whose name says that it was made for few steps, drawn with as if it were not."""

import shutil

import pytest

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import service_of
from undertow import Adapter, HighResolution
from undertow.engine.events import StepEvent

SUITS = "--sampler lcm --schedule sgm_uniform --steps 4 --guidance 1 suits it"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    layers = {name: shape for name, shape in layers_of(service_of("sd1").unet).items() if is_attention(name)}
    return write(tmp_path_factory.mktemp("loras") / "owl-turbo.safetensors", kohya(layers))


def cancel(event: StepEvent) -> None:
    event.cancel()


def notes(adapter: Adapter, **settings) -> list[str]:
    request = {"size": 32, "adapters": adapter, **settings}
    report = service_of("sd1").generate("owl", observe=cancel, **request).report
    return [line for line in report.decisions if "few steps" in line]


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps": 9, "guidance_scale": 1.0}, {"steps": 4, "guidance_scale": 5.0}, {"steps": 4, "guidance_scale": 2.5}],
    ids=str,
)
def test_many_steps_or_guidance_are_noted_with_what_suits_it(file, settings):
    assert notes(Adapter(file), **settings) == [f"owl-turbo was made for few steps, as its name says: {SUITS}"]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 8, "guidance_scale": 2.0},
        {"sigmas": (14.0, 5.0, 1.0, 0.0), "guidance_scale": 1.0},
        {"steps": 4, "guidance_method": "none", "high_resolution": HighResolution()},
    ],
    ids=str,
)
def test_few_steps_are_not_noted(file, settings):
    assert notes(Adapter(file), **settings) == []


def test_one_that_does_nothing_or_is_called_otherwise_is_not_noted(file, tmp_path):
    assert notes(Adapter(file, scale=0.0)) == []
    assert notes(Adapter(shutil.copy(file, tmp_path / "owl.safetensors"))) == []
