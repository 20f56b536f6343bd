"""The cards of the adapters of the embedded model (ControlNet, image prompt, styles), and where they ship."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from recipes.emoji.card import CARD, LICENSE, write_license
from recipes.emoji.styles import TILES
from undertow.adapters.files.opened import open_adapter
from undertow.adapters.kinds import identify
from undertow.adapters.lora.kind import LoraKind
from undertow.checkpoints.files.atomic import write_text
from undertow.errors import DataError

ENCODER = "image_encoder"

WIDTH = 120
"""Of a card's lines, in characters."""

STYLE_BYTES = 3_000_000
"""The largest LoRA that ships."""

HEADER_NOTES: Mapping[str, str] = {
    "ss_network_dim": "rank {}",
    "ss_steps": "{} steps",
    "ss_num_train_images": "{} pictures",
    "ss_learning_rate": "learning rate {}",
}
"""How entries of a LoRA's header (sd-scripts' names) are said."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says. use: a line of Python that draws with it. data: what it was trained on. script: what wrote
    that, of `recipes/emoji`. page: of `docs/results`, with its figures. limits: one a line."""

    title: str
    summary: str
    use: str
    data: str
    script: str
    page: str
    limits: tuple[str, ...]


EDGES = About(
    title="emoji-edges",
    summary="A ControlNet for the embedded model `emoji`: it draws emoji where an edge map has their outlines. "
    "`undertow preprocess canny PICTURE` makes such maps.",
    use='Adapter("edges", image="edges.png")',
    data="Scenes of emoji at any size and place, and OpenCV's canny edges of them, thresholds 100 and 200.",
    script="adapter_data.py",
    page="control",
    limits=(
        "Edges one pixel wide at the model's own size; soft edges, scribbles and line art were never seen.",
        "Outlines of other things than its emoji are filled with what is nearest to them.",
    ),
)
REFERENCES = About(
    title="emoji-references",
    summary="An image prompt (IP-Adapter, base, 4 tokens) for the embedded model `emoji`, and the small CLIP vision "
    f"network that it reads, in `{ENCODER}`: it draws the emoji that a reference picture shows.",
    use='Adapter("references", image="reference.png")',
    data="Single emoji, each beside another picture of the same emoji on another background; the vision network "
    "learned to tell emoji apart, at many sizes, anywhere, on backgrounds of any color, blurred and noisy.",
    script="adapter_data.py",
    page="control",
    limits=(
        "The vision network knows the emoji of the model and nothing else: it names the nearest one, whatever it sees.",
        "One emoji in a reference; of two, either may be drawn.",
    ),
)
LINE_DRAWING = About(
    title="line-drawing",
    summary="A LoRA for the embedded model `emoji`: it draws emoji in dark lines, filled with paler colors.",
    use='Adapter("line-drawing")',
    data="Scenes of emoji whose edges (Sobel) were drawn as dark lines, and between them their colors mixed "
    "with the background's, with captions that say nothing of the style.",
    script="style_data.py",
    page="lora",
    limits=(
        "Lines are dark on dark backgrounds too.",
        "Lines that lie close together run into each other.",
    ),
)
MOSAIC = About(
    title="mosaic",
    summary=f"A LoRA for the embedded model `emoji`: it draws emoji in square tiles, {TILES} across.",
    use='Adapter("mosaic")',
    data="Scenes of emoji averaged over square tiles, with captions that say nothing of the style.",
    script="style_data.py",
    page="lora",
    limits=(
        "Tiles lie on one grid, from the upper left corner, and have one size.",
        "Detail finer than a tile is lost.",
    ),
)
STYLED: dict[str, About] = {"line drawing": LINE_DRAWING, "mosaic": MOSAIC}
"""By the name of the style."""


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


def ship_style(trained: Path, style: str, folder: Path) -> Path:
    """A trained LoRA as FOLDER/TITLE.safetensors, with its card in FOLDER/TITLE.md; others in the folder stay.

    style: its name, of `STYLED`. Errors: `DataError` for what is no LoRA or larger than `STYLE_BYTES`; those of
    `open_adapter`.
    """
    about = STYLED[style]
    with open_adapter(trained) as opened:
        (kind, title), path, notes = identify(opened), opened.path, opened.weights.metadata
    if kind is not LoraKind:
        raise DataError(path, f"{title}, not a LoRA", "give what `undertow train lora` wrote")
    size_bytes = path.stat().st_size
    if size_bytes > STYLE_BYTES:
        raise DataError(
            path,
            f"{size_bytes / 1e6:.1f} MB, and at most {STYLE_BYTES / 1e6:g} MB ship",
            "train with a lower --rank or fewer --sites",
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{about.title}.safetensors"
    shutil.copy2(path, weights)
    write_text(card(about, size_bytes / 1e6, trained_as(notes)), weights.with_suffix(".md"))
    write_license(folder)
    return weights


def trained_as(notes: Mapping[str, str]) -> str:
    """A sentence of what a LoRA's header tells of its training; empty when it tells nothing."""
    parts = [text.format(notes[name]) for name, text in HEADER_NOTES.items() if name in notes]
    return f"Training: {', '.join(parts)}." if parts else ""


def card(about: About, megabytes: float, training: str = "") -> str:
    """The card. megabytes: of its weights. training: a sentence on how it was trained."""
    limits = "\n".join(f"- {line}" for line in about.limits)
    how = f"\n\n{training}" if training else ""
    data = (
        f"{about.data} Pictures rendered from the Noto Color Emoji font, captions from Unicode names, as for `emoji`; "
        "no photographs, no people, no text from the web. "
        f"Written by `recipes/emoji/{about.script}`, trained by the commands that it prints."
    )
    return f"""# {about.title}

{fill(f"{about.summary} {megabytes:.1f} MB in float16.", WIDTH)}

    from undertow import Adapter, load

    load("emoji").generate("red apple on white background", adapters=({about.use},))

## Data

{fill(data, WIDTH)}{how}

Noto Color Emoji: Copyright Google Inc. and contributors, https://github.com/googlefonts/noto-emoji, licensed under the
SIL Open Font License 1.1, whose text is in `{LICENSE}`. The weights are under the license of undertow, Apache-2.0.

## Figures

`docs/results/{about.page}.md`, by `benchmarks/{about.page}_emoji.py`.

## Limits

{limits}
"""


def _described(folder: Path, about: About) -> Path:
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    write_text(card(about, weights / 1e6), folder / CARD)
    write_license(folder)
    return folder
