"""A picture that is drawn again: in a process of its own, and compared byte by byte."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import undertow
from undertow import Adapter
from undertow.embedded import embedded_models
from undertow.inspection.doctor import redraw


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_bytes_and_one_that_differs_is_found(tmp_path, monkeypatch):
    service = undertow.load("emoji")
    path = tmp_path / "pinned.png"
    service.generate("red apple on white background", steps=2, seed=3).save(path)
    processes, run = [], redraw.subprocess.run
    monkeypatch.setattr(redraw.subprocess, "run", lambda *args, **rest: processes.append(args) or run(*args, **rest))
    request = replace(undertow.GenerationRequest(prompt="red apple on white background", seed=3), steps=2)
    assert service.diagnose(request, only=["provenance"], picture=path).findings == ()
    assert len(processes) == 1

    with Image.open(path) as image:
        texts, edited = dict(image.text), image.convert("RGB")
    first, *rest = edited.tobytes()
    edited = Image.frombytes("RGB", edited.size, bytes([first ^ 1, *rest]))
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    edited.save(path, pnginfo=info)
    (finding,) = service.diagnose(request, only=["provenance"], picture=path).findings
    assert finding.rule == "not-reproduced"
    assert f"1 of {edited.width * edited.height * 3:,} bytes differ, by 1 at most" in finding.evidence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drawn.png", "drawn.jpg", "drawn.webp"])
def test_adapters_with_pictures_and_files_are_drawn_again_in_each_format(tmp_path, name):
    """Each adapter was named as a LoRA with a scale, without its picture; and JPEG was held against PNG."""
    own = tmp_path / "own.safetensors"
    shutil.copy(embedded_models()["emoji"] / "adapters" / "line-drawing.safetensors", own)
    control = Image.new("RGB", (128, 128))
    control.paste("white", (30, 30, 90, 34))
    adapters = (
        Adapter("mosaic", scale=(0.3, 0.6)),
        Adapter("edges", image=control, scale=0.8, end=0.6),
        Adapter("references", image=control),
        Adapter(own, scale=0.4),
    )
    request = undertow.GenerationRequest(prompt="owl", seed=3, steps=2, adapters=adapters)
    service = undertow.load("emoji")
    service.run(request).save(tmp_path / name)
    asked = replace(request, adapters=(Adapter("mosaic"), *adapters[1:]))  # the picture is drawn as it was all the same
    found = service.diagnose(asked, only=["not-reproduced"], picture=tmp_path / name)
    assert (found.findings, found.skipped) == ((), {})


def test_the_fresh_process_has_as_many_threads_as_this_one(tmp_path, monkeypatch):
    asked = []

    def run(words, *, env, **rest):
        asked.append((words, env))
        Image.new("RGB", (8, 8)).save(words[words.index("--out") + 1])
        return type("Run", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(redraw.subprocess, "run", run)
    Image.new("RGB", (8, 8)).save(tmp_path / "pinned.png")
    redraw.redrawn(tmp_path / "pinned.png", ["--model", "emoji"])
    ((words, env),) = asked
    assert words[1:5] == ["-m", "undertow", "generate", "--from"]
    assert env["OMP_NUM_THREADS"] == str(torch.get_num_threads())
    assert env["PATH"] == os.environ["PATH"]
