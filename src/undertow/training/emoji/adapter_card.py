"""The cards of the ControlNet and the image prompt of the embedded model, and the folders in which they ship."""

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from undertow.checkpoints.files import write_text
from undertow.training.emoji.card import CARD, LICENSE

ENCODER = "image_encoder"


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says. use: a line of Python that draws with it. data: what it was trained on. limits: one a line."""

    title: str
    summary: str
    use: str
    data: str
    limits: tuple[str, ...]


EDGES = About(
    title="emoji-edges",
    summary="A ControlNet for the embedded model `emoji`: it draws emoji where an edge map has their outlines. "
    "`undertow preprocess canny PICTURE` makes such maps.",
    use='Adapter(FOLDER, image="edges.png")',
    data="Scenes of one or two emoji at any size and place, and OpenCV's canny edges of them, thresholds 100 and 200.",
    limits=(
        "Edges one pixel wide of pictures of 64x64 pixels; soft edges, scribbles and line art were never seen.",
        "Outlines of other things than its emoji are filled with what is nearest to them.",
    ),
)
REFERENCES = About(
    title="emoji-references",
    summary="An image prompt (IP-Adapter, base, 4 tokens) for the embedded model `emoji`, and the small CLIP vision "
    f"network that it reads, in `{ENCODER}`: it draws the emoji that a reference picture shows.",
    use='Adapter(FOLDER + "/emoji-references.safetensors", image="reference.png")',
    data="Single emoji, each beside another picture of the same emoji on another background; the vision network "
    "learned to tell emoji apart, at many sizes, anywhere, on backgrounds of any color, blurred and noisy.",
    limits=(
        "The vision network knows the emoji of the model and nothing else: it names the nearest one, whatever it sees.",
        "One emoji in a reference; of two, either may be drawn.",
    ),
)


def ship_control(trained: Path, folder: Path) -> Path:
    """A trained ControlNet's folder with its card, written anew. Errors: `OSError` when it is not there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder)
    return _described(folder, EDGES)


def ship_image_prompt(trained: Path, encoder: Path, folder: Path) -> Path:
    """A trained image prompt, the encoder that it reads and a card, in one folder, written anew; diffusers and undertow
    find the encoder there. Errors: `OSError` when either is not there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(encoder, folder / ENCODER)
    shutil.copy2(trained, folder / f"{REFERENCES.title}.safetensors")
    return _described(folder, REFERENCES)


def card(about: About, megabytes: float) -> str:
    """The card. megabytes: of its weights."""
    limits = "\n".join(f"- {line}" for line in about.limits)
    return f"""# {about.title}

{about.summary} {megabytes:.1f} MB in float16.

    from undertow import Adapter, load

    load("emoji").generate("red apple on white background", adapters=({about.use},))

## Data

{about.data} Pictures rendered from the Noto Color Emoji font, captions from Unicode names, as for `emoji`; no
photographs, no people, no text from the web. Written and trained by `benchmarks/training/emoji_adapters.py` and the
commands that it prints.

Noto Color Emoji: Copyright Google Inc. and contributors, https://github.com/googlefonts/noto-emoji, licensed under the
SIL Open Font License 1.1, whose text is in `{LICENSE}`. The weights are under the license of undertow, Apache-2.0.

## Figures

`docs/results/control.md`, by `benchmarks/control_emoji.py`.

## Limits

{limits}
"""


def _described(folder: Path, about: About) -> Path:
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    write_text(card(about, weights / 1e6), folder / CARD)
    write_text((files("undertow.training.emoji") / LICENSE).read_text(encoding="utf-8"), folder / LICENSE)
    return folder
