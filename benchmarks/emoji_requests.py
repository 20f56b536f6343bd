"""Kinds of request with the embedded emoji model: measured, and shown in docs/results/requests.md and the guide.

    python -m benchmarks.emoji_requests [--prompts 50] [--model emoji] [--machine "AMD Zen 5"]

Writes the page with its pictures, and those of docs/guides/requests.md, whose examples it runs. One thread, about eight
minutes of a processor. --guide-only: only the guide's pictures; --no-guide: without them.
"""

import argparse
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

import undertow
from benchmarks.lib.guide import run_examples, strip, twice
from benchmarks.lib.request_measures import Canvas, inpaint, place, ring, seams, start_from
from benchmarks.lib.requests_page import Results, write_page
from recipes.emoji.draw import SETTINGS
from recipes.emoji.editions import edition_of
from recipes.emoji.render import FONT, Glyphs
from undertow import GenerationRequest, UNetService, Views

CANVASES = (
    Canvas(name="one square, halved", by="estimates", square=True),
    Canvas(name="one square, halved", by="attention", square=True),
    Canvas(name="two squares at once", by="estimates"),
    Canvas(name="two squares at once", by="attention"),
    Canvas(name="two squares, views that overlap by half", by="estimates", views=Views(overlap=0.5)),
    Canvas(name="two squares, a view for each", by="estimates", views=Views(overlap=0.0)),
)
OVERLAPS = (0.0, 0.25, 0.5)
FEW = 8
"""Pictures for what is a mean over many columns, or to the bit for each."""

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guides" / "requests.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50, help="of inpainting and of every way to draw regions")
    parser.add_argument("--model", default="emoji", help="embedded model or pipeline folder")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the guide's pictures")
    parser.add_argument("--guide-only", action="store_true")
    parser.add_argument("--no-guide", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.no_guide:
        draw_guide(options.images)
    if not options.guide_only:
        glyphs = Glyphs(options.font)
        glyphs.require()
        base = GenerationRequest(
            prompt="",
            sampler=SETTINGS.sampler,
            schedule=SETTINGS.schedule,
            steps=options.steps,
            guidance_scale=options.guidance,
        )
        when = f"{datetime.now(UTC).date().isoformat()}, torch {torch.__version__}, {options.machine}, 1 thread"
        results = measure(undertow.load(options.model), base, options.prompts, glyphs, when)
        print(write_page(results, options.out))


def measure(service: UNetService, base: GenerationRequest, count: int, glyphs: Glyphs, conditions: str) -> Results:
    few, started, edition = min(FEW, count), time.process_time(), edition_of(service.vae.config.sample_size)

    def tell(done: str) -> None:
        print(f"{time.process_time() - started:6.0f} s of a processor: {done}", flush=True)

    inpainted = inpaint(service, base, count, glyphs)
    tell(f"inpainting, {float(inpainted.right.float().mean()):.0%}, outside {inpainted.outside}")
    rebuilt = start_from(service, base, few, glyphs)
    tell(f"strength 0, {rebuilt}")
    placed = []
    for canvas in CANVASES:
        placed.append(place(service, base, canvas, count, glyphs))
        tell(f"regions, {canvas.name}, {canvas.by}, {placed[-1].both:.0%}")
    beside = [seams(service, base, 3 * edition.side, overlap, few) for overlap in OVERLAPS]
    tell("seams of views")
    rings = [
        ring(service, base, width, axes, few) for width in (edition.side, 2 * edition.side) for axes in ("none", "x")
    ]
    tell("seams of rings")
    return Results(
        edition=edition,
        base=base,
        conditions=conditions,
        count=count,
        few=few,
        inpainted=inpainted,
        rebuilt=rebuilt,
        placed=placed,
        seams=beside,
        rings=rings,
    )


def draw_guide(images: Path) -> None:
    """The guide's pictures, which its own examples make."""
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_examples(GUIDE, folder)
        strips = {
            "start": {"apple.png": "red apple", "tangerine.png": "tangerine, strength 0.7"},
            "inpainting": {"pair.png": "before", "mask.png": "mask", "half.png": "after"},
            "parts": {"parts.png": "a prompt for each half"},
            "enlarged": {"once.png": "as it is drawn", "twice.png": "twice as large, second pass"},
            "views": {"wide.png": "three squares, seen in views of one"},
            "variations": {"once.png": "seed 7", "near.png": "a fifth of the way to seed 8"},
        }
        for title, named in strips.items():
            strip({caption: folder / file for file, caption in named.items()}).save(images / f"requests-{title}.png")
        strip({"seamless to the left and right, twice beside itself": twice(folder / "ring.png")}).save(
            images / "requests-seamless.png"
        )
        (images / "requests-compare.png").write_bytes((folder / "sheet.png").read_bytes())


if __name__ == "__main__":
    main()
