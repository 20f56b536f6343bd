"""What a CUDA device takes beyond its tensors, from cases that were measured."""

import pytest

from undertow.cache_folder import VARIABLE
from undertow.memory.calibration import (
    MARGIN,
    UNCALIBRATED,
    Measured,
    calibrated,
    calibration_file,
    read_calibration,
    store_calibration,
)
from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.machine import Machine, this_machine
from undertow.memory.work import Work

MIB = 2**20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))


def cases(stage, *pairs):
    return [Measured(stage=stage, activation_bytes=a * MIB, excess_bytes=b * MIB) for a, b in pairs]


def test_a_line_is_found_as_it_is():
    """Three cases on 1.5 x + 40 MiB, a fourth below: the line through the three, and the margin on top."""
    found = calibrated("a device", "2.11", cases("decode", (100, 190), (200, 340), (400, 640), (300, 400)))
    (line,) = found.stages
    assert line.factor == pytest.approx(1.5 * MARGIN)
    assert line.more_bytes == pytest.approx(40 * MARGIN * MIB, rel=1e-6)


def test_it_is_never_below_what_was_measured():
    measured = [*cases("denoise", (10, 60), (100, 130), (50, 51)), *cases("decode", (100, 90)), *cases("text", (1, 40))]
    found = calibrated("a device", "2.11", measured)
    for case in measured:
        assert found.reserved(case.stage, case.activation_bytes) >= MARGIN * case.excess_bytes - 1
    assert found.reserved("decode", 100 * MIB) == 100 * MIB, "no allocator gives out less than the tensors"
    assert found.reserved("image", MIB) == max(one.of(MIB) for one in found.stages), "of a stage that nobody measured"


def test_plans_of_cuda_use_what_was_stored_and_those_of_a_cpu_do_not():
    work, sd15 = Work(dtype="float16"), family("sd15")
    plain = forecast(sd15, work, Machine(device="cuda")).stage("decode")
    machine = this_machine().on("cuda")
    assert machine.calibration == UNCALIBRATED
    guessed = forecast(sd15, work, machine).stage("decode")
    assert guessed.activation_bytes == round(2.3 * plain.activation_bytes) + 64 * MIB
    assert sum(guessed.by_component.values()) == guessed.activation_bytes
    store_calibration(calibrated("a device", "2.11", cases("decode", (100, 150))))
    assert read_calibration().device == "a device"
    known = forecast(sd15, work, this_machine().on("cuda")).stage("decode").activation_bytes
    assert plain.activation_bytes < known < guessed.activation_bytes
    assert this_machine().on("cpu").calibration is None
    calibration_file().write_text('{"stages": 3}')
    assert read_calibration() == UNCALIBRATED
