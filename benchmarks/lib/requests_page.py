"""The page docs/results/requests.md and its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from benchmarks.lib.request_measures import BESIDE, Inpainted, Placed, Seams
from recipes.emoji.editions import Edition
from recipes.emoji.sections import find_section, section
from recipes.emoji.sheets import FRAME, RIGHT, WRONG
from undertow import GenerationRequest
from undertow.inspection.contact_sheet import Cell, contact_sheet

MOST_OUTSIDE = 1
MOST_REBUILT = 1
"""Levels: the same numbers, rounded to 8 bits by two programs."""

LEAST_PLACED = 0.80
COLUMNS, SHOWN = 4, 16

KEPT = "seen"
"""The section of the page that people write, and that a new run keeps."""
UNTOLD = "Nobody has written yet what the pictures show."


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was measured. few: pictures of what is not counted by prompts. rebuilt: worst difference at strength 0,
    in levels of 255."""

    edition: Edition
    base: GenerationRequest
    conditions: str
    count: int
    few: int
    inpainted: Inpainted
    rebuilt: int
    placed: Sequence[Placed]
    seams: Sequence[Seams]
    rings: Sequence[Seams]

    @property
    def best(self) -> Placed:
        return max(self.placed, key=lambda one: one.both)


def write_page(results: Results, out: Path) -> Path:
    """Writes OUT/requests.md and its pictures; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    place = out / "requests.md"
    told = find_section(place.read_text(encoding="utf-8"), KEPT) if place.is_file() else None
    _inpainted(results.inpainted).save(out / "requests-inpainting.png")
    _placed(results.best).save(out / "requests-regions.png")
    _seams(results.seams, "overlap ").save(out / "requests-seams.png")
    place.write_text(page(results, UNTOLD if told is None else told), encoding="utf-8")
    return place


def page(results: Results, told: str) -> str:
    base, inpainted, best, side = results.base, results.inpainted, results.best, results.edition.side
    alone, of_two = (" or ".join(map(str, sizes)) for sizes in results.edition.on_cells.sizes[:2])
    return f"""# Kinds of request, measured

What [the guide](../guides/requests.md) promises, with the embedded model `emoji`: {base.sampler} with {base.steps}
steps on a {base.schedule} grid, guidance {base.guidance_scale:g}; {results.conditions}.

    python -m benchmarks.emoji_requests --prompts {results.count}

| | wanted | measured |
| --- | --- | --- |
| inpainting, outside the mask: worst difference of {results.count} pictures | ≤ {MOST_OUTSIDE}/255 | \
{inpainted.outside}/255 |
| inpainting, inside the mask: the emoji asked for | | {inpainted.right.float().mean():.0%} |
| image to image at strength 0: worst difference from the reconstruction, {results.few} pictures | \
≤ {MOST_REBUILT}/255 | {results.rebuilt}/255 |
| regional prompts: both emoji in their regions, {results.count} pairs | ≥ {LEAST_PLACED:.0%} | {best.both:.0%} |

{_verdict(results)}

## Inpainting

A rendered picture of two emoji; the half with the second is masked, and the prompt asks for another one there, which
training never showed beside the first. Before pixels are pasted back, latents outside the mask differ from the
picture's by at most {inpainted.latents:.1g}. In each pair before and after, green frames where the masked half is
recognized as what was asked for, red ones where not:

![Inpainting](requests-inpainting.png)

## Regions

{results.count} pairs that training never showed together, one half of the canvas for each, with a prompt like "red
apple on white background" in each region. "Two squares" is a canvas of {2 * side}x{side} or {side}x{2 * side} pixels,
of a trained size for each region; the network was trained at {side}x{side}, with one emoji of {alone} pixels near the
middle, or two of {of_two}.

| canvas | regions by | both right | each |
| --- | --- | --- | --- |
{_table(results.placed, best)}

