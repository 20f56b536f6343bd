"""`undertow train distill` from end to end, on a tiny random pipeline."""

import json
import shutil

import pytest
from PIL import Image

from tests.services import copy_pipeline
from undertow.cli import main
from undertow.training.log import read_records

SHORT = ["--steps=2", "--batch-size=2", "--threads=1"]


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, pictures with names for captions, and the config of a smaller U-Net."""
    root = tmp_path_factory.mktemp("distill")
    copy_pipeline("sd1", root / "pipeline")
    (root / "pictures").mkdir()
    for name, color in (("red apple", (255, 0, 0)), ("blue plum", (0, 0, 255))):
        Image.new("RGB", (40, 32), color).save(root / "pictures" / f"{name}.png")
    config = json.loads((root / "pipeline" / "unet" / "config.json").read_text())
    (root / "small.json").write_text(json.dumps(config | {"layers_per_block": 1}))
    return root


def command(folder, out, *more):
    return (
        "train",
        "distill",
        "--model",
        folder / "pipeline",
        "--images",
        folder / "pictures",
        "--out",
        out,
        *SHORT,
        *more,
    )


def test_a_model_of_few_steps_is_trained_and_drawn_with(folder, tmp_path, capsys):
    out = tmp_path / "turbo"
    assert run(*command(folder, out, "--method=ect")) == 0
    shown = capsys.readouterr().out
    assert f"trained: {out / 'turbo'}" in shown
    assert f"a sample: {out / 'turbo.png'}" in shown
    assert "--steps=4 --guidance=1" in shown
    with Image.open(out / "turbo.png") as sample:
        request = json.loads(sample.info["undertow"])["request"]
        assert (request["steps"], request["guidance_scale"]) == (4, 1.0)
    scheduler = json.loads((out / "turbo" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["original_inference_steps"]) == ("LCMScheduler", 50)
    assert [record.step for record in read_records(out / "log.jsonl")] == [2]
    # The same command writes the same folder again.
    before = (out / "turbo" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(out / "turbo" / "vae")
    assert run(*command(folder, out, "--method=ect", "--no-sample")) == 0
    assert (out / "turbo" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (out / "turbo" / "vae").is_dir()


@pytest.mark.slow
def test_a_smaller_model_is_trained(folder, tmp_path, capsys):
    out = tmp_path / "small"
    assert run(*command(folder, out, "--method=features", "--student", folder / "small.json", "--no-sample")) == 0
    written = json.loads((out / "small" / "unet" / "config.json").read_text())
    assert written["layers_per_block"] == 1
    scheduler = json.loads((out / "small" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "DDPMScheduler", "drawn as its teacher"
    assert "--guidance" not in capsys.readouterr().out.split("draw with it")[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method=turbo"], "--method is 'turbo', expected one of guidance, lcm, ect, features"),
        (["--method=ect", "--guidance=4"], "--guidance"),
        (["--method=lcm", "--tighten-every=4"], "--tighten-every"),
        (["--method=guidance", "--original-steps=4"], "--original-steps"),
        (["--method=features"], "--student"),
        (["--method=features", "--student=nowhere.json"], "nowhere.json"),
        (["--method=guidance", "--guidance=0.5"], "--guidance is '0.5', expected at least 1, which is no guidance"),
        (["--method=lcm", "--guidance=nan"], "--guidance is 'nan', expected at least 1"),
        (["--method=lcm", "--original-steps=1"], "--original-steps is '1', expected 2 or more"),
        (["--method=ect", "--tighten-every=0"], "--tighten-every is '0', expected at least 1"),
        (["--method=ect", "--batch-size=0"], "--batch-size is '0', expected a positive number"),
        (["--method=ect", "--checkpoint-every=0"], "--checkpoint-every is '0', expected a positive number"),
        (["--method=ect", "--timesteps=all"], "--timesteps is 'all', expected 'uniform' or 'logit_normal'"),
        (
            ["--method=guidance", "--min-snr-gamma=0"],
            "--min-snr-gamma is '0', expected a positive number; the paper uses 5",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_sentence(folder, tmp_path, capsys, more, said):
    assert run(*command(folder, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_levels_that_no_model_has_are_refused_before_anything_is_loaded(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("undertow.cli.training_options.TrainingOptions.load", None)
    assert run(*command(folder, tmp_path / "turbo", "--method=lcm", "--original-steps=0")) == 2
    assert "--original-steps is '0', expected 2 or more" in capsys.readouterr().err
