"""What the pages on emoji's adapters have in common: options, pictures drawn for captions, tables, rows of pictures."""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import undertow
from recipes.arguments import count
from recipes.emoji.draw import SETTINGS
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.sections import find_section, section
from undertow import Adapter, GenerationRequest, UNetService
from undertow.checkpoints.files.atomic import write_text
from undertow.pictures.pixels import from_uint8, to_uint8
from undertow.training.figures import save_grid

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "undertow" / "models" / "emoji" / "adapters"

SHOWN = 16
"""Pictures of a row."""

AT_ONCE = 25
"""Requests that are drawn together."""

KEPT = "tried"
"""The section of a page that people write, and that a new run keeps."""
UNTOLD = "Nobody has written yet what was tried."


def page_options(doc: str | None) -> argparse.ArgumentParser:
    """The options of every page. doc: the script's, whose first line is its description."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--model", default="emoji", help="embedded model or pipeline folder")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=SETTINGS.steps)
    parser.add_argument("--guidance", type=float, default=SETTINGS.guidance)
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    return parser


def opened(options: argparse.Namespace) -> tuple[UNetService, GenerationRequest, Glyphs]:
    """The model, the request that all pictures have in common, and the emoji to recognize them by."""
    torch.set_num_threads(options.threads)
    glyphs = Glyphs(options.font)
    glyphs.require()
    base = GenerationRequest(prompt="", steps=options.steps, guidance_scale=options.guidance)
    return undertow.load(options.model, dtype=torch.float32), base, glyphs


def draw(
    service: UNetService,
    base: GenerationRequest,
    captions: Sequence[str],
    adapters: Sequence[tuple[Adapter, ...]],
) -> torch.Tensor:
    """The n-th picture with seed n."""
    requests = [
        replace(base, prompt=caption, seed=seed, adapters=given)
        for seed, (caption, given) in enumerate(zip(captions, adapters, strict=True))
    ]
    pictures = []
    for start in range(0, len(requests), AT_ONCE):
        results = service.generate_many(requests[start : start + AT_ONCE])
        pictures += [torch.from_numpy(np.asarray(result.images[0]).copy()).permute(2, 0, 1) for result in results]
        print(f"{len(pictures)} of {len(requests)}", flush=True)
    return torch.stack(pictures)


@torch.no_grad()
def rebuild(service: UNetService, pictures: torch.Tensor) -> torch.Tensor:
    """Through the autoencoder, which bounds what can be drawn."""
    vae = service.vae
    return torch.cat([to_uint8(vae.decode(vae.encode(from_uint8(batch)).mean)) for batch in pictures.split(AT_ONCE)])


def as_images(pictures: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pictures]


def size_of(place: Path) -> str:
    files = [place] if place.is_file() else list(place.rglob("*.safetensors"))
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def save_rows(rows: Sequence[torch.Tensor], path: Path) -> None:
    """The first pictures of each, one row below the other."""
    save_grid(torch.cat([row[:SHOWN] for row in rows]), min(SHOWN, len(rows[0])), path)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def conditions(options: argparse.Namespace) -> str:
    """How the pictures of a page were drawn."""
    day = datetime.now(UTC).date().isoformat()
    return f"""{options.prompts} prompts of one emoji on colors it was trained with, the n-th prompt with seed n;
dpmpp_2m with {options.steps} steps on a karras grid, guidance {options.guidance:g}; {day}, torch {torch.__version__},
{options.machine}, {torch.get_num_threads()} threads. Float32."""


def write_page(body: str, page: Path) -> None:
    """body, and below it the section that people wrote, as it was."""
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    told = find_section(before, KEPT)
    write_text(f"{body}\n\n## What was tried\n\n{section(KEPT, UNTOLD if told is None else told)}\n", page)
    print(f"written: {page}")
