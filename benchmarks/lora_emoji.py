"""Do the embedded model's style LoRAs draw in their styles, and what of the prompt is lost? One page.

    python -m benchmarks.lora_emoji --line-drawing out/emoji-styles/lora-line-drawing/emoji-line-drawing.safetensors \\
        --mosaic out/emoji-styles/lora-mosaic/emoji-mosaic.safetensors

Writes docs/results/lora.md and its picture; without files, of the LoRAs that ship with the model.
`recipes/emoji/style_data.py` tells how they are trained. 100 prompts take some minutes of two cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from benchmarks.lib.adapter_page import (
    SHIPPED,
    SHOWN,
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
from benchmarks.lib.style_measures import USUAL, adherence, all_styles, in_style
from recipes.emoji.adapter_card import STYLED, trained_as
from recipes.emoji.editions import edition_of
from recipes.emoji.evaluate import kinds
from recipes.emoji.render import Glyphs, draw_places, render
from recipes.emoji.scenes import Scene
from recipes.emoji.styles import STYLES, Style
from undertow import Adapter, GenerationRequest, UNetService
from undertow.adapters.files.opened import open_adapter
from undertow.training.randomness import seed_for

HALF = 0.5
"""The other scale that is measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Pictures of the same scenes with the same seeds. full, half: with one LoRA, by style. both: with both at scale 1.
    rendered: what there is to reach, renderings in a style through the autoencoder."""

    scenes: Sequence[Scene]
    base: torch.Tensor
    full: dict[str, torch.Tensor]
    half: dict[str, torch.Tensor]
    both: torch.Tensor
    rendered: dict[str, torch.Tensor]
    rendered_both: torch.Tensor


def main() -> None:
    parser = page_options(__doc__)
    for about in STYLED.values():
        parser.add_argument(
            f"--{about.title}", type=Path, default=SHIPPED / f"{about.title}.safetensors", help="LoRA file"
        )
    options = parser.parse_args()
    files = {name: getattr(options, about.title.replace("-", "_")) for name, about in STYLED.items()}
    for name, file in files.items():
        if not file.is_file():
            parser.error(f"--{STYLED[name].title}: no file {file}")
    service, base, glyphs = opened(options)
    drawn = draw_all(service, base, files, options.prompts, glyphs)
    save_rows((drawn.base, *drawn.full.values(), drawn.both), options.out / "lora.png")
    parts = [style_part(STYLES[name], file, drawn, glyphs) for name, file in files.items()]
    parts.append(both_part(drawn, glyphs))
    write_page(written("\n\n".join(parts), options), options.out / "lora.md")


def draw_all(
    service: UNetService, base: GenerationRequest, files: dict[str, Path], prompts: int, glyphs: Glyphs
) -> Drawn:
    """All pictures of the page."""
    scenes = kinds(prompts)[0].scenes
    captions = [scene.caption for scene in scenes]

    def with_loras(names: Sequence[str], scale: float = 1.0) -> torch.Tensor:
        print(f"{' and '.join(names) or 'base'}, scale {scale:g}", flush=True)
        adapters = tuple(Adapter(files[name], name=STYLED[name].title, scale=scale) for name in names)
        return draw(service, base, captions, [adapters] * len(captions))

    random, edition = Random(seed_for(0, "style renderings")), edition_of(service.vae.config.sample_size)
    placed = [(scene, draw_places(scene, random, edition.on_cells)) for scene in scenes]
    plain = torch.stack([render(scene, places, glyphs, edition.side) for scene, places in placed])
    return Drawn(
        scenes=scenes,
        base=with_loras(()),
        full={name: with_loras([name]) for name in files},
        half={name: with_loras([name], HALF) for name in files},
        both=with_loras(list(files)),
        rendered={name: rebuild(service, STYLES[name].apply(plain)) for name in files},
        rendered_both=rebuild(service, all_styles(plain)),
    )


def style_part(style: Style, file: Path, drawn: Drawn, glyphs: Glyphs) -> str:
    """A style's part of the page."""
    ways = {
        "base": drawn.base,
        f"scale {HALF:g}": drawn.half[style.name],
        "scale 1": drawn.full[style.name],
        "renderings in the style": drawn.rendered[style.name],
    }
    rows, kept = [], {}
    for name, pictures in ways.items():
        found, kept[name] = (
            in_style(style, pictures, drawn.base),
            adherence(pictures, drawn.scenes, glyphs, style.apply),
        )
        shares = (found.above, kept[name].styled, kept[name].plain, kept[name].color)
        above, *others = (f"{share:.1%}" for share in shares)
        rows.append([name, f"{found.mean:.3f}", above, f"{found.apart:.3f}", *others])
    head = ["", "statistic", "above", "separation", "emoji, styled references", "emoji, plain ones", "background"]
    lost = kept["base"].plain - kept["scale 1"].styled
    with open_adapter(file) as opened:
        training = trained_as(opened.weights.metadata)
    return f"""## {style.name.capitalize()}

A LoRA of {size_of(file)}. {training}

{table(head, rows)}

Emoji lost at scale 1 (among styled references) beside the base (among plain ones): {100 * lost:.1f} points."""


def both_part(drawn: Drawn, glyphs: Glyphs) -> str:
    """The part of the page on both LoRAs at scale 1."""
    rows = []
    for name, pictures in (("both LoRAs", drawn.both), ("renderings in both styles", drawn.rendered_both)):
        apart = [in_style(style, pictures, drawn.base).apart for style in STYLES.values()]
        kept = adherence(pictures, drawn.scenes, glyphs, all_styles)
        shares = (f"{share:.1%}" for share in (kept.styled, kept.plain, kept.color))
        rows.append([name, *(f"{one:.3f}" for one in apart), *shares])
    head = ["", *(f"{name}: separation" for name in STYLES)]
    head += ["emoji, styled references", "emoji, plain ones", "background"]
    return f"""## Both together

Both at scale 1 in one request. References are drawn as lines, and these in tiles.

{table(head, rows)}"""


def written(parts: str, options) -> str:
    return f"""# Styles: do the LoRAs of emoji draw in them?

{conditions(options)}

    python -m benchmarks.lora_emoji

A style's statistic is a number between 0 and 1 that a picture alone gives (`recipes.emoji.styles`). Above:
the share of pictures whose statistic is over the base's {100 * USUAL:.0f}th percentile. Separation: the chance that a
picture has a larger one than a picture of the base, where 0.5 is no better than a coin.

Emoji and backgrounds are recognized as in [emoji](emoji.md), by the nearest of many references. Pictures in a style
need not look like plain references, so references are drawn in that style too: these count for pictures in it, plain
ones for the base, and both are shown. The last line of each table is what there is to reach: renderings in the style,
through the model's autoencoder.

The base; {"; ".join(STYLES)}; both. Not chosen: the first {min(SHOWN, options.prompts)}.

![The same prompts and seeds without a LoRA, with each, and with both](lora.png)

{parts}"""


if __name__ == "__main__":
    main()
