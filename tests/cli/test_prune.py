"""`undertow prune`, and `train distill` from what it wrote, on a tiny random pipeline."""

import json

import pytest
from PIL import Image

from tests.services import copy_pipeline
from undertow.cli import main


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("prune")
    copy_pipeline("sd1", root / "pipeline")
    (root / "pictures").mkdir()
    for name, color in (("red apple", (255, 0, 0)), ("blue plum", (0, 0, 255))):
        Image.new("RGB", (40, 32), color).save(root / "pictures" / f"{name}.png")
    return root


def command(folder, out, *more):
    return ("prune", folder / "pipeline", out, "--images", folder / "pictures", "--batches=1", "--threads=1", *more)


@pytest.mark.slow
def test_a_model_is_pruned_and_trained_again_from_there(folder, tmp_path, capsys):
    out = tmp_path / "smaller"
    assert run(*command(folder, out, "--width=0.5", "--blocks=1")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "without " in said
    assert "channels " in said
    assert f"--method features --student {out} --model {folder / 'pipeline'}" in said
    before, after = (json.loads((one / "unet/config.json").read_text()) for one in (folder / "pipeline", out))
    assert after["block_out_channels"] == [width // 2 for width in before["block_out_channels"]]
    assert after["norm_num_groups"] == before["norm_num_groups"] // 2
    arguments = ("--model", folder / "pipeline", "--images", folder / "pictures", "--out", tmp_path / "run")
    short = ("--steps=2", "--batch-size=2", "--threads=1", "--no-sample")
    assert run("train", "distill", "--method=features", "--student", out, *arguments, *short) == 0
    taught = json.loads((tmp_path / "run/run/unet/config.json").read_text())
    assert taught == after
    assert run(*command(folder, out, "--width=0.5")) == 2
    assert "a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--width=0.01"], "the smallest U-Net is that of"),
        (["--width=1"], "a share of the channels that stay"),
        (["--blocks=99"], "at most"),
        ([], "--width is not given"),
        (["--width=0.5", "--batches=0"], "at least 1"),
    ],
)
def test_what_leaves_nothing_is_refused_in_one_sentence(folder, tmp_path, capsys, more, said):
    assert run(*command(folder, tmp_path / "smaller", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "smaller").exists()
