"""Names work alike at every door: presets, embedded models, adapters that came with one; a misspelled one is found."""

import pytest
import torch
from safetensors.torch import save_file

import undertow
from undertow.cli import main
from undertow.errors import UnknownCheckpoint


def shown(capsys, *arguments):
    code = main(list(arguments))
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mosaic"], "an adapter of 78 layers"),
        (["mosaic", "--model", "emoji"], "tensors fit"),
        (["edges"], "ControlNet"),
    ],
)
def test_an_adapter_that_came_with_the_model_is_inspected_by_its_name(arguments, words, capsys):
    code, said = shown(capsys, "inspect", *arguments)
    assert code == 0
    assert words in said


def test_adapters_are_explained_in_a_preset(tmp_path, capsys):
    """Without a model's weights, with its text encoder: sizes from sd-scripts' names of SD1's layers."""
    layers = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": 320,
              "lora_te_text_model_encoder_layers_0_mlp_fc2": 768}  # fmt: skip
    tensors = {}
    for name, outputs in layers.items():
        inputs = 3072 if name.endswith("fc2") else outputs
        tensors |= {f"{name}.lora_down.weight": torch.ones(4, inputs), f"{name}.lora_up.weight": torch.ones(outputs, 4)}
    save_file(tensors, tmp_path / "style.safetensors")
    code, said = shown(capsys, "adapters", "explain", str(tmp_path / "style.safetensors"), "--model", "sd15")
    assert code == 0
    assert "in sd15 (Stable Diffusion 1" in said
    assert "kept" in said
    figure = ["--figure", str(tmp_path / "figure.png")]
    code, said = shown(capsys, "adapters", "explain", str(tmp_path / "style.safetensors"), "--model", "sd15", *figure)
    assert code == 2
    assert "name a model" in said


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["generate", "owl", "--model", "emojii"], "did you mean 'emoji'?"),
        (["generate", "owl", "--lora", "mosaik"], "did you mean 'mosaic'?"),
        (["generate", "owl", "--model", "EMOJI"], "did you mean 'emoji'?"),
        (["generate", "owl", "--model", "emoji-turbo/"], "did you mean 'emoji-turbo'?"),
        (["generate", "owl", "--model", "./emojii-turbo"], "did you mean 'emoji-turbo'?"),
        (["generate", "owl", "--model", "/models/Emoji-Turbo"], "did you mean 'emoji-turbo'?"),
        (["plan", "./emoji-turbo"], "did you mean 'emoji-turbo'?"),
        (["words", "emoji/"], "did you mean 'emoji'?"),
        (["inspect", "emojii"], "did you mean 'emoji'?"),
        (["inspect", "/models/Emoji"], "did you mean 'emoji'?"),
        (["inspect", "./no/such"], "give the path of one that is there"),
        (["inspect", "sd1.5"], "did you mean 'sd15'?"),
        (["generat"], "Did you mean 'generate'?"),
        (["generate", "owl", "--stepz", "3"], "--steps)"),
    ],
)
def test_a_misspelled_name_is_offered(arguments, near, capsys):
    code, said = shown(capsys, *arguments)
    assert code == 2
    assert near in said


def test_a_path_that_only_resembles_a_name_is_not_taken_for_one(capsys):
    code, said = shown(capsys, "generate", "owl", "--model", "./other/emojis")
    assert code == 2
    assert "did you mean" not in said


def test_python_offers_it_too():
    with pytest.raises(UnknownCheckpoint, match="did you mean 'emoji'"):
        undertow.load("emojii")
