"""`undertow inspect` on a LoRA: alone, and held against a model."""

import pytest
import torch

from tests.adapters.lora.files import is_attention, kohya, layers_of, ldm_names, write
from tests.checkpoints.pipelines import save_pipeline
from tests.golden.minis import M15, MXL, build
from undertow.cli.app import main


@pytest.fixture
def shown(monkeypatch, capsys):
    """What a command prints on a terminal on which nothing wraps, and its exit code."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["inspect", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_a_file_alone_and_against_a_model(shown, tmp_path):
    layers = layers_of(build(M15), is_attention)
    tensors = kohya(layers) | {"bundle_emb.word.string_to_param.*": torch.ones(1, 64)}
    metadata = {"ss_base_model_version": "sd_v1", "title": "[red]X\x1b[2J"}
    path = str(write(tmp_path / "lora.safetensors", tensors, metadata))
    code, text = shown(path)
    assert code == 0
    for expected in ("128 layers: lora", "kohya", "reads text 24 wide", "U-Net", "all float32", "word",
                     "title: [red]X"):  # fmt: skip
        assert expected in text, expected
    assert "\x1b[2J" not in text, "text from a file must not command the terminal"
    assert "alpha" in text
    model = str(save_pipeline(tmp_path / "model", "sd1"))
    code, text = shown(path, "--model", model, "--validate-weights")
    assert code == 0
    assert "in Stable Diffusion 1" in text
    assert "384 tensors fit" in text
    assert "looked at 385 tensors" in text


def test_what_does_not_fit_is_listed(shown, tmp_path):
    layers = layers_of(build(M15), is_attention)
    tensors = kohya(layers) | kohya({"mid_block.attentions.7.proj_in": (8, 8)}) | kohya({"conv_in": (32, 9, 3, 3)})
    path = str(write(tmp_path / "lora.safetensors", tensors))
    code, text = shown(path, "--model", str(save_pipeline(tmp_path / "model", "sd1")))
    assert code == 0
    for expected in ("384 tensors fit, 3 do not, 1 layer has another shape", "match nothing in the model: 3",
                     "lora_unet_mid_block_attentions_7_proj_in.lora_up.weight", "lora_unet_conv_in"):  # fmt: skip
        assert expected in text, expected


def test_a_wrong_base_is_refused(shown, tmp_path):
    layers = layers_of(build(MXL), is_attention)
    named = {ldm: layers[layer] for ldm, layer in ldm_names(MXL, layers).items()}
    path = str(write(tmp_path / "lora.safetensors", kohya(named)))
    code, text = shown(path, "--model", "sdxl")
    assert code == 2
    assert "reads text 24 wide" in text
    assert "which reads text 2048 wide" in text


def test_a_folder_of_peft_is_an_adapter(shown, tmp_path):
    write(tmp_path / "adapter_model.safetensors", {"base_model.model.x.lora_A.weight": torch.ones(2, 2),
                                                   "base_model.model.x.lora_B.weight": torch.ones(2, 2)})  # fmt: skip
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 7, "r": 2}')
    code, text = shown(str(tmp_path))
    assert code == 0
    assert "PEFT" in text
    assert "7" in text


def test_values_that_are_not_numbers_are_seen_unasked(shown, tmp_path, monkeypatch):
    tensors = kohya(layers_of(build(M15), is_attention))
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[name][0, 0] = torch.nan
    path = str(write(tmp_path / "lora.safetensors", tensors))
    for options in ((), ("--model", str(save_pipeline(tmp_path / "model", "sd1")))):
        code, text = shown(path, *options)
        assert code == 0
        assert "values that are not numbers: 1" in text
        assert f"{name}: NaN: 1/{tensors[name].numel()}" in text
    monkeypatch.setattr("undertow.cli.inspect_adapter.MOST_READ_BYTES", 100)
    assert "not numbers" not in shown(path)[1], "of large files the header is enough"
