"""Forecasts of quantized models: weights as they are, and products never below what the allocator gives out."""

from dataclasses import replace

import pytest

from benchmarks.lib.memory_cases import NARROW
from benchmarks.lib.memory_stages import measured
from tests.few import few
from tests.memory.test_forecast import HERE
from undertow.memory.forecast import component_bytes, forecast
from undertow.memory.work import Work
from undertow.processor import multiplies_int8
from undertow.quantization import QuantizedWeights

SD1, SDXL = NARROW[0], NARROW[3]
ABOVE, SLACK = 1.3, 2**19
"""An upper bound: layers of several sizes are taken for the largest at once."""


def quantized(subject, scheme, component="unet"):
    weights = QuantizedWeights(component=component, numbers=1000, rows=10, schemes=(scheme,))
    return replace(subject, quantized=(weights,))


CASES = (
    (SD1, "denoise", (64, 72)),
    (SDXL, "text", (64, 64)),
    (SDXL, "denoise", (40, 128)),
    (SDXL, "denoise", (16, 16)),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["int8-weights", *["int8-dynamic"] * multiplies_int8()])
@pytest.mark.parametrize(
    ("subject", "stage", "size"),
    few(
        [
            (SD1, "denoise", (64, 72)),
            (SDXL, "text", (64, 64)),
            (SDXL, "denoise", (40, 128)),
            (SDXL, "denoise", (16, 16)),
        ],
        2,
    ),
)
def test_never_below_the_allocator(subject, stage, size, scheme, dtype):
    work = Work(size=size, dtype=dtype, kernel="sdpa", kept_text=False)
    subject = quantized(subject, scheme, "unet" if stage == "denoise" else "text")
    real, expected = measured(stage, subject, work), forecast(subject, work, HERE).stage(stage).activation_bytes
    assert real <= expected <= ABOVE * real + SLACK


def test_weights_are_counted_as_they_are():
    plain = component_bytes(SD1, Work(dtype="bfloat16"))
    found = component_bytes(quantized(SD1, "int8-weights"), Work(dtype="bfloat16"))
    assert plain["unet"] - found["unet"] == 1000 - 4 * 10
    assert plain["text"] == found["text"]


def test_changed_text_encoders_are_plain():
    """LoRA are added to the numbers that codes stand for, while the prompt is read."""
    subject = quantized(SD1, "int8-weights", "text")
    plain, changed = (forecast(subject, Work(loras=count), HERE).stage("text") for count in (0, 1))
    extra = component_bytes(SD1, Work())["text"]
    assert changed.weight_bytes - plain.weight_bytes >= extra
