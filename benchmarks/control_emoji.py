"""Does the embedded model follow its ControlNet and its image prompt, and what of the prompt is lost? One page.

    python benchmarks/control_emoji.py

Writes docs/results/control.md and its pictures. `benchmarks/training/emoji_adapters.py` tells how both are trained.
100 prompts take some minutes of two cores.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

import undertow
from undertow import Adapter, GenerationRequest, UNetService
from undertow.checkpoints.files import write_text
from undertow.hints.compare import edge_f1
from undertow.hints.edges import canny
from undertow.training.emoji.control import draw_reference, on_color
from undertow.training.emoji.draw import GUIDANCE, STEPS
from undertow.training.emoji.evaluate import kinds
from undertow.training.emoji.recognize import recognize
from undertow.training.emoji.render import ANYWHERE, FONT, Glyphs, draw_places, render
from undertow.training.emoji.scenes import Scene
from undertow.training.emoji.sections import find_section, section
from undertow.training.figures import save_grid
from undertow.training.pictures import to_bytes, to_unit
from undertow.training.randomness import seed_for

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "src" / "undertow" / "models" / "emoji" / "adapters"
PROMPT = "emoji-references.safetensors"
SHOWN = 16
"""Pictures of a row."""

KEPT = "tried"
UNTOLD = "Nobody has written yet what was tried."

AT_ONCE = 25
"""Requests that are drawn together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Pictures of the scenes, drawn in one way."""

    name: str
    scenes: Sequence[Scene]
    pictures: torch.Tensor

    def right(self, glyphs: Glyphs) -> float:
        """Share that shows the scene's emoji."""
        return float(recognize(self.pictures, self.scenes, glyphs).right.float().mean())

    def color(self, glyphs: Glyphs) -> float:
        """Share on the scene's background."""
        return float(recognize(self.pictures, self.scenes, glyphs).color.float().mean())

    def follows(self, hints: Sequence[Image.Image]) -> float:
        """Mean F1 of its edges against control maps."""
        scores = [edge_f1(canny(one), hint) for one, hint in zip(as_images(self.pictures), hints, strict=True)]
        return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="emoji", help="embedded model or pipeline folder")
    parser.add_argument("--control", type=Path, default=SHIPPED / "edges", help="ControlNet on canny edges")
    parser.add_argument("--image-prompt", type=Path, default=SHIPPED / "references" / PROMPT)
    parser.add_argument("--encoder", type=Path, help="image encoder, if it does not lie beside the image prompt")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    glyphs = Glyphs(options.font)
    glyphs.require()
    service = undertow.load(options.model, dtype=torch.float32)
    base = GenerationRequest(prompt="", steps=options.steps, guidance_scale=options.guidance)
    parts = [measure(service, base, options, glyphs) for measure in (measure_control, measure_image_prompt)]
    page = options.out / "control.md"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    told = find_section(before, KEPT)
    write_text(written("\n\n".join(parts), options, UNTOLD if told is None else told), page)
    print(f"written: {page}")


def measure_control(service: UNetService, base: GenerationRequest, options, glyphs: Glyphs) -> str:
    """The ControlNet's half of the page."""
    scenes = kinds(options.prompts)[0].scenes
    random = Random(seed_for(0, "control maps"))
    shown = torch.stack([render(scene, draw_places(scene, random, ANYWHERE), glyphs) for scene in scenes])
    hints = [canny(one) for one in as_images(shown)]
    captions = [scene.caption for scene in scenes]
    control = [(Adapter(options.control, image=hint),) for hint in hints]
    colors = [on_color(scene.color) for scene in scenes]
    nothing = [()] * len(scenes)
    without = Drawn(name="prompt alone", scenes=scenes, pictures=draw(service, base, captions, nothing))
    drawn = [
        without,
        Drawn(name="prompt and edges", scenes=scenes, pictures=draw(service, base, captions, control)),
        Drawn(name="background and edges", scenes=scenes, pictures=draw(service, base, colors, control)),
    ]
    rebuilt = Drawn(name="the rendering, through the autoencoder", scenes=scenes, pictures=rebuild(service, shown))
    rows = [
        [one.name, f"{one.follows(hints):.3f}", f"{one.right(glyphs):.1%}", f"{one.color(glyphs):.1%}"]
        for one in (*drawn, rebuilt)
    ]
    other = without.follows(hints[1:] + hints[:1])
    maps = torch.stack([torch.from_numpy(np.asarray(hint.convert("RGB")).copy()).permute(2, 0, 1) for hint in hints])
    save_rows((maps, *(one.pictures for one in drawn)), png(options, "edges"))
    lost = drawn[0].right(glyphs) - drawn[1].right(glyphs)
    return f"""## Edges

A ControlNet on canny edges ({size_of(options.control)}). The maps are those of renderings at random sizes and places,
most of which the base model was never trained with.

{table(["", "edge F1", "emoji asked for", "background asked for"], rows)}

Against the map of another picture, the prompt alone has an F1 of {other:.3f}: what edges have in common by chance.
Emoji lost by following edges: {100 * lost:.1f} points. No picture can have a higher F1 than about the last line's.

Maps; the prompt alone; prompt and edges; background and edges, without the emoji's name. Not chosen: the first {SHOWN}.

![Edges and what is drawn from them](control-edges.png)"""


