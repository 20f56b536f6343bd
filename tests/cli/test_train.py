"""`undertow train` and `sample` from end to end, on tiny models and on the digits that ship."""

import json

import pytest
from PIL import Image

from undertow.cli import main
from undertow.training.log import read_records

TINY = [
    "--size=8", "--steps=4", "--batch-size=8", "--checkpoint-every=2", "--cpu", "--set=log_every=1",
    "--set=unet.block_out_channels=[8,16]", "--set=unet.attention_head_dim=8",
    '--set=unet.down_block_types=["DownBlock2D","AttnDownBlock2D"]',
    '--set=unet.up_block_types=["AttnUpBlock2D","UpBlock2D"]',
]  # fmt: skip


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def refused(capsys):
    """Runs a command line that must be refused in one sentence, which it returns."""

    def check(*arguments) -> str:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return check


@pytest.mark.parametrize("objective", ["ddpm", pytest.param("flow", marks=pytest.mark.slow)])
def test_digits_are_trained_sampled_and_trained_on(tmp_path, capsys, objective):
    out = tmp_path / "run"
    assert run("train", "digits", "--objective", objective, "--out", out, *TINY) == 0
    assert f"draw from it: undertow sample {out}" in capsys.readouterr().out
    assert [record.step for record in read_records(out / "training" / "log.jsonl")] == [1, 2, 3, 4]

    picture = tmp_path / "three.png"
    options = ("--class", 3, "--count", 6, "--columns", 3, "--guidance", 2, "--steps", 2, "--seed", 5, "--out", picture)
    assert run("sample", out, *options) == 0
    assert str(picture) in capsys.readouterr().out
    first = picture.read_bytes()
    with Image.open(picture) as image:
        assert image.size[0] > image.size[1]  # three columns, two rows
    assert run("sample", out, *options, "--overwrite") == 0
    assert picture.read_bytes() == first
    assert run("sample", out, *options, "--seed", 6, "--overwrite") == 0
    assert picture.read_bytes() != first

    assert run("train", "digits", "--out", out, "--resume") == 0  # nothing left to do, no setting to repeat


def test_a_folder_of_pictures_is_trained_and_its_bad_files_are_told(tmp_path, capsys, refused):
    for name, color in (("apple", (255, 0, 0)), ("plum", (0, 0, 255))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (12, 9), color).save(tmp_path / "data" / name / f"{index}.png")
    (tmp_path / "data" / "plum" / "broken.png").write_text("no picture")
    command = ("train", "folder", "--data", tmp_path / "data", "--out", tmp_path / "run", *TINY)
    assert "plum/broken.png" in refused(*command)
    assert not (tmp_path / "run").exists()
    assert run(*command, "--bad-pictures", "skip") == 0
    assert "skipped, cannot be read: " in capsys.readouterr().out
    assert (
        run("sample", tmp_path / "run", "--class", "plum", "--count", 1, "--steps", 1, "--out", tmp_path / "p.png") == 0
    )


@pytest.mark.slow
def test_settings_come_from_a_file_flags_and_set(tmp_path):
    assert run("train", "digits", "--out", tmp_path / "a", *TINY) == 0
    file = tmp_path / "a" / "training" / "config.json"
    options = (
        "--steps",
        2,
        "--seed",
        7,
        "--set",
        "ema_decay=0.5",
        "--freeze",
        "conv_in.*",
        "--start-from",
        tmp_path / "a",
    )
    assert run("train", "digits", "--size", 8, "--config-file", file, *options, "--out", tmp_path / "b", "--cpu") == 0
    settings = json.loads((tmp_path / "b" / "training" / "config.json").read_text())
    original = json.loads(file.read_text())
    assert (settings["steps"], settings["seed"], settings["ema_decay"], settings["freeze"]) == (
        2,
        7,
        0.5,
        ["conv_in.*"],
    )
    assert settings["unet"] == original["unet"]
    assert settings["batch_size"] == original["batch_size"] == 8


def test_requests_that_cannot_be_trained_are_one_sentence(tmp_path, refused):
    train = ("train", "digits", "--out", tmp_path / "run", "--cpu")
    assert "--data is None" in refused("train", "cifar10")
    assert "no CIFAR-10 found" in refused("train", "cifar10", "--data", tmp_path)
    assert "no such file or folder" in refused("train", "folder", "--data", tmp_path / "nowhere")
    assert "digits come with scikit-learn" in refused(*train, "--data", tmp_path)
    assert "8, 16 or 32" in refused(*train, "--size", 12)
    assert "did you mean 'flow'" in refused(*train, "--objective", "flo")
    assert "--prediction is 'x', expected one of epsilon, v" in refused(
        *train, "--objective", "ddpm", "--prediction", "x"
    )
    assert "--precision is 'f8', expected 'float32' or 'bf16'" in refused(*train, "--precision", "f8")
    assert "--steps is '0', expected at least 1" in refused(*train, "--steps", 0)
    assert "learning_rate = -1.0: must be positive" in refused(*train, "--set", "learning_rate=-1.0")
    assert "--freeze = 'nothing.*': matches no parameter" in refused(*train, "--freeze", "nothing.*")
    assert "NAME=VALUE" in refused(*train, "--set", "ema_decay")
    assert "setting is 'ema'" in refused(*train, "--set", "ema=1")
    assert "no such file" in refused(*train, "--config-file", tmp_path / "no.json")
    assert "no such file" in refused(*train, "--resume")
    assert not (tmp_path / "run").exists()


def test_requests_that_cannot_be_sampled_are_one_sentence(tmp_path, refused):
    assert "no trained model" in refused("sample", tmp_path / "nowhere")
    assert "a number from 0 to 9 or a name" in refused("sample", "digits-flow", "--class", 11)
    assert "did you mean 'euler'" in refused("sample", "digits-flow", "--sampler", "eular")
    assert "one for RectifiedFlow" in refused("sample", "digits-flow", "--sampler", "tcd")
    assert ".png, .jpg, .jpeg or .webp" in refused("sample", "digits-flow", "--out", tmp_path / "grid.txt")
    assert not any(tmp_path.iterdir())
