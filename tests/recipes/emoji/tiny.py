"""The recipe at a scale of seconds: every stage is real, the networks are small and hardly trained."""

import atexit
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from recipes.emoji import autoencoder
from recipes.emoji import recipe as recipes
from recipes.emoji.names import EMOJI
from recipes.emoji.recipe import EmojiRecipe, train_emoji
from recipes.emoji.render import FONT, Glyphs
from undertow.training.fit import FitSettings

needs_font = pytest.mark.skipif(not FONT.is_file(), reason="Noto Color Emoji is not installed")

SETTINGS = FitSettings(
    steps=3, batch_size=4, learning_rate=1e-3, warmup_steps=1, log_every=1, checkpoint_every=2, precision="float32"
)
TINY = EmojiRecipe(
    level_channels=(8, 8, 16),
    latent_channels=4,
    widths=(32, 64),
    context_dim=32,
    text_layers=1,
    text_heads=2,
    pictures=96,
    autoencoder=SETTINGS,
    text_encoder=SETTINGS,
    text_to_image=replace(SETTINGS, batch_size=8),
    asked_of_pairs=0.05,
    details=replace(SETTINGS, batch_size=8, seed=2),
    pairs=replace(SETTINGS, batch_size=8),
    polish=replace(SETTINGS, batch_size=8, seed=4),
    redrawn=8,
    decoder=SETTINGS,
)


@contextmanager
def quick_recipe() -> Generator[None]:
    """Drawn glyphs, since a font would change nothing here, and few pictures to look at: eight to a sheet, not 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "Glyphs", DrawnGlyphs)
        patch.setattr(recipes, "SHOWN", recipes.SHOWN[:2])
        patch.setattr(recipes, "HELD_OUT_PICTURES", 32)
        patch.setattr(autoencoder, "NORMALIZED_ON", 64)
        yield


@cache
def trained_run() -> Path:
    """The folder of a run, trained once in a session, to be read only; its model is in `model`."""
    place = tempfile.TemporaryDirectory(prefix="undertow-emoji-")
    atexit.register(place.cleanup)
    run = Path(place.name) / "run"
    with quick_recipe(), torch.random.fork_rng(devices=[]):  # what a test draws must not depend on who came first
        train_emoji(run, TINY)
    return run


class DrawnGlyphs(Glyphs):
    """Glyphs of colored triangles and boxes, another for each name, where no font is installed.

    Only the source of the bitmaps differs: scaling and cropping are those of the font's glyphs.
    """

    def _bitmap(self, name: str) -> Image.Image:
        index = EMOJI.index(name)
        picture = Image.new("RGBA", (100, 80 + index % 3 * 20))
        draw = ImageDraw.Draw(picture)
        low, high = 40 + index * 2, 255 - index * 2
        width, height = picture.size
        draw.polygon([(0, 0), (width - 1, height * (1 + index % 7) // 8), (0, height - 1)], fill=(low, high, 60, 255))
        draw.rectangle(
            (width * (index % 5) // 8, 4, width - 1, height * (index % 4 + 2) // 8), fill=(high, 80, low, 255)
        )
        return picture


@cache
def drawn_glyphs() -> Glyphs:
    return DrawnGlyphs(Path("drawn"))
