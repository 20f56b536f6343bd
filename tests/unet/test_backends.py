"""Which backend `backend="auto"` takes, by what was measured with a network on this machine."""

import json
import logging
from dataclasses import replace

import pytest
import torch

import undertow
from tests.golden.minis import M15, MLCM, MPIX, MUNC, MXL, build
from undertow.attention.measurement import Machine
from undertow.unet import measure_backends as measuring
from undertow.unet.backend_measurements import (
    FOLDER,
    BackendMeasurements,
    BackendTiming,
    Forward,
    MeasuredForward,
    store_backends,
    stored_backends,
)
from undertow.unet.choose_backend import choose_backend
from undertow.unet.compiled import CompiledUNet
from undertow.unet.measure_backends import measure_backends
from undertow.unet.openvino import OpenVINONetworks
from undertow.unet.runner import EAGER, EagerRunner, OpenVINORunner, runner_named

CONFIG = M15.config
FORWARD = Forward.of(CONFIG, torch.float32, size=(16, 16))


def taken(**seconds: float) -> BackendMeasurements:
    timings = {name: BackendTiming(seconds=one, first_seconds=9.0, error=0.0) for name, one in seconds.items()}
    measured = MeasuredForward(forward=FORWARD, timings=timings, refused={}, date="2026-11-29")
    return BackendMeasurements(machine=Machine.here("cpu"), forwards=(measured,))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("seconds", "name", "words"),
    [
        ({"eager": 2.0, "openvino": 1.5}, "openvino", "the fastest: openvino 1.5 s, eager 2 s for 2 rows of 16x16"),
        ({"eager": 2.0, "openvino": 1.5, "compile": 1.2}, "background", "compile 1.2 s, openvino 1.5 s, eager 2 s"),
        ({"eager": 2.0, "packed": 1.4, "openvino": 1.5}, "packed", "the fastest: packed 1.4 s"),
        ({"eager": 2.0, "openvino": 1.95}, "eager", "no other is faster by 5%: openvino 1.95 s, eager 2 s"),
        ({"eager": 2.0, "openvino": 2.5}, "eager", "no other is faster"),
        ({"eager": 2.0}, "eager", "measured on 2026-11-29"),
    ],
)
def test_the_fastest_is_taken_where_it_is_worth_it(seconds, name, words):
    choice = choose_backend(FORWARD, taken(**seconds))
    assert choice.name == name
    assert words in str(choice)


def test_what_is_not_installed_any_more_is_not_taken():
    assert choose_backend(FORWARD, taken(eager=2.0, openvino=1.0), openvino=False).name == "eager"


@pytest.mark.parametrize(
    "wanted",
    [
        replace(FORWARD, dtype="bfloat16"),
        Forward.of(MXL.config, torch.float32, size=(16, 16)),
        replace(FORWARD, height=33, width=32),
        replace(FORWARD, rows=1, height=8, width=15),
    ],
    ids=["another type", "another network", "much larger", "much smaller"],
)
def test_a_measurement_stands_for_its_like_alone(wanted):
    measured = taken(eager=2.0, openvino=1.0)
    choice = choose_backend(wanted, measured)
    assert choice.name == "eager"
    assert choice.reason == f"nothing was measured here for {wanted}; undertow bench backends MODEL does it"
    for near in (FORWARD, replace(FORWARD, height=32, width=32), replace(FORWARD, rows=1, width=8, tokens=7)):
        assert choose_backend(near, measured).name == "openvino"


def test_the_nearest_measurement_decides_and_a_new_one_replaces_it():
    large = replace(FORWARD, height=24, width=24)
    (one,) = taken(eager=2.0, openvino=1.0).forwards
    both = taken(eager=1.0, openvino=2.0).with_forward(replace(one, forward=large))
    assert choose_backend(large, both).name == "openvino"
    assert choose_backend(FORWARD, both).name == "eager"
    assert both.with_forward(replace(one, date="2026-12-01")).forwards[-1].date == "2026-12-01"
    assert len(both.with_forward(one).forwards) == 2


