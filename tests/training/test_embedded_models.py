"""The two models that ship: they load in diffusers, and they draw the digits that were asked for."""

import diffusers
import pytest
import torch

from undertow.checkpoints.read.class_model import load_class_model
from undertow.embedded import embedded_models
from undertow.engine.class_pictures import sample_classes, sampling_settings
from undertow.training.data import Digits
from undertow.training.evaluate import evaluate_samples
from undertow.unet.conditioning import Conditioning

NAMES = ("digits-ddpm", "digits-flow")

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
LARGEST_BYTES = 10 * 2**20
NEARLY_ALL = 0.9
"""Twenty samples are few: docs/results/digits.md has the figures of a thousand."""


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_loads_them_and_predicts_the_same(name):
    folder = embedded_models()[name]
    theirs = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    ours = load_class_model(folder).unet
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    timesteps, labels = torch.tensor([1.0, 500.5, 998.0]), torch.tensor([0, 9, 10])
    with torch.no_grad():
        expected = theirs(x, timesteps, labels).sample
        found = ours(x, timesteps, Conditioning(class_labels=labels))
    torch.testing.assert_close(found, expected, **FLOAT32)
    assert found.abs().mean() > 0.1


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("digits-ddpm", diffusers.DDPMScheduler), ("digits-flow", diffusers.FlowMatchEulerDiscreteScheduler)],
)
def test_their_schedulers_load_in_diffusers(name, scheduler):
    loaded = scheduler.from_pretrained(embedded_models()[name], subfolder="scheduler")
    assert loaded.config.num_train_timesteps == 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_they_draw_the_digits_asked_for(name):
    model = load_class_model(embedded_models()[name])
    assert model.class_names == tuple("0123456789")
    labels = list(range(10)) * 2
    pixels = sample_classes(model, labels, range(20), sampling_settings(model.path, steps=10, guidance=2.0))
    found = evaluate_samples(pixels, torch.tensor(labels), training=Digits().open(), test=Digits().open(split="test"))
    assert found.accuracy >= NEARLY_ALL
    assert found.copies < 0.1


def test_they_are_small():
    folders = [embedded_models()[name] for name in NAMES]
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < LARGEST_BYTES
