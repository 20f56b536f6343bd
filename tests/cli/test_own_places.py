"""No verb writes among what it reads, or over what is there unless that is allowed."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.services import copy_pipeline, pipeline_folder
from undertow.checkpoints.write.convert import convert
from undertow.cli import main
from undertow.embedded import embedded_models
from undertow.errors import InvalidInput


def inside(path: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a text-to-image model, a class model, a LoRA's folder and a prompt in it."""
    monkeypatch.chdir(tmp_path)
    copy_pipeline("sd1", tmp_path / "em")
    shutil.copytree(embedded_models()["digits-flow"], tmp_path / "dd")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    (tmp_path / "link").symlink_to("em")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("generate a --model em --out em", "--out"),
        ("generate a --model em --out em/pictures/a.png", "--out"),
        ("generate a --model em --out link/pictures", "--out"),
        ("generate a --model link --out em", "--out"),
        ("generate a --model em --preview em/now.png", "--preview"),
        ("generate a --refiner em --out em/a.png", "--out"),
        ("generate a --model em --lora peft --out peft", "--out"),
        ("compare a --model em --out em", "--out"),
        ("sample dd --out dd/unet/x.png", "--out"),
        ("sample dd --out dd", "--out"),
        ("plan em --picture em/plan.png", "--picture"),
        ("adapters explain peft --model em --figure peft/map.png", "--figure"),
        ("convert em em/unet/diffusion_pytorch_model.safetensors --to ldm", "destination"),
    ],
)
def test_what_is_read_is_not_written_into(line, option, here, capsys):
    before = inside(here)
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert f"error: {option} is" in said.err
    assert "which is read for it; name another one" in said.err
    assert not said.out
    assert inside(here) == before


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("convert em old.safetensors --to ldm", "destination"),
        ("preprocess blur photo.png --out old.png", "--out"),
        ("plan em --picture old.png", "--picture"),
        ("samplers --plot old.png", "--plot"),
        ("adapters explain peft --model em --figure old.png", "--figure"),
        ("generate a --model em --out old.png", "--out"),
        ("generate a --model em --out a.png --preview old.png", "--preview"),
        ("generate a --model em --out a.png --report old.html", "--report"),
        ("compare a --model em --out old.png", "--out"),
        ("sample dd --out old.png", "--out"),
    ],
)
def test_what_is_there_is_replaced_only_when_that_is_allowed(line, option, here, capsys):
    Image.new("RGB", (6, 4)).save("photo.png")
    olds = [Path(name) for name in ("old.png", "old.safetensors", "old.html")]
    for old in olds:
        old.write_text("mine")
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert f"error: {option} is 'old." in said.err
    assert "expected a file that is not there yet; allow it to be replaced (--overwrite" in said.err
    assert not said.out
    assert {old.read_text() for old in olds} == {"mine"}


@pytest.mark.parametrize("verb", ["generate a --model em --out a.png", "profile em"])
def test_a_trace_replaces_nothing(verb, here, capsys):
    Path("old.json").write_text("mine")
    assert main([*verb.split(), "--trace", "old.json"]) == 2
    assert "--trace is old.json, expected a file that is not there yet" in capsys.readouterr().err
    assert Path("old.json").read_text() == "mine"


@pytest.mark.parametrize(
    "line",
    ["plan em --picture pipe.png", "generate a --model em --out pipe.png --overwrite", "samplers --plot pipe.png",
     "preprocess blur photo.png --out pipe.png --overwrite", "convert em pipe.safetensors --to ldm --overwrite"],
)  # fmt: skip
def test_a_pipe_is_neither_waited_for_nor_replaced(line, here, capsys):
    Image.new("RGB", (6, 4)).save("photo.png")
    for name in ("pipe.png", "pipe.safetensors"):
        os.mkfifo(name)
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert "expected a regular file; it is a pipe or a device" in said.err
    assert not said.out


def test_what_is_allowed_is_replaced(here):
    Image.new("RGB", (6, 4)).save("photo.png")
    Path("old.png").write_text("mine")
    assert main(["preprocess", "blur", "photo.png", "--out", "old.png", "--overwrite"]) == 0
    with Image.open("old.png") as made:
        assert made.size == (6, 4)
    Path("old.safetensors").write_text("mine")
    made = convert("em", "old.safetensors", "ldm", overwrite=True)
    assert made.stat().st_size > 10_000
    with pytest.raises(InvalidInput, match="a new or empty folder"):
        convert("em", "dd", "diffusers", overwrite=True)


@pytest.mark.parametrize("line", ["plan sd15 --picture a.png", "samplers --plot a.png"])
def test_a_missing_package_is_said_before_anything_is_printed(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("undertow.extras.find_spec", lambda module: None)
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert "this needs the package 'matplotlib': pip install 'undertow[viz]'" in said.err
    assert not said.out


def test_pictures_may_stand_beside_a_model_of_one_file(tmp_path, monkeypatch):
    """The rule is about folders that are models, not about the folder that a file is in."""
    monkeypatch.chdir(tmp_path)
    convert(pipeline_folder("sd1"), "model.safetensors", "ldm")
    assert main(["plan", "model.safetensors", "--budget", "8GB", "--picture", "plan.png"]) == 0
    assert Path("plan.png").is_file()