@pytest.mark.parametrize("change", ["format", "machine", "features", "forwards"])
def test_what_was_measured_elsewhere_is_not_read(cache, change):
    """Another format, PyTorch or number of threads, other instructions; or a damaged file."""
    measured = taken(eager=2.0, openvino=1.0)
    file = store_backends(measured)
    assert file.parent == cache / FOLDER
    assert stored_backends("cpu") == measured
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, change: [{"forward": {}}] if change == "forwards" else "another"}))
    assert stored_backends("cpu") is None
    assert stored_backends("mps") is None


def test_a_measurement_compares_times_and_refuses(monkeypatch):
    """Medians of turns, by a clock that ticks at each question; one backend fails, one is wrong."""

    class Wrong(EagerRunner):
        def run(self, network, *inputs):
            return 2 * super().run(network, *inputs)

    def named(name):
        if name == "compile":
            raise RuntimeError("no compiler\nat all")
        return Wrong() if name == "openvino" else EAGER

    unet, ticks = build(M15).requires_grad_(False), iter(range(100))
    monkeypatch.setattr(measuring, "runner_named", named)
    found = measure_backends(
        unet, FORWARD, ("eager", "compile", "openvino", "background"), repeats=3, clock=lambda: next(ticks) ** 2
    )
    # Squares of ticks: intervals of 1 and, after the refused ones, of 21, 29 and 37 for eager.
    assert {name: one.seconds for name, one in found.timings.items()} == {"eager": 21.0, "background": 25.0}
    assert found.timings["eager"].first_seconds == 1.0
    assert found.timings["background"].error == 0
    assert found.refused == {"compile": "it failed: no compiler", "openvino": "it is wrong: relative error 1"}


@pytest.mark.parametrize("mini", [MLCM, MXL, MPIX, MUNC], ids=["lcm", "sdxl", "classes", "pixels"])
def test_every_family_is_measured(mini):
    unet = build(mini).requires_grad_(False)
    forward = Forward.of(mini.config, torch.float32, rows=1, size=(16, 16), tokens=5)
    assert measure_backends(unet, forward, ("eager",), repeats=1).timings.keys() == {"eager"}


def test_backends_are_measured_where_they_can_run(monkeypatch):
    unet = build(MUNC).requires_grad_(False)
    forward = Forward.of(MUNC.config, torch.float64, size=(16, 16))
    assert measure_backends(unet.double(), forward, repeats=1).refused == {
        "packed": "nothing is packed for this type on this device",
        "openvino": "it does not compute in float64",
    }
    monkeypatch.setattr(measuring, "is_installed", lambda name: False)
    found = measure_backends(unet.float(), forward, repeats=1)
    assert found.refused == {"openvino": "it is not installed: pip install 'undertow[openvino]'"}
    assert found.timings.keys() == {"eager", "packed"}


def test_auto_loads_what_was_measured_and_says_why(cache, caplog):
    with caplog.at_level(logging.INFO, "undertow"):
        service = undertow.load("emoji", dtype=torch.float32, backend="auto")
        assert type(undertow.load_unet("emoji", dtype=torch.float32, backend="auto")) is undertow.UNet
    assert service.runner is EAGER
    (said,) = (line for line in service.model.report.notes if line.startswith("backend"))
    assert said.startswith("backend eager: nothing was measured here for 2 rows of 16x16 cells in float32; undertow ")
    assert sum(said in record.message for record in caplog.records) == 2

    (measured,) = taken(eager=2.0, openvino=1.0).forwards
    forward = Forward.of(service.config, torch.float32)
    store_backends(BackendMeasurements(machine=Machine.here("cpu"), forwards=(replace(measured, forward=forward),)))
    service = undertow.load("emoji", dtype=torch.float32, backend="auto")
    assert isinstance(service.runner, OpenVINORunner)
    assert service.model.report.notes[-1].startswith("backend openvino: the fastest: openvino 1 s, eager 2 s")
    unet = undertow.load_unet("emoji", dtype=torch.float32, backend="auto")
    assert isinstance(unet, CompiledUNet)
    assert isinstance(unet._graphs, OpenVINONetworks)


def test_auto_is_no_runner():
    with pytest.raises(undertow.InvalidInput, match="backend is 'auto'"):
        runner_named("auto")
