"""What --debug sees (R176-R178, R181)."""

import time

import pytest
import torch

from undertow.engine.debug import Debug
from undertow.engine.watch import Watch, describe
from undertow.errors import InvalidInput, NonFiniteError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nan", Debug(nan=True)),
        ("timing, NaN", Debug(nan=True, timing=True)),
        ("all", Debug(nan=True, timing=True, shapes=True, vae=True, sampler=True, layers=True)),
        ("vae,sampler", Debug(vae=True, sampler=True)),
        (True, Debug.parse("all")),
        (False, Debug()),
        ("", Debug()),
    ],
)
def test_flags_are_a_comma_list_or_all(text, expected):
    assert Debug.parse(text) == expected


def test_an_unknown_flag_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="all, or a comma list of timing, nan, shapes, vae, sampler, layers"):
        Debug.parse("nan,vay")


def test_a_non_finite_tensor_stops_with_its_name_counts_and_statistics():
    tensor = torch.tensor([1.0, 3.0, float("nan"), float("inf"), float("-inf")])

    with pytest.raises(NonFiniteError) as stop:
        Watch(debug=Debug(nan=True)).see("step_0_noise_uncond", tensor)

    assert stop.value.layer == "step_0_noise_uncond"
    assert "NaN 1/5, Inf 2/5, min 1, max 3, mean 2, std 1" in str(stop.value)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_one_number_that_is_none_is_enough(bad):
    with pytest.raises(NonFiniteError):
        Watch(debug=Debug(nan=True)).see("vae_input", torch.tensor([1.0, float(bad), 3.0]))
    Watch(debug=Debug(nan=True)).see("vae_input", torch.tensor([1.0, 3.0]))


def test_the_remedy_names_the_precision_that_overflowed():
    half = torch.tensor([float("inf")], dtype=torch.float16)
    for name, option in (("vae_output", "--vae-precision"), ("step_3_latents", "--precision")):
        with pytest.raises(NonFiniteError, match=f"try {option} bf16 or f32"):
            Watch(debug=Debug(nan=True)).see(name, half)


def test_without_the_flag_nothing_is_looked_at():
    watch = Watch()
    watch.see("latents", torch.tensor([float("nan")]))
    assert watch.lines == []


def test_shapes_note_every_tensor_that_passes():
    watch = Watch(debug=Debug(shapes=True))
    watch.see("text_context", torch.zeros(1, 77, 8, dtype=torch.bfloat16))
    assert watch.lines == ["text_context: shape [1, 77, 8] bfloat16, NaN 0/616, Inf 0/616, min 0, max 0, mean 0, std 0"]


def test_describing_nothing_finite_does_not_fail():
    assert describe(torch.full((2,), float("nan"))).endswith("NaN 2/2, Inf 0/2, nothing finite")


def test_stages_add_up_and_timing_notes_them():
    watch = Watch(debug=Debug(timing=True))
    for _ in range(2):
        with watch.stage("denoise"):
            time.sleep(0.01)
    assert watch.seconds["denoise"] >= 0.02
    assert [line.split(":")[0] for line in watch.lines] == ["denoise", "denoise"]
