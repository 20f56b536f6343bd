"""`undertow train lora` from end to end, on a tiny random pipeline."""

import pytest
from PIL import Image
from safetensors import safe_open

from tests.services import copy_pipeline
from undertow.checkpoints.files.words import write_vocabulary
from undertow.cli import main
from undertow.encoders.vocabulary import Vocabulary
from undertow.training.log import read_records

SHORT = ["--rank=2", "--steps=2", "--batch-size=2", "--threads=1"]


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, and pictures with names for captions."""
    root = tmp_path_factory.mktemp("lora")
    copy_pipeline("sd1", root / "pipeline")
    words = Vocabulary(words=("red", "apple", "blue"), emoji=("red apple",), colors=("blue",), relations=())
    write_vocabulary(words, root / "pipeline")
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
    assert run(*command, "--sites", "*.attn2.*", "--sites", "conv_in") == 0
    printed = capsys.readouterr().out
    assert f"trained: {out / 'style.safetensors'}" in printed
    assert "note: captions: never learned by this model: 'plum'; it knows 1 emoji" in printed
    metadata, names = header(out / "style.safetensors")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["modelspec.title"]) == (
        "2",
        "2",
        "style",
    )
    assert {name.split(".")[0] for name in names if "attn2" not in name} == {"lora_unet_conv_in"}
    assert not [name for name in names if name.startswith("lora_te")]
    assert [record.step for record in read_records(out / "log.jsonl")] == [2]
    # The same command has nothing left to do; another format only writes the file again.
    again = (*command, "--sites", "*.attn2.*", "--sites", "conv_in", "--format", "peft", "--title", "other")
    assert run(*again) == 0
    assert [record.step for record in read_records(out / "log.jsonl")] == [2]
    assert all(".lora_A." in name or ".lora_B." in name for name in header(out / "other.safetensors")[1])


def test_text_encoders_are_trained_when_asked(folder, tmp_path):
    command = ("train", "lora", "--model", folder / "pipeline", "--images", folder / "pictures", "--out", tmp_path)
    assert run(*command, *SHORT, "--text-encoder", "--precision=bf16", "--gradient-checkpointing", "--title=x") == 0
    assert any(name.startswith("lora_te_text_model_encoder_layers_0") for name in header(tmp_path / "x.safetensors")[1])


def test_requests_that_cannot_be_trained_are_one_sentence(tmp_path, refused):
    assert "no such folder" in refused("--images", tmp_path / "nowhere")
    assert "a network that reads no text" in refused("--model", "digits-flow")
    assert "near it are '*.to_q'" in refused("--sites", "*.to_qq")
    assert "rank = 0" in refused("--rank", 0)
    assert "a multiple of 4 pixels" in refused("--size", 34)
    assert "float32 or bf16" in refused("--precision", "half")
    assert "format" in refused("--format", "onetrainer")
    assert not (tmp_path / "run").exists()
