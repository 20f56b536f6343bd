"""The recipe of the embedded model `emoji`, from nothing to a folder that diffusers loads; goes on where it stopped.

OUT/tokenizer/        learned from the captions
OUT/autoencoder/      stage 1: log.jsonl, psnr.jsonl, loss.png, samples/, checkpoints/
OUT/whole_pictures/   stage 1 goes on with whole pictures, if it began with parts of them
OUT/latents.pt        stage 2: training pictures, encoded
OUT/text_encoder/     stage 3: log.jsonl, loss.png, checkpoints/
OUT/text_to_image/    stage 4: like stage 1
OUT/details/          stage 4 goes on with less noise, if it began with more of it
OUT/pairs/            stage 5: goes on with more pictures of two emoji
OUT/polish/           the U-Net alone goes on with less noise
OUT/redrawn.pt        stage 6: training pictures, drawn anew
OUT/decoder/          the decoder learns from them
OUT/model/            the pipeline in float16
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.autoencoder import (
    KL_WEIGHT,
    normalize,
    psnr,
    read_autoencoder,
    rebuilt,
    scenes_at,
    train_autoencoder,
    vae_config,
)
from recipes.emoji.card import TEXT_TO_IMAGE, stage
from recipes.emoji.decoder import redrawn_in, train_decoder
from recipes.emoji.draw import draw
from recipes.emoji.editions import CRISP, FIRST, Edition
from recipes.emoji.export import export
from recipes.emoji.folders import save_whole
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.text_encoder import asked_beside, train_text_encoder
from recipes.emoji.text_to_image import (
    OBJECTIVE,
    CachedLatents,
    TextToImage,
    cache_latents,
    new_model,
    train_text_to_image,
)
from recipes.emoji.tokenizer import save_tokenizer
from undertow.encoders.tokenizer import FolderTokenizer
from undertow.pictures.pixels import from_uint8
from undertow.training.figures import save_grid
from undertow.training.fit import FitSettings, Progress
from undertow.training.log import StepRecord
from undertow.training.objective import Objective, TruncatedSNRWeighting
from undertow.training.timesteps import LogitNormalTimesteps
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig

SHOWN = (
    "red apple on white background",
    "cat face on blue background",
    "rocket on yellow background",
    "hamburger on pink background",
    "grinning face on purple background",
    "bicycle on green background",
    "penguin on red background",
    "birthday cake on gray background",
    "red apple left of dog face on blue background",
    "crown above skull on pink background",
    "key below bell on white background",
    "sunflower right of guitar on gray background",
    "a strawberry on a white background",
    "owl",
    "cactus left of camera on yellow background",
    "",
)
"""Captions of the sample sheets, four seeds each."""

HELD_OUT_PICTURES = 256

MEASURED_OFTEN = 64
"""The first of them, at every checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EmojiRecipe:
    """Everything that decides the model, beside the font."""

    edition: Edition = FIRST
    level_channels: tuple[int, ...] = (32, 64, 96)
    latent_channels: int = 8
    middle_attention: bool = True
    kl_weight: float = KL_WEIGHT
    crop: int | None = None
    widths: tuple[int, ...] = (96, 192)
    context_dim: int = 192
    text_layers: int = 3
    text_heads: int = 3
    pictures: int = 65_536
    objective: Objective = OBJECTIVE
    detail_objective: Objective = OBJECTIVE
    pair_objective: Objective = OBJECTIVE
    asked_of_pairs: float | None = None
    autoencoder: FitSettings = FitSettings(
        steps=4800, batch_size=8, learning_rate=4e-4, ema_decay=0.995, checkpoint_every=200
    )
    whole_pictures: FitSettings | None = None
    text_encoder: FitSettings = FitSettings(
        steps=600, batch_size=128, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99, checkpoint_every=100
    )
    text_to_image: FitSettings = FitSettings(
        steps=5625, batch_size=64, learning_rate=8e-4, warmup_steps=300, ema_decay=0.999, checkpoint_every=500
    )
    details: FitSettings | None = None
    pairs: FitSettings = FitSettings(
        steps=900, batch_size=64, learning_rate=4e-4, warmup_steps=50, ema_decay=0.995, seed=1, checkpoint_every=150
    )
    polish: FitSettings | None = None
    redrawn: int = 8192
    decoder: FitSettings | None = None

    def vae(self) -> VAEConfig:
        """The autoencoder's architecture."""
        side, attention = self.edition.side, self.middle_attention
        return vae_config(self.level_channels, self.latent_channels, side=side, middle_attention=attention)

    def unet(self) -> UNetConfig:
        """Cross-attention everywhere but at the first level, where it costs most and shows least."""
        levels = tuple(
            Level(channels=width, resnets=1, attention=CrossAttention(heads=width // 32) if index else None)
            for index, width in enumerate(self.widths)
        )
        return UNetConfig(
            levels=levels,
            middle=Middle(attention=CrossAttention(heads=self.widths[-1] // 32)),
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            context_dim=self.context_dim,
            sample_size=self.edition.side // self.vae().factor,
        )


CRISP_RECIPE = EmojiRecipe(
    edition=CRISP,
    level_channels=(32, 32, 64, 128),
    latent_channels=32,
    middle_attention=False,
    kl_weight=1e-5,
    crop=64,
    autoencoder=FitSettings(
        steps=5000, batch_size=8, learning_rate=4e-3, optimizer="muon", ema_decay=0.998, checkpoint_every=100
    ),
    whole_pictures=FitSettings(
        steps=400,
        batch_size=8,
        learning_rate=1e-3,
        optimizer="muon",
        warmup_steps=20,
        ema_decay=0.99,
        checkpoint_every=50,
    ),
    pictures=49_152,
    objective=replace(OBJECTIVE, timesteps=LogitNormalTimesteps(mean=0.3, std=1.0, stratified=True)),
    # Half of the levels lie below sigma 1.7 now, a twentieth below 0.35, where what is inside of cells is decided.
    detail_objective=replace(
        OBJECTIVE,
        timesteps=LogitNormalTimesteps(mean=-0.2, std=1.2, stratified=True),
        weighting=TruncatedSNRWeighting(limit=12.0),
    ),
    # And half above 5.5: which of two emoji stands where is decided while both are hardly to be seen.
    pair_objective=replace(
        OBJECTIVE,
        timesteps=LogitNormalTimesteps(mean=0.8, std=1.6, stratified=True),
        weighting=TruncatedSNRWeighting(limit=12.0),
    ),
    asked_of_pairs=0.05,
    text_encoder=FitSettings(
        steps=800, batch_size=128, learning_rate=1e-3, warmup_steps=50, ema_decay=0.99, checkpoint_every=100
    ),
    text_to_image=FitSettings(
        steps=3000,
        batch_size=64,
        learning_rate=5e-3,
        optimizer="muon",
        decay="constant",
        ema_decay=0.995,
        checkpoint_every=200,
    ),
    details=FitSettings(
        steps=3000,
        batch_size=64,
        learning_rate=4e-3,
        optimizer="muon",
        warmup_steps=20,
        decay="cosine",
        ema_decay=0.995,
        seed=2,
        checkpoint_every=200,
    ),
    pairs=FitSettings(
        steps=600,
        batch_size=64,
        learning_rate=2e-3,
        optimizer="muon",
        warmup_steps=50,
        decay="cosine",
        ema_decay=0.99,
        seed=1,
        checkpoint_every=100,
    ),
    polish=FitSettings(
        steps=3000,
        batch_size=64,
        learning_rate=3e-3,
        optimizer="muon",
        warmup_steps=50,
        decay="cosine",
        ema_decay=0.998,
        seed=5,
        checkpoint_every=250,
    ),
    redrawn=4096,
    decoder=FitSettings(
        steps=1200,
        batch_size=16,
        learning_rate=3e-3,
        optimizer="muon",
        warmup_steps=20,
        decay="cosine",
        ema_decay=0.98,
        seed=3,
        checkpoint_every=50,
    ),
)
"""The second edition: 128 pixels, whose autoencoder halves three times."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions that are called with what begins, every line of a log, and how many pictures are encoded."""

    on_stage: Callable[[str, int], None] = lambda name, total: None
    on_record: Callable[[StepRecord], None] = lambda record: None
    on_count: Callable[[int], None] = lambda count: None


def train_emoji(
    out: Path,
    recipe: EmojiRecipe,
    *,
    font: Path = FONT,
    autoencoder: Path | None = None,
    callbacks: Callbacks = Callbacks(),
) -> Path:
    """Runs what is not done yet and returns the folder of the finished model. autoencoder: a folder of diffusers'
    AutoencoderKL that was trained by this recipe before; without one, it is trained.

    Errors: `DataError` for the font; `CheckpointError` for a folder of another recipe; `ConfigError` for an autoencoder
    of another one; `MissingDependency`.
    """
    glyphs = Glyphs(font)
    glyphs.require()
    if not (out / "tokenizer").is_dir():
        save_tokenizer(out / "tokenizer")
    if autoencoder is None:
        vae = autoencoder_stages(out, recipe, glyphs, callbacks)
    else:
        vae = read_autoencoder(autoencoder, recipe.vae())
    data = _latents(out / "latents.pt", vae, recipe, glyphs, callbacks)
    model = _text_to_image(out, recipe, data, vae, callbacks)
    if recipe.decoder is not None:
        callbacks.on_stage("redrawn", recipe.redrawn)
        redrawn = redrawn_in(
            out / "redrawn.pt",
            model,
            vae,
            recipe.redrawn,
            glyphs,
            edition=recipe.edition,
            on_pictures=callbacks.on_count,
        )
        callbacks.on_stage("decoder", recipe.decoder.steps)
        vae = train_decoder(
            vae,
            redrawn,
            recipe.decoder,
            out / "decoder",
            glyphs,
            edition=recipe.edition,
            on_record=callbacks.on_record,
            on_checkpoint=partial(_show_rebuilt, folder=out / "decoder", unseen=held_out(glyphs, recipe.edition)),
        )
    stages = (
        *([] if autoencoder else [stage("autoencoder", vae, recipe.autoencoder, out / "autoencoder")]),
        stage(TEXT_TO_IMAGE, model, recipe.text_to_image, out / "text_to_image"),
        *([stage("the same, on less noise", model, recipe.details, out / "details")] if recipe.details else []),
        stage("the same, mostly on two emoji", model, recipe.pairs, out / "pairs"),
        *([stage("the U-Net alone, on less noise", model, recipe.polish, out / "polish")] if recipe.polish else []),
    )
    return export(model, vae, out / "tokenizer", out / "model", stages=stages)


def autoencoder_stages(out: Path, recipe: EmojiRecipe, glyphs: Glyphs, callbacks: Callbacks) -> AutoencoderKL:
    """Stage 1, on parts of pictures and then on whole ones where the recipe says so: latents are normalized."""
    unseen = held_out(glyphs, recipe.edition)
    vae, learned = None, out / "autoencoder"
    for name, settings, crop in (
        ("autoencoder", recipe.autoencoder, recipe.crop),
        ("whole_pictures", recipe.whole_pictures, None),
    ):
        if settings is not None:
            learned = out / name
            callbacks.on_stage(name.replace("_", " "), settings.steps)
            vae = train_autoencoder(
                recipe.vae(),
                settings,
                learned,
                glyphs,
                edition=recipe.edition,
                crop=crop,
                start=vae,
                kl_weight=recipe.kl_weight,
                on_record=callbacks.on_record,
                on_checkpoint=partial(_show_rebuilt, folder=learned, unseen=unseen),
            )
    assert vae is not None
    normalize(vae, glyphs, recipe.edition)
    (learned / "psnr.txt").write_text(f"{psnr(vae, from_uint8(unseen)):.2f} dB\n", encoding="utf-8")
    return vae


def held_out(glyphs: Glyphs, edition: Edition) -> UInt8[Tensor, "count 3 side side"]:
    """Pictures that no autoencoder is trained with."""
    return scenes_at("held out", 0, HELD_OUT_PICTURES, glyphs, edition)


def _show_rebuilt(progress: Progress, folder: Path, unseen: UInt8[Tensor, "count 3 side side"]) -> None:
    vae, few = progress.network, unseen[:32]
    assert isinstance(vae, AutoencoderKL)
    save_grid(torch.cat([few, rebuilt(vae, few)]), 16, folder / "samples" / f"step-{progress.step:06d}.png")
    with (folder / "psnr.jsonl").open("a", encoding="utf-8") as log:
        figure = round(psnr(vae, from_uint8(unseen[:MEASURED_OFTEN])), 3)
        log.write(json.dumps({"step": progress.step, "psnr": figure}) + "\n")


def _latents(
    path: Path, vae: AutoencoderKL, recipe: EmojiRecipe, glyphs: Glyphs, callbacks: Callbacks
) -> CachedLatents:
    if not path.is_file():
        callbacks.on_stage("latents", recipe.pictures)
        data = cache_latents(vae, recipe.pictures, glyphs, edition=recipe.edition, on_pictures=callbacks.on_count)
        save_whole({"latents": data.latents, "captions": list(data.captions)}, path)
    stored = torch.load(path, weights_only=True)
    return CachedLatents(latents=stored["latents"], captions=tuple(stored["captions"]))


def _text_to_image(
    out: Path, recipe: EmojiRecipe, data: CachedLatents, vae: AutoencoderKL, callbacks: Callbacks
) -> TextToImage:
    tokenizer = FolderTokenizer(out / "tokenizer")
    seed = recipe.text_to_image.seed
    model = new_model(recipe.unet(), layers=recipe.text_layers, heads=recipe.text_heads, tokenizer=tokenizer, seed=seed)

    callbacks.on_stage("text encoder", recipe.text_encoder.steps)
    train_text_encoder(
        model.text, recipe.text_encoder, out / "text_encoder", mix=recipe.edition.mix, on_record=callbacks.on_record
    )

    def show(progress: Progress, folder: Path) -> None:
        average = progress.network
        assert isinstance(average, TextToImage)
        captions = [caption for caption in SHOWN for _ in range(4)]
        pictures = draw(average, vae, captions, list(range(4)) * len(SHOWN))
        save_grid(pictures, 16, folder / "samples" / f"step-{progress.step:06d}.png")

    for name, settings, pictures, objective in (
        ("text_to_image", recipe.text_to_image, data, recipe.objective),
        ("details", recipe.details, data, recipe.detail_objective),
        ("pairs", recipe.pairs, data.mostly_pairs(), recipe.pair_objective),
        ("polish", recipe.polish, data, recipe.detail_objective),
    ):
        if settings is None:
            continue
        callbacks.on_stage(name.replace("_", " "), settings.steps)
        weight = recipe.asked_of_pairs if name == "pairs" else None
        model = train_text_to_image(
            model,
            pictures,
            settings,
            out / name,
            edition=recipe.edition,
            objective=objective,
            text_learns=name != "polish",  # adapters of the text encoder, and whatever has learned its words, stay good
            asked=None if weight is None else asked_beside(model.text, recipe.edition.mix, weight),
            on_record=callbacks.on_record,
            on_checkpoint=partial(show, folder=out / name),
        )
    return model


def quick(recipe: EmojiRecipe) -> EmojiRecipe:
    """The same in half an hour on two cores, to try things out: recognizable, not good."""
    return replace(
        recipe,
        pictures=16_384,
        autoencoder=replace(recipe.autoencoder, steps=1600),
        text_to_image=replace(recipe.text_to_image, steps=2000),
        details=None,
        polish=None,
        pairs=replace(recipe.pairs, steps=300),
        decoder=None,
    )
