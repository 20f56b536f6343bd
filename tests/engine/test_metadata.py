"""A picture's description: A1111's text for other tools, JSON that repeats it."""

import pytest
from PIL import Image

from undertow.engine.metadata import a1111_text, read_png
from undertow.engine.report import Report
from undertow.engine.request import GenerationRequest
from undertow.engine.saving import save_picture
from undertow.errors import InvalidInput


def report(**settings):
    request = GenerationRequest(prompt="a (red:1.2) apple", seed=7, count=3, **settings)
    drawn = {"sampler": "dpmpp_2m", "schedule": "karras", "sigmas": (1.0, 0.0)}
    return Report(request=request, model="emoji", size=(64, 96), seconds={}, **drawn)


def test_the_text_is_a1111_s_infotext():
    text = a1111_text(report(negative_prompt="blurry, dark", guidance_scale=7.5), index=2)

    assert text == (
        "a (red:1.2) apple\nNegative prompt: blurry, dark\nSteps: 20, Sampler: dpmpp_2m, Schedule type: karras, "
        "CFG scale: 7.5, Seed: 9, Size: 96x64, Model: emoji, Version: undertow"
    )


def test_the_layer_of_the_text_is_told_when_it_was_chosen():
    assert ", Clip skip: 2, Version: undertow" in a1111_text(report(clip_skip=2), index=0)
    assert "Clip skip" not in a1111_text(report(), index=0)


def test_values_with_separators_are_quoted_as_a1111_does():
    text = a1111_text(Report(**{**vars(report()), "model": 'my, "best": model'}), index=0)
    assert 'Model: "my, \\"best\\": model"' in text


def test_a_saved_picture_tells_how_to_repeat_it(tmp_path):
    original = report(negative_prompt="ünïcode 猫", size=(64, 96), clip_skip=1)
    path = save_picture(Image.new("RGB", (96, 64)), tmp_path / "new" / "cat.png", original, index=1)

    origin = read_png(path)

    assert (origin.request, origin.index, origin.model) == (original.request, 1, "emoji")
    with Image.open(path) as image:
        assert image.info["parameters"] == a1111_text(original, 1)


def test_a_request_without_a_size_is_repeated_at_the_size_it_had(tmp_path):
    assert read_png(save_picture(Image.new("RGB", (96, 64)), tmp_path / "a.png", report())).request.size == (64, 96)


def test_a_failed_write_leaves_the_old_picture_and_no_draft(tmp_path, monkeypatch):
    path = save_picture(Image.new("RGB", (4, 4), "red"), tmp_path / "a.png", report())
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("undertow.checkpoints.files.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_picture(Image.new("RGB", (4, 4), "blue"), path, report())

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_pictures_that_others_wrote_and_files_that_are_none_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("hello")
    for name in ("plain.png", "text.png", "missing.png"):
        with pytest.raises(InvalidInput, match="a picture that undertow wrote"):
            read_png(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"steps": 0}, "steps"),
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"clip_skip": 0}, "clip_skip"),
    ],
)
def test_impossible_requests_are_refused_by_field(settings, argument):
    with pytest.raises(InvalidInput) as refusal:
        GenerationRequest(prompt="x", **settings)
    assert refusal.value.argument == argument


def test_an_empty_prompt_is_allowed_and_unknown_fields_are_not():
    assert GenerationRequest.from_json({"prompt": ""}).prompt == ""
    with pytest.raises(InvalidInput, match="cfg"):
        GenerationRequest.from_json({"prompt": "", "cfg": 7})
