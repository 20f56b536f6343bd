"""`undertow bench`, and what is then chosen: of kernels as `undertow inspect --attention` says, and of backends."""

import json

import pytest

from tests.embedded import FACTOR, SIDE
from undertow.attention.measurement import stored_measurements
from undertow.cli import main
from undertow.unet import measure_backends
from undertow.unet.backend_measurements import stored_backends


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_a_measurement_is_shown_kept_and_then_decides(cache, capsys):
    assert main(["inspect", "emoji", "--attention"]) == 0
    before = capsys.readouterr().out
    assert "nothing was measured here" in before
    assert "fused: one pass" in before

    assert main(["bench", "attention", "emoji", "--repeats", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"emoji, {SIDE}x{SIDE}, 2 rows, float32" in shown
    assert "64 x 77" in shown
    assert "not measured: cudnn, because it runs on cuda only" in shown
    (file,) = (cache / "attention").iterdir()
    assert str(file) in shown
    calls = stored_measurements("cpu").calls
    assert {(one.call.queries, one.call.keys) for one in calls} == {(64, 64), (64, 77)}
    for one in calls:
        assert {"math", "sdpa", "chunked", "sliced", "flash"} <= set(one.timings)

    content = json.loads(file.read_text())
    for call in content["calls"]:
        call["timings"]["math"]["seconds"] = 1e-9
    file.write_text(json.dumps(content))
    assert main(["inspect", "emoji", "--attention"]) == 0
    after = capsys.readouterr().out
    assert "math: the fastest: 1e-06 ms at 64 x 77, 6 heads 32 wide, measured" in after
    assert "nothing was measured here" not in after


def test_nothing_is_kept_on_request(cache, capsys):
    assert main(["bench", "attention", "digits-flow", "--repeats", "1", "--no-keep", "--precision", "bf16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert not list(cache.iterdir())


def test_backends_are_timed_with_the_model_and_one_is_chosen(cache, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(measure_backends, "is_installed", lambda _: False)
    monkeypatch.setattr(measure_backends, "packs_anything", lambda _: False)
    command = ["bench", "backends", "emoji", "--repeats", "1", "--rows", "1"]
    assert main([*command, "--no-keep"]) == 0
    assert not list(cache.iterdir())
    assert "kept" not in capsys.readouterr().out
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "emoji, 1 row of 16x16 cells in float32" in shown
    assert "not measured: packed, because nothing is packed for this type on this device" in shown
    assert "not measured: openvino, because it is not installed: pip install 'undertow[openvino]'" in shown
    assert "--backend auto takes backend eager: no other is faster by 5%: eager 0." in shown
    (file,) = (cache / "backends").iterdir()
    assert f"kept: {file}" in shown
    (one,) = stored_backends("cpu").forwards
    assert one.timings.keys() == {"eager"}

    draw = ["generate", "a plum", "--backend", "auto", "--steps", "1", "--out", str(tmp_path / "a.png")]
    assert main(draw) == 0
    assert "backend eager: no other is faster by 5%: eager 0." in capsys.readouterr().err
    file.unlink()
    assert main([*draw, "--overwrite"]) == 0
    assert "undertow bench backends MODEL does it" in capsys.readouterr().err


@pytest.mark.parametrize("bench", ["attention", "backends"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "66x64"], f"--size is 66x64, expected multiples of {FACTOR}"),
        (["--size", "64b"], "WIDTHxHEIGHT"),
        (["nothing"], "no such embedded model"),
        (["--rows", "0"], "--rows"),
        (["--device", "banana"], "--device"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(arguments, words, bench, cache, capsys):
    assert main(["bench", bench, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
