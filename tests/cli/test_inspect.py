import pytest

from undertow.cli import main
from undertow.embedded import embedded_models


def test_trace_prints_every_stage_s_input_and_output(capsys):
    assert main(["inspect", "cifar10", "--trace", "--batch", "4"]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["conv_in", "4×3×32×32", "4×64×32×32", "stores", "1"] in lines
    assert ["up_blocks.0.resnets.2", "4×384×8×8", "4×256×8×8", "takes", "7"] in lines
    assert ["conv_out", "4×64×32×32", "4×3×32×32"] in lines


def test_a_preset_s_summary_counts_parameters(capsys):
    assert main(["inspect", "sd15"]) == 0

    assert "859,520,964" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "sd3"], "known names: sd15"),
        (["inspect", "sd15", "--trace", "--size", "64x"], "WIDTHxHEIGHT"),
        (["inspect", "sd15", "--trace", "--size", "64x-1"], "WIDTHxHEIGHT"),
        (["inspect", "sd15", "--trace", "--batch", "0"], "--batch is '0', expected at least 1"),
        (["inspect", str(embedded_models()["emoji"] / "text_encoder")], "a text encoder without a U-Net"),
    ],
)
def test_what_cannot_be_inspected_is_refused_in_one_sentence(arguments, words, capsys):
    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_an_autoencoder_by_itself_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(embedded_models()["emoji"] / "vae")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line[:1] == ["VAE"])[-1] == "yes"


def test_ports_lists_every_place_where_adapters_act(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", "sd15", "--ports"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "1280x768",
        "skips.11",
        "middle",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    ):
        assert expected in text, expected
    assert "skips.12" not in text
