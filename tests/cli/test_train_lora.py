"""`undertow train lora` from end to end, on a tiny random pipeline."""

import signal

import pytest
from PIL import Image
from safetensors import safe_open

from tests.services import copy_pipeline
from undertow.cli import main
from undertow.inspection.metrics import training_metrics
from undertow.training.examples import Examples
from undertow.training.log import read_records

SHORT = ["--rank=2", "--steps=2", "--batch-size=2", "--threads=1"]


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, and pictures with names for captions."""
    root = tmp_path_factory.mktemp("lora")
    copy_pipeline("sd1", root / "pipeline")
    (root / "pictures").mkdir()
    for name, color in (("red apple", (255, 0, 0)), ("blue plum", (0, 0, 255))):
        Image.new("RGB", (40, 32), color).save(root / "pictures" / f"{name}.png")
    return root


@pytest.fixture
def refused(folder, tmp_path, capsys):
    """Runs a command line that must be refused in one sentence, which it returns."""

    def check(*arguments) -> str:
        common = ("--model", folder / "pipeline", "--images", folder / "pictures", "--out", tmp_path / "run", *SHORT)
        assert run("train", "lora", *common, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return check


def header(path):
    with safe_open(path, "pt") as file:
        return dict(file.metadata()), list(file.keys())


def test_a_lora_is_trained_and_trained_on(folder, tmp_path, capsys):
    out = tmp_path / "style"
    command = ("train", "lora", "--model", folder / "pipeline", "--images", folder / "pictures", "--out", out, *SHORT)
    assert run(*command, "--sites", "*.attn2.*", "--sites", "conv_in", "--no-sample") == 0
    assert f"trained: {out / 'style.safetensors'}" in capsys.readouterr().out
    metadata, names = header(out / "style.safetensors")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["modelspec.title"]) == (
        "2",
        "2",
        "style",
    )
    assert {name.split(".")[0] for name in names if "attn2" not in name} == {"lora_unet_conv_in"}
    assert not [name for name in names if name.startswith("lora_te")]
    records = read_records(out / "log.jsonl")
    assert [record.step for record in records] == [2]
    assert training_metrics(out).quality.loss == records[0].loss
    assert run("train", "metrics", out) == 0
    assert capsys.readouterr().out.startswith("step 2, ")
    # The same command has nothing left to do; another format only writes the file again.
    again = (
        *command,
        "--sites",
        "*.attn2.*",
        "--sites",
        "conv_in",
        "--format",
        "peft",
        "--title",
        "other",
        "--no-sample",
    )
    assert run(*again) == 0
    assert [record.step for record in read_records(out / "log.jsonl")] == [2]
    assert all(".lora_A." in name or ".lora_B." in name for name in header(out / "other.safetensors")[1])


@pytest.mark.slow
def test_a_run_says_what_it_goes_on_from_and_how_to_draw_with_it(folder, tmp_path, capsys):
    out = tmp_path / "style"
    command = ("train", "lora", "--model", folder / "pipeline", "--images", folder / "pictures", "--out", out, *SHORT)
    assert run(*command, "--sites", "*.attn2.*") == 0
    shown = capsys.readouterr().out
    assert "note: 2 captions from the files' names, such as 'blue plum'" in shown
    path = out / "style.safetensors"
    assert f"draw with it: undertow generate 'blue plum' --lora {path} --model {folder / 'pipeline'}" in shown
    assert f"a sample: {out / 'style.png'}" in shown
    with Image.open(out / "style.png") as sample:
        assert sample.size == (32, 32)
    again = (*command, "--sites", "*.attn2.*", "--no-sample")
    assert run(*again) == 0
    assert "all 2 steps are done already" in capsys.readouterr().out
    assert run(*again, "--steps", 3) == 0
    assert "goes on from step 2" in capsys.readouterr().out
    assert [record.step for record in read_records(out / "log.jsonl")] == [2, 3]
    further = ("--start-from", path, "--out", tmp_path / "further", "--no-sample")
    assert run(*command, *further) == 0
    assert {name.split(".")[0] for name in header(tmp_path / "further" / "further.safetensors")[1]} == {
        name.split(".")[0] for name in header(path)[1]
    }


def test_the_first_interrupt_saves_and_the_same_command_goes_on(folder, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle of the second step, as the terminal sends it."""
    taken: list[int] = []

    def examples_at(self, step: int) -> object:
        taken.append(step)
        if taken == [1, 2]:
            signal.raise_signal(signal.SIGINT)
        return at(self, step)

    at = Examples.at
    monkeypatch.setattr(Examples, "at", examples_at)
    common = ("--model", folder / "pipeline", "--images", folder / "pictures", "--out", tmp_path, "--no-sample")
    command = ("train", "lora", *common, *SHORT, "--steps", 4, "--sites", "conv_in")
    handler = signal.getsignal(signal.SIGINT)
    assert run(*command) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    shown = capsys.readouterr()
    assert "finishing this step and saving; Ctrl-C again stops at once" in shown.out
    assert "saved at step 2 of 4: the same command goes on from there" in shown.out
    assert "interrupted" in shown.err
    assert run(*command) == 0
    assert taken == [1, 2, 3, 4]
    assert "goes on from step 2" in capsys.readouterr().out


def test_text_encoders_are_trained_when_asked(folder, tmp_path):
    command = ("train", "lora", "--model", folder / "pipeline", "--images", folder / "pictures", "--out", tmp_path)
    more = ("--text-encoder", "--precision=bf16", "--gradient-checkpointing", "--title=x", "--no-sample")
    assert run(*command, *SHORT, *more) == 0
    assert any(name.startswith("lora_te_text_model_encoder_layers_0") for name in header(tmp_path / "x.safetensors")[1])


def test_requests_that_cannot_be_trained_are_one_sentence(tmp_path, refused):
    (tmp_path / "pictures").mkdir()
    assert "no such folder" in refused("--images", tmp_path / "nowhere")
    assert "a network that reads no text" in refused("--model", "digits-flow")
    assert "near it are '*.to_q'" in refused("--sites", "*.to_qq")
    assert "--rank is '0', expected at least 1" in refused("--rank", 0)
    assert "a multiple of 4 pixels" in refused("--size", 34)
    assert "float32 or bf16" in refused("--precision", "half")
    assert "format" in refused("--format", "onetrainer")
    assert "which is read for it" in refused(
        "--out", tmp_path.parent / tmp_path.name / "run" / ".." / "pictures", "--images", tmp_path / "pictures"
    )
    assert "a device such as cpu, cuda, cuda:1 or mps" in refused("--device", "banana")
    assert "no such file" in refused("--start-from", tmp_path / "nowhere.safetensors")
    assert not (tmp_path / "run").exists()
