import json

import pytest

from tests.services import copy_pipeline
from undertow import GenerationRequest, load_unet
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.cli import main
from undertow.errors import ConfigError, InvalidInput
from undertow.json_fields import flag, mapping, number, numbers, optional_whole, text, whole
from undertow.limits import CELLS, LIMITS, PIXELS, STEPS, Limit, replaced
from undertow.nn.resnet import ResBlock
from undertow.nn.transformer import TransformerBlock
from undertow.unet.config import CrossAttention, Level, Middle, SelfAttention, UNetConfig
from undertow.unet.unet import UNet
from undertow.vae.config import VAEConfig

SDXL_LAYERS = 87
"""17 ResBlocks (2, 2, 2 and one more each in the decoder, 2 in the middle) and 70 transformer blocks (2 x 2 + 2 x 10,
10, 3 x 10 + 3 x 2), arXiv:2307.01952, section 2.1, and diffusers' config."""


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_every_limit_holds_its_last_number_and_says_how_to_go_on(limit: Limit, monkeypatch):
    limit.require("it", limit.usual)
    with pytest.raises(
        InvalidInput, match=rf"it is {limit.usual + 1:,}, expected at most .*; set {limit.variable} higher"
    ):
        limit.require("it", limit.usual + 1)
    monkeypatch.setenv(limit.variable, str(limit.usual + 1))
    limit.require("it", limit.usual + 1)


@pytest.mark.parametrize("given", ["many", "0", "-1", "1.5", "\u00b2"])
def test_a_limit_that_is_no_number_is_refused(given, monkeypatch):
    monkeypatch.setenv("UNDERTOW_MAX_STEPS", given)
    with pytest.raises(
        InvalidInput, match=r"UNDERTOW_MAX_STEPS is .*, expected a whole number above 0; for example 100000"
    ):
        STEPS.require("steps", 1)


def test_the_environment_goes_before_the_file(monkeypatch):
    monkeypatch.setenv("UNDERTOW_MAX_PIXELS", "5")
    with replaced({"pixels": 7, "steps": 9}):
        assert (PIXELS.most, STEPS.most) == (5, 9)
    assert (PIXELS.most, STEPS.most) == (5, STEPS.usual)


def test_limits_of_the_file_are_checked():
    with pytest.raises(InvalidInput, match=r"limits is .pixel., expected one of pixels, "), replaced({"pixel": 1}):
        pass
    with (
        pytest.raises(InvalidInput, match=r"limits.pixels is 0, expected a whole number above 0"),
        replaced({"pixels": 0}),
    ):
        pass


def test_layers_are_counted_without_building_them():
    assert UNetConfig.sdxl().layers == SDXL_LAYERS
    assert VAEConfig.sd().layers == 4 * (2 + 3) + 4
    config = UNetConfig(
        levels=(
            Level(channels=32, resnets=1, attention=CrossAttention(heads=2, depth=(2,), decoder_depth=(1, 3))),
            Level(channels=32, resnets=1, attention=SelfAttention(heads=2)),
            Level(channels=32, resnets=2),
        ),
        middle=Middle(attention=SelfAttention(heads=2), resnets=3),
        context_dim=8,
    )
    unet = UNet(config)
    layers = [module for module in unet.modules() if isinstance(module, ResBlock | TransformerBlock)]
    alone = [name for name in config.self_attentions() if "transformer_blocks" not in name]
    assert config.layers == len(layers) + len(alone)


def test_a_million_layers_are_refused_at_once():
    for given in ({"resnets": 10**9}, {"attention": CrossAttention(heads=1, depth=10**9)}):
        with pytest.raises(
            ConfigError, match=r"layers = \d+: must be at most 1,000 layers; set UNDERTOW_MAX_LAYERS higher"
        ):
            UNetConfig(levels=(Level(channels=32, **given),), context_dim=8)


def test_fields_of_json_have_their_types():
    json = {"whole": 3, "number": 2, "flag": False, "text": "a", "numbers": [1, 2.5], "mapping": {}, "null": None}
    assert (whole(json, "whole"), number(json, "number"), flag(json, "flag", True)) == (3, 2.0, False)
    assert (text(json, "text"), numbers(json, "numbers"), mapping(json, "mapping", json)) == ("a", (1.0, 2.5), {})
    assert (numbers(json, "null"), optional_whole(json, "null"), whole(json, "absent", 5)) == (None, None, 5)


@pytest.mark.parametrize("value", [None, True, 1.5, "1", [1], float("nan"), float("inf"), {}])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ConfigError, match=r"layers = .*: must be a whole number"):
        whole({"layers": value}, "layers", 2)


@pytest.mark.parametrize("value", [None, True, "1", [1], float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ConfigError, match=r"scale = .*: must be a number"):
        number({"scale": value}, "scale", 2.0)
    with pytest.raises(ConfigError, match=r"mean = .*: must be a list of numbers"):
        numbers({"mean": [1.0, value]}, "mean")


def test_undertow_toml_sets_limits_for_its_command_lines(tmp_path, monkeypatch, capsys):
    config = tmp_path / "undertow.toml"
    monkeypatch.setenv("UNDERTOW_CONFIG", str(config))
    for written, said in (
        ("cells = 5", "count is 6, expected at most 5 pictures on one sheet; set UNDERTOW_MAX_CELLS higher"),
        ("cells = 0", "limits.cells is 0, expected a whole number above 0; usual: 1000"),
        ("cell = 5", "limits is 'cell', expected one of pixels"),
        ("cells = 'a'", "limits.cells in"),
    ):
        config.write_text(f"[limits]\n{written}\n")
        assert main(["sample", "digits-ddpm", "--count", "6"]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert CELLS.most == CELLS.usual


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 10**8}, "steps is 100,000,000, expected at most 100,000 steps"),
        ({"sigmas": tuple(range(100_001, -1, -1))}, "steps is 100,002, expected at most 100,000 steps"),
        ({"count": 10**11}, "count is 100,000,000,000, expected at most 100,000 pictures"),
        ({"adapters": ("a",) * 101}, "adapters is 101 adapters, expected at most 100 regions or adapters"),
    ],
)
def test_a_request_in_python_has_the_same_limits(fields, message):
    with pytest.raises(InvalidInput, match=message):
        GenerationRequest(prompt="a", **fields)


def test_a_network_of_more_layers_than_its_file_has_tensors_is_not_built(tmp_path, monkeypatch):
    folder = copy_pipeline("sd1", tmp_path / "model")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layers_per_block": 60}))
    monkeypatch.setattr("undertow.checkpoints.read.unet_loading.build_on_meta", lambda build: pytest.fail("built"))
    for load in (load_unet, load_unet_folder):
        with pytest.raises(ConfigError, match=r"layers = \d+: is more than the \d+ tensors of .*unet"):
            load(folder)
