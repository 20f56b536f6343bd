"""The model card that ships beside the weights: what it is, from what it was made, what it can and cannot do."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from torch import nn

from recipes.emoji.editions import CRISP, Edition
from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.scenes import PAIRS_KEPT_OUT, RELATIONS
from recipes.emoji.sections import replace_section, section
from undertow.checkpoints.files.atomic import write_text
from undertow.training.fit import FitSettings
from undertow.training.log import read_records

CARD, LICENSE = "README.md", "OFL.txt"
FIGURES = "figures"
TEXT_TO_IMAGE = "text encoder and U-Net"
"""The stage whose steps `train --steps` counts."""
UNMEASURED = "Not measured yet: `python -m recipes.emoji evaluate --model FOLDER --card`."


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training, as its log tells."""

    name: str
    parameters: int
    steps: int
    batch_size: int
    seconds: float


def stage(name: str, networks: nn.Module, settings: FitSettings, folder: Path) -> Stage:
    """A finished stage whose log lies in `folder`."""
    last = read_records(folder / "log.jsonl")[-1]
    return Stage(
        name=name,
        parameters=sum(parameter.numel() for parameter in networks.parameters()),
        steps=last.step,
        batch_size=settings.batch_size,
        seconds=last.seconds,
    )


def write_card(folder: Path, stages: Sequence[Stage], edition: Edition) -> None:
    """Writes the card and the font's license into a model folder."""
    write_text(card(stages, edition), folder / CARD)
    write_license(folder)


def write_license(folder: Path) -> None:
    """The font's."""
    write_text((files("recipes.emoji") / LICENSE).read_text(encoding="utf-8"), folder / LICENSE)


def write_figures(folder: Path, figures: str) -> None:
    """Replaces the figures of the card in a model folder."""
    text = (folder / CARD).read_text(encoding="utf-8")
    write_text(replace_section(text, FIGURES, figures), folder / CARD)


def training_command(stages: Sequence[Stage], edition: Edition) -> str:
    """What trains the model again."""
    steps = next(one.steps for one in stages if one.name == TEXT_TO_IMAGE)
    return f"python -m recipes.emoji train{' --crisp' if edition is CRISP else ''} --steps {steps}"


def card(stages: Sequence[Stage], edition: Edition) -> str:
    """The card, its figures still to be measured."""
    several, fewest_never_trained = ("two or three", "four") if edition.mix.together == 3 else ("two", "three")
    size = f"{edition.side}x{edition.side}"
    rows = "\n".join(
        f"| {one.name} | {one.parameters:,} | {one.steps:,} of {one.batch_size} | {one.seconds / 3600:.1f} h |"
        for one in stages
    )
    return f"""# emoji

A small text-to-image model in the architecture of Stable Diffusion 1 (autoencoder, CLIP text encoder, U-Net with
cross-attention, v-prediction), trained from nothing with undertow's own tools. It draws pictures of {size} pixels: one
of {len(EMOJI)} emoji, or {several} of them {", ".join(RELATIONS[:-1])} or {RELATIONS[-1]} each other, on one of
{len(COLORS)} backgrounds. It is there to try everything on: small enough to ship, fast enough for a laptop.

    undertow generate "red apple on white background"
    undertow generate "red apple left of dog face on blue background"

diffusers' `StableDiffusionPipeline.from_pretrained` reads the same folder.

## Data

Pictures rendered from the Noto Color Emoji font, and captions from the Unicode names of the characters (Python's
`unicodedata`). Emoji: {", ".join(EMOJI)}. Backgrounds: {", ".join(COLORS)}. No photographs, no people, no text from the
web. One background of each emoji and {PAIRS_KEPT_OUT:.0%} of the pairs were kept out, to measure composition.

Noto Color Emoji: Copyright Google Inc. and contributors, https://github.com/googlefonts/noto-emoji, licensed under the
SIL Open Font License 1.1, whose text is in `{LICENSE}`. The font is not part of this model: it is needed only to train
and to evaluate. The weights are under the license of undertow, Apache-2.0.

## Training

| stage | parameters | steps | time |
| --- | --- | --- | --- |
{rows}

On two processor cores, in bfloat16; reproduced by `{training_command(stages, edition)}`.

## Figures

{section(FIGURES, UNMEASURED)}

## Limits

- It knows the words of its captions and no others (`words.json`); `undertow generate` names those it does not know.
- English Unicode names, so "automobile" and not "car", "honeybee" and not "bee".
- One emoji, or {several}; {fewest_never_trained} or more, sizes but {size} and other relations were never trained.
- Fine detail is less than {edition.side} pixels could show: shapes are a little off, and what is thin, as the wheels
  of a bicycle, breaks up.
"""
