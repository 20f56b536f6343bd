"""The embedded model in few steps: its guidance is distilled away, then the student is tuned to be consistent.

OUT/guided/         guidance distillation: log.jsonl, loss.png, checkpoints/, model/
OUT/autoencoder/    an autoencoder of fewer channels: the same, without a model
OUT/redrawn.pt      training pictures, as the teacher draws them
OUT/decoder/        the decoder of fewer channels learns from them: like OUT/autoencoder
OUT/turbo/          consistency tuning, from OUT/guided/model: the same, and turbo/model is what ships
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from recipes.emoji.decoder import redrawn_in, train_decoder
from recipes.emoji.editions import Edition
from recipes.emoji.narrow_autoencoder import train_narrow_autoencoder
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import spoken
from recipes.emoji.text_to_image import TextToImage, with_unknown_word
from undertow.checkpoints.read.model_loading import load_model
from undertow.training.captioned import CaptionedPictures, Crop
from undertow.training.consistency import Tightening
from undertow.training.distillation import DistillationSettings, train_distilled
from undertow.training.distillation_export import write_distilled
from undertow.training.distillation_losses import ConsistencyTuning, GuidanceDistillation
from undertow.training.fit import FitSettings
from undertow.training.log import StepRecord
from undertow.training.randomness import seed_for
from undertow.vae.autoencoder import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class TurboRecipe:
    """What decides the model, beside its teacher. Levels of noise that say nothing about shapes weigh no more than
    min(SNR, 2) + 1, as in the teacher's own training."""

    pictures: int = 16_384
    guidance: DistillationSettings = DistillationSettings(
        fit=FitSettings(
            steps=300,
            batch_size=32,
            learning_rate=1e-3,
            optimizer="muon",
            warmup_steps=20,
            ema_decay=0.98,
            checkpoint_every=50,
        ),
        method=GuidanceDistillation(guidance=4.0),
        timesteps="logit_normal",
        min_snr_gamma=2.0,
    )
    # Three stages: levels that lie nearer to each other made pictures worse again.
    tuning: DistillationSettings = DistillationSettings(
        fit=FitSettings(
            steps=1500,
            batch_size=32,
            learning_rate=1e-3,
            optimizer="muon",
            warmup_steps=20,
            decay="cosine",
            ema_decay=0.98,
            checkpoint_every=100,
        ),
        method=ConsistencyTuning(tightening=Tightening(every=250, stages=3)),
        min_snr_gamma=2.0,
    )
    narrower: int = 2
    autoencoder: FitSettings = FitSettings(
        steps=2500,
        batch_size=8,
        learning_rate=4e-3,
        optimizer="muon",
        warmup_steps=20,
        decay="cosine",
        ema_decay=0.99,
        checkpoint_every=100,
    )
    redrawn: int = 4096
    decoder: FitSettings = FitSettings(
        steps=500,
        batch_size=16,
        learning_rate=3e-3,
        optimizer="muon",
        warmup_steps=20,
        decay="cosine",
        ema_decay=0.98,
        seed=3,
        checkpoint_every=50,
    )


def train_turbo(
    teacher: Path,
    out: Path,
    recipe: TurboRecipe,
    edition: Edition,
    glyphs: Glyphs,
    *,
    on_stage: Callable[[str, int], None] = lambda name, total: None,
    on_record: Callable[[StepRecord], None] = lambda record: None,
    on_count: Callable[[int], None] = lambda count: None,
) -> Path:
    """Runs what is not done yet and returns the folder of the finished model. teacher: a pipeline folder. Errors: those
    of `train_distilled`, and `DataError` for the font."""
    glyphs.require()
    pictures = training_pictures(recipe.pictures, edition, glyphs)

    def distilled(name: str, settings: DistillationSettings, model: Path, vae: AutoencoderKL | None = None) -> Path:
        on_stage(name, settings.fit.steps)
        loaded = load_model(model, dtype=torch.float32, channels_last=True)
        student = train_distilled(loaded, pictures, settings, out / name, on_record=on_record)
        trained = out / name / "model"
        return trained if trained.is_dir() else write_distilled(student, loaded, settings.method, trained, vae)

    guided = distilled("guided", recipe.guidance, teacher)
    loaded = load_model(teacher, dtype=torch.float32, channels_last=True)
    on_stage("redrawn", recipe.redrawn)
    redrawn = redrawn_in(
        out / "redrawn.pt",
        TextToImage(loaded.require_text().encoders[0], loaded.require_unet()),
        loaded.require_vae(),
        recipe.redrawn,
        glyphs,
        edition=edition,
        on_pictures=on_count,
    )
    on_stage("autoencoder", recipe.autoencoder.steps)
    vae = train_narrow_autoencoder(
        loaded.require_vae(),
        recipe.narrower,
        recipe.autoencoder,
        out / "autoencoder",
        glyphs,
        edition=edition,
        on_record=on_record,
    )
    on_stage("decoder", recipe.decoder.steps)
    vae = train_decoder(vae, redrawn, recipe.decoder, out / "decoder", glyphs, edition=edition, on_record=on_record)
    return distilled("turbo", recipe.tuning, guided, vae)


def training_pictures(count: int, edition: Edition, glyphs: Glyphs) -> CaptionedPictures:
    """Random training scenes on whole cells with their captions, as the teacher was trained on."""
    random = Random(seed_for(0, "turbo"))
    scenes, pixels = edition.draw(random, count, glyphs, edition.on_cells)
    crop = Crop(height=edition.side, width=edition.side, top=0, left=0)
    captions = tuple(with_unknown_word(spoken(scene, random), random) for scene in scenes)
    return CaptionedPictures(pixels=pixels, captions=captions, crops=(crop,) * count, rule="from scenes")
