"""An autoencoder of fewer channels that speaks another one's latents."""

from dataclasses import replace

import torch

from recipes.emoji.autoencoder import scenes_at, vae_config
from recipes.emoji.editions import FIRST
from recipes.emoji.narrow_autoencoder import train_narrow_autoencoder
from tests.recipes.emoji.tiny import SETTINGS, drawn_glyphs
from tests.vae.minis import build
from undertow.pictures.pixels import from_uint8
from undertow.vae.autoencoder import AutoencoderKL

STEPS = 40


@torch.no_grad()
def errors(student: AutoencoderKL, teacher: AutoencoderKL) -> tuple[float, float]:
    """Mean squares, of the latents of pictures and of the pictures of latents, from the teacher's."""
    x = from_uint8(scenes_at("held out", 0, 8, drawn_glyphs(), FIRST))
    z = teacher.encode(x).mean
    latents = (student.encode(x).mean - z).square().mean()
    return float(latents), float((student.decode(z) - x).square().mean())


def test_it_learns_its_teachers_latents_and_to_draw_from_them(tmp_path):
    teacher = build(vae_config((16, 16, 16), 4))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found = {}
    for steps in (1, STEPS):
        settings = replace(
            SETTINGS, steps=steps, optimizer="muon", learning_rate=1e-2, ema_decay=0.9, checkpoint_every=100
        )
        out = tmp_path / f"{steps}"
        student = train_narrow_autoencoder(teacher, 2, settings, out, drawn_glyphs(), edition=FIRST)
        found[steps] = errors(student, teacher)
    assert student.config == replace(teacher.config, level_channels=(8, 8, 8))
    assert found[STEPS][0] < 0.7 * found[1][0]
    assert found[STEPS][1] < 0.7 * found[1][1]
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())