def measure_image_prompt(service: UNetService, base: GenerationRequest, options, glyphs: Glyphs) -> str:
    """The image prompt's half of the page."""
    scenes = kinds(options.prompts)[0].scenes
    random = Random(seed_for(0, "references"))
    references = torch.stack([draw_reference(scene.names[0], random, glyphs) for scene in scenes])
    prompts = [(Adapter(options.image_prompt, image=one, encoder=options.encoder),) for one in as_images(references)]
    captions, colors = [scene.caption for scene in scenes], [on_color(scene.color) for scene in scenes]
    nothing = [()] * len(scenes)
    ways = (
        ("prompt alone", captions, nothing),
        ("prompt and reference", captions, prompts),
        ("background alone", colors, nothing),
        ("background and reference", colors, prompts),
        ("reference alone", [""] * len(scenes), prompts),
    )
    drawn = [
        Drawn(name=name, scenes=scenes, pictures=draw(service, base, texts, adapters)) for name, texts, adapters in ways
    ]
    rows = [[one.name, f"{one.right(glyphs):.1%}", f"{one.color(glyphs):.1%}"] for one in drawn]
    rows[-1][-1] = ""  # none was asked for
    shown = (references, drawn[1].pictures, drawn[3].pictures, drawn[4].pictures)
    save_rows(shown, png(options, "references"))
    lost = drawn[0].right(glyphs) - drawn[1].right(glyphs)
    encoder = options.encoder if options.encoder is not None else options.image_prompt.parent / "image_encoder"
    return f"""## References

An image prompt ({size_of(options.image_prompt)}) that reads an image encoder of {size_of(encoder)}. References show
the emoji on another background, at a random size and place; the background is asked for in words.

{table(["", "emoji of the reference", "background asked for"], rows)}

Emoji lost by a reference beside a prompt that names it: {100 * lost:.1f} points.

References; prompt and reference; background and reference; the reference alone. Not chosen: the first {SHOWN}.

![References and what is drawn from them](control-references.png)"""


def draw(service: UNetService, base: GenerationRequest, captions: Sequence[str], adapters) -> torch.Tensor:
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
    return torch.cat([to_bytes(vae.decode(vae.encode(to_unit(batch)).mean)) for batch in pictures.split(AT_ONCE)])


def as_images(pictures: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pictures]


def size_of(place: Path) -> str:
    files = [place] if place.is_file() else list(place.rglob("*.safetensors"))
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def save_rows(rows: Sequence[torch.Tensor], path: Path) -> None:
    """The first pictures of each, one row below the other."""
    save_grid(torch.cat([row[:SHOWN] for row in rows]), min(SHOWN, len(rows[0])), path)


def png(options, name: str) -> Path:
    return options.out / f"control-{name}.png"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def written(parts: str, options, told: str) -> str:
    return f"""# Edges and references: does emoji follow them?

{options.prompts} prompts of one emoji on colors it was trained with, dpmpp_2m with {options.steps} steps on a karras
grid, guidance {options.guidance:g}, the n-th prompt with seed n; {datetime.now(UTC).date().isoformat()},
torch {torch.__version__}, {options.machine}, {torch.get_num_threads()} threads. Float32.

    python benchmarks/control_emoji.py

Edge F1 is the harmonic mean of precision and recall of canny's edges within one pixel
(`undertow.hints.compare.edge_f1`). Emoji and backgrounds are recognized as in [emoji](emoji.md).

{parts}

## What was tried

{section(KEPT, told)}
"""


if __name__ == "__main__":
    main()
