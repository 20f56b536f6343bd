"""`undertow.toml`: a default model, folders, short names and presets, all of them over options that are typed."""

import shutil
from typing import Any

import pytest
import typer
from PIL import Image

from tests.cli.options.checks import leaves
from tests.services import pipeline_folder
from undertow.cli import main
from undertow.cli.app import Settings, _build
from undertow.cli.config import MODEL_VERBS, read_config
from undertow.cli.config_file import VARIABLE, config_file
from undertow.cli.verbs import VERBS
from undertow.errors import InvalidInput

TOML = """
model = "small"
folders = ["FOLDER"]
out = "drawn"
name = "{seed}-new"

[models]
small = "FOLDER/tiny"

[presets.quick]
steps = 2
sampler = "euler"
size = "48x32"
precision = "f32"
negative = "dark"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    shutil.copytree(pipeline_folder("sd1"), tmp_path / "models" / "tiny")
    (tmp_path / "undertow.toml").write_text(TOML.replace("FOLDER", str(tmp_path / "models")))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(text: str, tmp_path, monkeypatch, capsys, *arguments: str) -> str:
    (tmp_path / "undertow.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main([*arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_a_preset_draws_with_the_default_model_into_the_default_place(config, capsys):
    command = ["generate", "red apple", "--preset", "quick", "--seed", "7", "--no-show"]
    assert main(command) == 0
    with Image.open(config / "drawn" / "7-new.png") as image:
        assert image.size == (48, 32)
        text = image.info["parameters"]
    assert "Steps: 2" in text
    assert "Negative prompt: dark" in text
    assert main([*command, "--steps", "3", "--out", "other.png"]) == 0
    with Image.open(config / "other.png") as image:
        assert "Steps: 3" in image.info["parameters"], "what is typed counts"


def test_names_are_found_in_the_folders(config):
    found = read_config()
    (config / "models" / "style.safetensors").touch()
    assert found.find("tiny") == str(config / "models" / "tiny")
    assert found.find("style") == str(config / "models" / "style.safetensors")
    assert found.find("small") == str(config / "models" / "tiny")
    assert found.find("nothing") == "nothing"


def test_the_file_is_the_environments_the_folders_or_the_homes(config, monkeypatch):
    home = config / "home" / "undertow"
    home.mkdir(parents=True)
    (home / "undertow.toml").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config / "home"))
    assert config_file().resolve() == config / "undertow.toml"
    (config / "undertow.toml").unlink()
    assert config_file() == home / "undertow.toml"
    monkeypatch.setenv(VARIABLE, "")
    assert config_file() is None
    assert read_config().model is None
    monkeypatch.setenv(VARIABLE, str(config / "missing.toml"))
    with pytest.raises(FileNotFoundError):
        read_config()


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("model = ", ["generate", "a"], "undertow.toml is no TOML"),
        ('modle = "x"', ["generate", "a"], "did you mean 'model'?"),
        ("folders = 3", ["generate", "a"], "folders in undertow.toml"),
        ("", ["generate", "a", "--preset", "quick"], "none is in undertow.toml"),
        ("[presets.quick]\nsteps = 3", ["generate", "a", "--preset", "quik"], "did you mean 'quick'?"),
        ("[presets.quick]\nstep = 3", ["generate", "a", "--preset", "quick"], "did you mean 'steps'?"),
        (
            "[presets.quick]\nsteps = 'few'",
            ["generate", "a", "--preset", "quick"],
            "steps in [presets.quick] of undertow.toml is 'few', expected a whole number, without quotes",
        ),
        (
            "[presets.quick]\nsize = '64x'",
            ["generate", "a", "--preset", "quick"],
            "--size in [presets.quick] of undertow.toml is '64x', expected WIDTHxHEIGHT",
        ),
        (
            "[presets.quick]\nsampler = 'eulr'",
            ["generate", "a", "--preset", "quick"],
            "sampler in [presets.quick] of undertow.toml is 'eulr'",
        ),
    ],
)
def test_mistakes_are_one_sentence(text, arguments, words, tmp_path, monkeypatch, capsys):
    assert words in refused(text, tmp_path, monkeypatch, capsys, *arguments)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ('steps = "2"', "'2'", "a whole number, without quotes"),
        ("steps = true", "true", "a whole number, without quotes"),
        ("steps = 2.0", "2.0", "a whole number, without quotes"),
        ('guidance = "3"', "'3'", "a number, without quotes"),
        ('seed = "5"', "'5'", 'a whole number, without quotes, or "random"'),
        ("seed = true", "true", "a whole number, without quotes"),
        ('low-vram = "false"', "'false'", "true or false, without quotes"),
        ('views = "no"', "'no'", "true or false, without quotes"),
        ('vae-clamp = "maybe"', "'maybe'", "true or false, without quotes"),
        ("show = 1", "1", "true or false, without quotes"),
        ('lora = "mosaic"', "'mosaic'", 'a list, such as ["mosaic"]'),
        ("lora = [1]", "[1]", 'a list of texts, such as ["a", "b"]'),
        ("negative = 3", "3", "text, in quotes"),
        ("model = 3", "3", "text, in quotes"),
        ("precision = true", "true", "text, in quotes"),
        ('precision = "f8"', "'f8'", "one of f32, f16, bf16"),
    ],
)
def test_settings_of_another_type_than_their_option_are_refused(
    setting, value, expected, tmp_path, monkeypatch, capsys
):
    """A command line would take `"2"` for two; a file says what it means."""
    name = setting.partition(" ")[0]
    found = refused(f"[presets.quick]\n{setting}", tmp_path, monkeypatch, capsys, "generate", "a", "--preset", "quick")
    assert f"{name} in [presets.quick] of undertow.toml is {value}, expected {expected}" in found


def test_a_preset_s_settings_may_be_of_every_type(config):
    file = config / "undertow.toml"
    every = 'seed = "random"\nguidance = 3\nlow-vram = true\nlora = []\nsampler-option = ["eta=0.5"]\nshow = false\n'
    file.write_text(file.read_text().replace("steps = 2\n", f"steps = 2\n{every}").replace('"euler"', '"euler_a"'))
    assert main(["generate", "red apple", "--preset", "quick"]) == 0


def test_short_names_of_embedded_models_are_listed_as_they_are(config, capsys):
    file = config / "undertow.toml"
    file.write_text(file.read_text().replace("[models]", '[models]\nours = "emoji"'))
    assert main(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("ours")]
    assert "no such file" not in line


def test_models_are_listed_with_what_they_are(config, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("HF_HUB_CACHE", str(config / "no-cache"))
    (config / "models" / "broken.safetensors").write_text("nothing")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.strip()}
    assert rows["emoji"].startswith("a U-Net built like sd1, with widths of its own, predicts v")
    assert rows["emoji"].endswith("the package")
    assert rows["small"].endswith("undertow.toml")
    assert rows["tiny"].endswith(str(config / "models")), "by the name that --model takes"
    assert "not a model" in rows["broken"]
    assert main(["models", str(config / "models")]) == 0
    assert "emoji" not in capsys.readouterr().out
    assert main(["models", str(config / "nowhere")]) == 2
    assert "a folder with models" in capsys.readouterr().err


def test_the_default_model_reaches_every_verb_that_takes_one():
    verbs: dict[tuple[str, ...], Any] = dict(leaves(typer.main.get_command(_build(VERBS, Settings()))))
    taking = {verb for verb, leaf in verbs.items() if any("-m" in one.opts for one in leaf.params)}
    ours = {(verb, *inner) for verb, several in MODEL_VERBS.items() for inner in ([(one,) for one in several] or [()])}
    assert taking == ours | {("generate",)}


def test_a_preset_that_is_none_is_refused_in_python_too():
    with pytest.raises(InvalidInput):
        read_config().preset("nothing")
