import json
from dataclasses import fields, replace

import pytest

from undertow.errors import ConfigError, InvalidInput
from undertow.training.augmentation import Augmentation
from undertow.training.config import (
    TrainingConfig,
    config_from_json,
    config_to_json,
    pixel_unet,
    with_settings,
)
from undertow.training.data import Cifar10, Digits, ImageFolder
from undertow.training.objective import Ddpm, Flow
from undertow.training.presets import OBJECTIVES, preset
from undertow.unet.config import ClassLabels, Level, UNetConfig


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": Ddpm(prediction="epsilon", schedule="linear", min_snr_gamma=5.0)},
        {"data": Cifar10(folder="/data"), "augmentation": Augmentation(flip=True, background=-1.0)},
        {"data": ImageFolder(folder="/data", size=48, channels=1, bad_pictures="skip"), "freeze": ("conv_in.*",)},
        {"start_from": "runs/x", "precision": "bf16", "gradient_checkpointing": True},
        {"gradient_checkpointing": ("up_blocks.0", "mid_block")},
    ],
)
def test_a_config_survives_json(tiny_config, changes):
    config = tiny_config(**changes)
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("stepz", 1, "config.stepz = 1: is unknown"),
        ("steps", 0, "steps = 0: must be at least 1"),
        ("steps", "many", "cannot be used"),
        ("learning_rate", 0.0, "learning_rate = 0.0: must be positive"),
        ("precision", "fp8", "must be 'float32' or 'bf16'"),
        ("decay", "linear", "must be 'constant' or 'cosine'"),
        ("seed", -1, "must not be negative"),
        ("ema_decay", 1.0, "must lie in"),
        ("label_dropout", 1.5, "must lie in"),
        ("objective", {"kind": "gan"}, "must be one of ddpm, flow"),
        ("objective", {"kind": "flow", "shift": 3}, "objective.shift = 3: is unknown"),
        ("data", None, "must be an object"),
        ("gradient_checkpointing", "mid_block", "must be true, false or names of blocks"),
    ],
)
def test_impossible_settings_are_refused(tiny_config, path, value, problem):
    with pytest.raises(ConfigError) as caught:
        config_from_json(config_to_json(tiny_config()) | {path: value})
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("least", "names"),
    [
        (1, ("steps", "batch_size", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints")),
        (0, ("warmup_steps", "weight_decay", "seed")),
        (1e-9, ("learning_rate", "clip_norm")),
        (0.0, ("ema_decay", "label_dropout")),
    ],
)
def test_every_number_has_a_least_value(tiny_config, least, names):
    for name in names:
        assert getattr(tiny_config(**{name: least}), name) == least
        with pytest.raises(ConfigError) as caught:
            tiny_config(**{name: least - 1})
        assert caught.value.field == name


def test_settings_are_changed_by_dotted_paths(tiny_config):
    config = with_settings(tiny_config(), {"steps": 99, "objective.timesteps": "uniform", "unet.dropout": 0.3})
    assert (config.steps, config.objective, config.unet.dropout) == (99, Flow(timesteps="uniform"), 0.3)


@pytest.mark.parametrize("path", ["stepz", "objective.shift", "steps.first", "nowhere.at.all"])
def test_paths_that_lead_nowhere_are_refused(tiny_config, path):
    with pytest.raises(InvalidInput, match="setting is"):
        with_settings(tiny_config(), {path: 1})


def test_every_setting_that_touches_the_weights_is_compared_when_a_run_is_resumed(tiny_config):
    config = tiny_config(decay="constant", learning_rate=0.5)
    settings, recipe = config.fit_settings(), config.recipe()
    assert (settings.decay, settings.learning_rate, settings.betas) == ("constant", 0.5, (0.9, 0.999))
    shared = {field.name for field in fields(settings)}
    assert shared & recipe.keys() == set()
    assert shared | recipe.keys() == {field.name for field in fields(config)} - {"sample_every"} | {"betas"}


def test_dropping_labels_needs_a_null_class(tiny_config):
    unet = UNetConfig(levels=(Level(channels=8),), norm_groups=8, added=ClassLabels(count=10))
    with pytest.raises(ConfigError, match="label_dropout"):
        tiny_config(unet=unet)


def test_pictures_that_do_not_fit_the_network_are_refused(tiny_config, tiny_pictures):
    tiny_config().require_pictures(tiny_pictures)
    unet = UNetConfig(levels=(Level(channels=8),), norm_groups=8, added=ClassLabels(count=9, null=True))
    with pytest.raises(ConfigError, match=r"unet\.in_channels"):
        tiny_config(unet=unet).require_pictures(tiny_pictures)
    wider = replace(tiny_config().unet, out_channels=2)
    with pytest.raises(ConfigError, match=r"unet\.in_channels = 1: and out_channels must be 1"):
        tiny_config(unet=wider).require_pictures(tiny_pictures)
    nine = with_settings(tiny_config(), {"unet.num_class_embeds": 10, "unet.null_class_label": 9})
    with pytest.raises(ConfigError, match=r"unet\.added\.count = 9"):
        nine.require_pictures(tiny_pictures)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("data", [Digits(size=16), Cifar10(folder="x"), ImageFolder(folder="x")])
def test_presets_fit_their_pictures(objective, data, tiny_pictures):
    config = preset(data, tiny_pictures, objective)
    assert isinstance(config, TrainingConfig)
    config.require_pictures(tiny_pictures)


def test_an_unknown_objective_is_refused(tiny_pictures):
    with pytest.raises(InvalidInput, match="did you mean 'ddpm'"):
        preset(Digits(), tiny_pictures, "ddpn")


def test_the_pixel_network_has_attention_below_the_first_level(tiny_pictures):
    unet = pixel_unet(tiny_pictures, widths=(8, 16, 32), resnets=3, head_dim=8, dropout=0.25)
    assert [(level.channels, level.resnets) for level in unet.levels] == [(8, 3), (16, 3), (32, 3)]
    assert (unet.dropout, unet.sample_size, unet.in_channels, unet.out_channels) == (0.25, 8, 1, 1)
    assert unet.middle.attention.heads == 4
    assert [level.attention and level.attention.heads for level in unet.levels] == [None, 2, 4]
    assert unet.added == ClassLabels(count=10, null=True)
    assert unet.timestep_sinusoid_dim == 8  # as diffusers' UNet2DModel has it
