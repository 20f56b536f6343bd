"""`undertow adapters`: the tables, the figure and refusals."""

from typing import get_args

import pytest
from PIL import Image

from tests.adapters.lora.files import is_attention, kohya, layers_of, ldm_names, normal, write
from tests.golden.minis import MXL, build
from tests.services import copy_pipeline
from undertow.adapters.stack import STRATEGIES, StrategyName
from undertow.cli.app import main
from undertow.loading import load_unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    layers = layers_of(load_unet(copy_pipeline("sd1", folder / "model")))
    attention = {name: shape for name, shape in layers.items() if is_attention(name)}
    dora = {
        f"lora_unet_{name.replace('.', '_')}.dora_scale": 1 + normal(shape[0], 1, seed=name).abs()
        for name, shape in attention.items()
    }
    xl = layers_of(build(MXL), is_attention)
    tensors = {
        "style": kohya(attention, rank=4),
        "character": kohya(layers, rank=8),
        "turned": {**kohya(attention, rank=4), **dora},
        "foreign": kohya({ldm: xl[layer] for ldm, layer in ldm_names(MXL, xl).items()}),
    }
    for name, parts in tensors.items():
        write(folder / f"{name}.safetensors", parts)
    return folder


@pytest.fixture
def shown(monkeypatch, capsys, folder):
    """What a command prints on a terminal on which nothing wraps, and its exit code."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["adapters", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_explain_shows_files_conflicts_and_decisions(shown, folder):
    code, text = shown(
        "explain", "style.safetensors@0.8", "character.safetensors", "turned.safetensors", "foreign.safetensors",
        "--model", "model", "--priority", "character=2", "--priority", "style=1", "--figure", "map.png",
    )  # fmt: skip
    assert code == 0, text
    rows = [line.split() for line in text.splitlines() if line.strip()]
    listed = {row[0]: row for row in rows if row[0] in ("style", "character", "turned", "foreign")}
    assert list(listed) == ["character", "style", "turned", "foreign"]
    assert [row[-1] for row in listed.values()] == ["kept", "kept", "off", "off"]
    assert listed["style"][-3:-1] == ["0.8", "1"]
    for expected in ("same layer", "character, style", "incompatible", "character, turned", "dora of turned",
                     "- character and style both change", "sum: changes add up", "foreign is off: ",
                     "wrote map.png"):  # fmt: skip
        assert expected in text, expected
    with Image.open(folder / "map.png") as picture:
        assert picture.width > 600


def test_strategy_weights_and_budget(shown):
    files = ("style.safetensors", "character.safetensors")
    _, text = shown("explain", *files, "--model", "model", "--strategy", "weighted", "--weight", "style=0.5")
    assert "weighted: changes add up, each scale times the adapter's weight" in text
    _, text = shown("explain", *files, "--model", "model", "--budget", "1kB")
    assert "character and style are off" in text
    _, text = shown("explain", "style.safetensors", "--model", "model")
    assert "no conflicts" in text


def test_every_strategy_is_explained():
    assert get_args(StrategyName) == tuple(STRATEGIES)


def test_impact_lists_each_adapter_and_all(shown):
    code, text = shown(
        "impact", "style.safetensors", "character.safetensors@0.5", "--model", "model", "--prompt", "apple",
        "--steps", "2", "--repeats", "1", "--layers", "1",
    )  # fmt: skip
    assert code == 0, text
    for expected in ("style + character", "‖with - without‖", "blocks.", " ms", "longer by", "once a request"):
        assert expected in text, expected
    _, text = shown("impact", "style.safetensors", "--model", "model", "--steps", "1", "--repeats", "0")
    assert "%" in text
    assert " ms" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "style.safetensors", "--model", "model", "--priority", "stile=1"), "'stile', expected a name of"),
        (("explain", "style.safetensors", "--model", "model", "--priority", "style=1.5"), "a whole number"),
        (("explain", "style.safetensors", "--model", "model", "--weight", "style=1"), "none with strategy 'sum'"),
        (("explain", "style.safetensors", "style.safetensors", "--model", "model"), "style twice"),
        (
            ("explain", "style.safetensors", "--model", "model", "--strategy", "best"),
            "--strategy is 'best', expected one of",
        ),
        (("explain", "missing.safetensors", "--model", "model"), "missing.safetensors"),
        (("impact", "style.safetensors=style.png", "--model", "model", "--steps", "1"), "image of style"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(shown, arguments, message):
    code, text = shown(*arguments)
    assert code == 2
    assert message in text
    assert text.count("\n") == 1
