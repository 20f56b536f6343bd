"""A picture that is drawn again: in a process of its own, and compared byte by byte."""

import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import undertow
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


def test_the_fresh_process_has_as_many_threads_as_this_one(tmp_path, monkeypatch):
    asked = []

    def run(words, *, env, **rest):
        asked.append((words, env))
        Image.new("RGB", (8, 8)).save(words[words.index("--out") + 1])
        return type("Run", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(redraw.subprocess, "run", run)
    redraw.redrawn(tmp_path / "pinned.png", ["--model", "emoji"])
    ((words, env),) = asked
    assert words[1:5] == ["-m", "undertow", "generate", "--from"]
    assert env["OMP_NUM_THREADS"] == str(torch.get_num_threads())
    assert env["PATH"] == os.environ["PATH"]
