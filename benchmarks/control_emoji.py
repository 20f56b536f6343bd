"""Does the embedded model follow its ControlNet and its image prompt, and what of the prompt is lost? One page.

    python -m benchmarks.control_emoji

Writes docs/results/control.md and its pictures. `recipes/emoji/adapter_data.py` tells how both are trained.
100 prompts take some minutes of two cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from benchmarks.lib.adapter_page import (
    SHIPPED,
    SHOWN,
    as_images,
    conditions,
    draw,
    opened,
    page_options,
    rebuild,
    save_rows,
    size_of,
    table,
    write_page,
)
from recipes.emoji.control import draw_reference, on_color
from recipes.emoji.editions import edition_of
from recipes.emoji.evaluate import kinds
from recipes.emoji.recognize import recognize
from recipes.emoji.render import Glyphs, draw_places, render
from recipes.emoji.scenes import Scene
from undertow import Adapter, GenerationRequest, UNetService
from undertow.hints.compare import edge_f1
from undertow.hints.edges import canny
from undertow.training.randomness import seed_for

PROMPT = "emoji-references.safetensors"


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
    parser = page_options(__doc__)
    parser.add_argument("--control", type=Path, default=SHIPPED / "edges", help="ControlNet on canny edges")
    parser.add_argument("--image-prompt", type=Path, default=SHIPPED / "references" / PROMPT)
    parser.add_argument("--encoder", type=Path, help="image encoder, if it does not lie beside the image prompt")
    options = parser.parse_args()
    service, base, glyphs = opened(options)
    parts = [measure(service, base, options, glyphs) for measure in (measure_control, measure_image_prompt)]
    write_page(written("\n\n".join(parts), options), options.out / "control.md")


def measure_control(service: UNetService, base: GenerationRequest, options, glyphs: Glyphs) -> str:
    """The ControlNet's half of the page."""
    scenes = kinds(options.prompts)[0].scenes
    random, edition = Random(seed_for(0, "control maps")), edition_of(service.vae.config.sample_size)
    placed = [(scene, draw_places(scene, random, edition.anywhere)) for scene in scenes]
    shown = torch.stack([render(scene, places, glyphs, edition.side) for scene, places in placed])
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
    edition = edition_of(service.vae.config.sample_size)
    references = torch.stack([draw_reference(scene.names[0], random, glyphs, edition=edition) for scene in scenes])
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


def png(options, name: str) -> Path:
    return options.out / f"control-{name}.png"


def written(parts: str, options) -> str:
    return f"""# Edges and references: does emoji follow them?

{conditions(options)}

    python -m benchmarks.control_emoji

Edge F1 is the harmonic mean of precision and recall of canny's edges within one pixel
(`undertow.hints.compare.edge_f1`). Emoji and backgrounds are recognized as in [emoji](emoji.md).

{parts}"""


if __name__ == "__main__":
    main()