Recognized as in [the evaluation](emoji.md), each half by itself. The first {min(SHOWN, results.count)} of the best way:

![Regions](requests-regions.png)

## Seams

Mean absolute step from one column of pixels to the next, in levels of 255, over {results.few} pictures: across a line,
{BESIDE} columns beside it, and everywhere. A seam is a ratio of across to beside above 1. Overlapping views on a canvas
of three squares, across the lines where a window begins or ends:

| overlap | across | beside | ratio | everywhere |
| --- | --- | --- | --- | --- |
{_lines(results.seams)}

![Views](requests-seams.png)

A ring: from the last column to the first, one square alone and two squares with views:

| canvas | seamless | across | beside | ratio | everywhere |
| --- | --- | --- | --- | --- | --- |
{_rings(results.rings)}

## What the pictures show

{section(KEPT, told)}
"""


def _verdict(results: Results) -> str:
    missed = []
    if results.inpainted.outside > MOST_OUTSIDE:
        missed.append(f"inpainting, outside the mask, by {results.inpainted.outside - MOST_OUTSIDE}/255")
    if results.rebuilt > MOST_REBUILT:
        missed.append(f"image to image at strength 0, by {results.rebuilt - MOST_REBUILT}/255")
    if results.best.both < LEAST_PLACED:
        missed.append(f"regional prompts, by {100 * (LEAST_PLACED - results.best.both):.0f} points")
    return "Not met:\n\n" + "\n".join(f"- {one}" for one in missed) if missed else "Every bar is met."


def _table(placed: Sequence[Placed], best: Placed) -> str:
    rows = []
    for one in placed:
        name = f"**{one.canvas.name}**" if one is best else one.canvas.name
        rows.append(f"| {name} | {one.canvas.by} | {one.both:.0%} | {one.each:.0%} |")
    return "\n".join(rows)


def _lines(found: Sequence[Seams]) -> str:
    return "\n".join(f"| {one.name} | {_steps(one)} |" for one in found)


def _rings(found: Sequence[Seams]) -> str:
    rows = []
    for one in found:
        canvas = f"{one.picture.width}x{one.picture.height}"
        rows.append(f"| {canvas} | {one.name} | {_steps(one)} |")
    return "\n".join(rows)


def _steps(one: Seams) -> str:
    return f"{one.across:.1f} | {one.beside:.1f} | {one.ratio:.2f} | {one.everywhere:.1f}"


def _inpainted(inpainted: Inpainted) -> Image.Image:
    parts = zip(inpainted.before, inpainted.after, inpainted.scenes, inpainted.right.tolist(), strict=True)
    cells = []
    for before, after, scene, right in list(parts)[:SHOWN]:
        both = Image.new("RGB", (before.width + after.width, before.height))
        both.paste(before, (0, 0))
        both.paste(after, (before.width, 0))
        cells.append(Cell(image=_framed(both, right), caption=scene.names[1]))
    return _sheet(cells)


def _placed(placed: Placed) -> Image.Image:
    parts = zip(placed.pictures, placed.scenes, placed.right.tolist(), strict=True)
    return _sheet(
        [
            Cell(image=_framed(picture, all(right)), caption=f" {scene.relation} ".join(scene.names))
            for picture, scene, right in list(parts)[:SHOWN]
        ]
    )


def _seams(found: Sequence[Seams], before: str) -> Image.Image:
    return contact_sheet(
        [[Cell(image=one.picture)] for one in found], rows=[before + one.name for one in found], columns=[""]
    )


def _sheet(cells: list[Cell]) -> Image.Image:
    cells = cells + [Cell(image=Image.new("RGB", (1, 1), "white"))] * (-len(cells) % COLUMNS)
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    return contact_sheet(rows, rows=[""] * len(rows), columns=[""] * COLUMNS)


def _framed(picture: Image.Image, right: bool) -> Image.Image:
    return ImageOps.expand(picture, FRAME, RIGHT if right else WRONG)
