"""`undertow train controlnet` and `undertow train image-prompt` from end to end, on a tiny random pipeline."""

import pytest
from PIL import Image

from recipes.emoji.vision import write_vision
from tests.services import copy_pipeline
from tests.training.adapter_runs import image_encoder
from undertow.adapters.control.control_file import read_control
from undertow.adapters.image_prompt.image_prompt_file import read_image_prompt
from undertow.cli import main
from undertow.loading import load_unet
from undertow.training.log import read_records

SHORT = ["--steps=2", "--batch-size=2", "--threads=1"]


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, pictures with names for captions, a picture for each of another kind, and an image encoder."""
    root = tmp_path_factory.mktemp("adapters")
    copy_pipeline("sd1", root / "pipeline")
    for kind in ("pictures", "others"):
        (root / kind).mkdir()
        for name, color in (("red apple", (255, 0, 0)), ("blue plum", (0, 0, 255))):
            Image.new("RGB", (40, 32), color).save(root / kind / f"{name}.png")
    write_vision(image_encoder(), root / "encoder")
    return root


def command(folder, verb, out, *more):
    return ("train", verb, "--model", folder / "pipeline", "--images", folder / "pictures", "--out", out, *SHORT, *more)


@pytest.fixture
def refused(folder, tmp_path, capsys):
    """Runs a command line that must be refused in one sentence, which it returns."""

    def check(verb, *more) -> str:
        assert run(*command(folder, verb, tmp_path / "run", *more)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return check


@pytest.mark.slow
def test_a_controlnet_is_trained_on_edges_and_on_a_folder_of_hints(folder, tmp_path, capsys):
    out = tmp_path / "edges"
    assert run(*command(folder, "controlnet", out, "--hint", "canny", "--gradient-checkpointing")) == 0
    shown = capsys.readouterr().out
    assert f"trained: {out / 'edges'}" in shown
    assert f"a sample: {out / 'edges.png'}" in shown
    with Image.open(out / "edges.png") as sample:
        assert "edges" in sample.info["undertow"], "drawn with what was trained"
    assert [record.step for record in read_records(out / "log.jsonl")] == [2]
    unet = load_unet(folder / "pipeline")
    assert read_control(out / "edges", unet).network.hint_factor == 2
    # The same command has nothing left to do; another hint is another run.
    assert run(*command(folder, "controlnet", out, "--hint", "canny", "--title", "again", "--no-sample")) == 0
    assert (out / "again" / "config.json").is_file()
    assert run(*command(folder, "controlnet", out, "--hint", folder / "others")) == 2
    assert "hints was" in capsys.readouterr().err


@pytest.mark.slow
def test_an_image_prompt_is_trained_with_references(folder, tmp_path, capsys):
    out, more = tmp_path / "look", ("--encoder", folder / "encoder", "--references", folder / "others")
    assert run(*command(folder, "image-prompt", out, *more, "--precision=bf16", "--tokens=3")) == 0
    shown = capsys.readouterr().out
    assert f"trained: {out / 'look.safetensors'}" in shown
    assert f"a sample: {out / 'look.png'}" in shown
    found = read_image_prompt(out / "look.safetensors", load_unet(folder / "pipeline"))
    assert (found.variant, found.tokens_per_image, found.feature_dim) == ("base", 3, 12)


def test_requests_that_cannot_be_trained_are_one_sentence(folder, tmp_path, refused):
    assert "canny, soft-edges" in refused("controlnet", "--hint", "hed")
    assert "a network that reads no text" in refused("controlnet", "--hint", "canny", "--model", "digits-flow")
    assert "--dropout-captions is '2', expected a number in [0, 1)" in refused(
        "controlnet", "--hint", "canny", "--dropout-captions", 2
    )
    assert "the model has no image_encoder" in refused("image-prompt")
    assert "nowhere" in refused("image-prompt", "--encoder", tmp_path / "nowhere")
    assert "--dropout-both is '(0.05, 0.05, 1.0)', expected from 0 on, and together less than 1" in refused(
        "image-prompt", "--dropout-both", 1
    )
    encoder = ("--encoder", folder / "encoder")
    assert "no such folder" in refused("image-prompt", *encoder, "--references", tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
