"""What a result is in Python: pictures that save themselves, one line when printed, pictures in a notebook."""

import io
import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.services import service_of
from undertow import GenerationRequest, GenerationResult, InvalidInput
from undertow.engine.events import PictureEvent
from undertow.engine.metadata import read_description
from undertow.engine.report import Report
from undertow.errors import RequestFailed


def result(count: int = 1, *, cancelled: bool = False) -> GenerationResult:
    request = GenerationRequest(prompt='a "red" apple', seed=7, count=count)
    report = Report(
        sampler="dpmpp_2m",
        request=request,
        model="/m/emoji",
        size=(48, 64),
        sigmas=(1.0, 0.0),
        seconds={},
        cancelled=cancelled,
    )
    images = [] if cancelled else [Image.new("RGB", (64, 48), (k, 0, 0)) for k in range(count)]
    return GenerationResult(images=images, latents=torch.zeros(count, 4, 6, 8), report=report)


def test_a_result_saves_its_pictures_with_what_repeats_them(tmp_path):
    assert result().save(tmp_path / "apple.jpg") == [tmp_path / "apple.jpg"]
    paths = result(2).save(tmp_path / "v1.5", name="{seed}-{prompt}")
    assert [path.relative_to(tmp_path / "v1.5").as_posix() for path in paths] == [
        "7-a-red-apple.png",
        "8-a-red-apple.png",
    ]
    assert [read_description(path).index for path in paths] == [0, 1]
    assert [path.name for path in result(2).save(tmp_path / "a.webp")] == ["a-1.webp", "a-2.webp"]


def test_a_result_replaces_nothing_unless_told(tmp_path):
    first = result().save(tmp_path / "apple.png")
    with pytest.raises(InvalidInput, match=r"path is '.*apple.png', .* not there yet; .* in Python overwrite=True\)"):
        result().save(tmp_path / "apple.png")
    assert result().save(tmp_path / "apple.png", overwrite=True) == first
    assert [path.name for _ in range(2) for path in result().save(tmp_path / "all")] == ["7.png", "7-2.png"]


def test_a_result_prints_as_one_line_without_tensors():
    assert repr(result()) == "<GenerationResult: 1 picture of 64x48 by emoji, dpmpp_2m, seed 7>"
    assert repr(result(3)) == "<GenerationResult: 3 pictures of 64x48 by emoji, dpmpp_2m, seeds 7 to 9>"
    assert repr(result(cancelled=True)) == "<GenerationResult: no pictures by emoji, dpmpp_2m, seed 7, cancelled>"


def test_a_notebook_shows_one_picture_as_such_and_several_side_by_side():
    single = result()._repr_png_()
    assert single is not None
    with Image.open(io.BytesIO(single)) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))
    assert result()._repr_html_() is None
    several = result(2)
    page = several._repr_html_()
    assert several._repr_png_() is None
    assert page is not None
    assert page.count("<img src=") == 2
    assert 'title="seed 8" alt="a &quot;red&quot; apple"' in page
    assert (result(cancelled=True)._repr_png_(), result(cancelled=True)._repr_html_()) == (None, None)


def test_each_picture_is_handed_over_before_the_next_is_decoded():
    service = service_of("sd1")
    events: list[PictureEvent] = []
    drawn = service.generate("apple", count=3, seed=5, steps=1, size=(32, 32), sampler="euler", drawn=events.append)
    assert [(event.request, event.picture) for event in events] == [(0, 0), (0, 1), (0, 2)]
    for event, image in zip(events, drawn.images, strict=True):
        assert np.array_equal(np.asarray(event.image), np.asarray(image))
        assert event.report.size == (32, 32)


def test_what_the_taker_of_a_picture_raises_fails_the_request():
    def full(event: PictureEvent) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RequestFailed, match=r"request 0, picture 0, when it was there: OSError: .*No space left"):
        service_of("sd1").generate("apple", steps=1, size=(32, 32), sampler="euler", drawn=full)


def test_an_interruption_keeps_what_was_handed_over():
    taken: list[int] = []

    def interrupted(event: PictureEvent) -> None:
        if event.picture == 1:
            raise KeyboardInterrupt
        taken.append(event.picture)

    service = service_of("sd1")
    with pytest.raises(KeyboardInterrupt):
        service.generate("apple", count=3, steps=1, size=(32, 32), sampler="euler", drawn=interrupted)
    assert taken == [0]
    assert service.engine.idle


def test_loggers_under_undertow_say_what_was_done(caplog):
    caplog.set_level(logging.INFO, logger="undertow")
    service_of("sd1").generate("apple", seed=5, steps=1, size=(32, 32), sampler="euler")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "undertow.engine.request_run"]
    assert re.fullmatch(
        r"request 0: <GenerationResult: 1 picture of 32x32 by pipeline, euler, seed 5> in \d+\.\d s", line
    )
