"""Writes the folders from which the style LoRAs of the embedded model `emoji` are trained, and measures the styles.

    python -m recipes.emoji.style_data --out out/emoji-styles [--crisp]

Each folder holds scenes that the model was trained on, in one style, with their captions in metadata.jsonl. Printed
are the chance that a styled picture has a larger statistic than a plain one, and the shares of styled pictures whose
emoji are recognized; with --model also for pictures that went through that model's autoencoder, which no LoRA changes.
Then the commands that train them. Afterwards

    python -m recipes.emoji.style_data --out out/emoji-styles --ship src/undertow/models/emoji/adapters

copies what was trained to FOLDER/line-drawing.safetensors and FOLDER/mosaic.safetensors, with their cards beside them
(.md), and does nothing else. `benchmarks/lora_emoji.py` measures them.
"""

import argparse
from pathlib import Path
from random import Random

import torch

from recipes.emoji.adapter_card import ship_style
from recipes.emoji.autoencoder import rebuilt
from recipes.emoji.editions import CRISP, FIRST, Edition
from recipes.emoji.folders import write_captioned
from recipes.emoji.recognize import recognize
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.scenes import Scene
from recipes.emoji.styles import STYLES, Style, separation
from undertow.checkpoints.read.model_loading import load_model
from undertow.training.figures import save_grid
from undertow.training.randomness import seed_for

SHOWN = 16

COMMAND = (
    "undertow train lora --model emoji --images {out}/{name} --out {out}/lora-{name} --title emoji-{name} "
    "--sites '*.attentions.*' --sites '*.resnets.*' --sites '*.upsamplers.*' {size} "
    "--batch-size 32 --learning-rate 1e-3 --timesteps logit_normal --precision bf16"
)
SIZES = {"line drawing": "--rank 16 --steps 2000", "mosaic": "--rank 8 --steps 400"}
"""How large a style's LoRA is, and how long it learns."""

TRAINED = "lora-{name}/emoji-{name}.safetensors"
"""Where the command writes, in --out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/emoji-styles"))
    parser.add_argument("--pictures", type=int, default=2048, help="of each style")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--model", type=Path, help="pipeline folder whose autoencoder the pictures go through")
    parser.add_argument("--ship", type=Path, help="folder for what was trained, with cards")
    parser.add_argument("--crisp", action="store_true", help="pictures of the second edition")
    options = parser.parse_args()
    if options.ship is not None:
        for style in STYLES.values():
            trained = options.out / TRAINED.format(name=file_name(style))
            print(f"written: {ship_style(trained, style.name, options.ship)}")
        return
    glyphs = Glyphs(options.font)
    glyphs.require()
    scenes, plain = draw_scenes(options.pictures, glyphs, CRISP if options.crisp else FIRST)
    vae = None if options.model is None else load_model(options.model, dtype=torch.float32).require_vae()
    print("| style | pictures | separation from plain | emoji recognized |\n|---|---|---|---|")
    for style in STYLES.values():
        styled = style.apply(plain)
        write_captioned(styled, [scene.caption for scene in scenes], options.out / file_name(style))
        measure(style, "rendered", styled, plain, scenes, glyphs)
        if vae is not None:
            measure(style, "through the autoencoder", rebuilt(vae, styled), rebuilt(vae, plain), scenes, glyphs)
    sheet = torch.cat([plain[:SHOWN], *(style.apply(plain[:SHOWN]) for style in STYLES.values())])
    save_grid(sheet, SHOWN, options.out / "styles.png")
    print(f"written: {options.out}")
    for style in STYLES.values():
        print(COMMAND.format(out=options.out, name=file_name(style), size=SIZES[style.name]))


def file_name(style: Style) -> str:
    """Its name without spaces."""
    return style.name.replace(" ", "-")


def draw_scenes(count: int, glyphs: Glyphs, edition: Edition = FIRST) -> tuple[list[Scene], torch.Tensor]:
    """Training scenes, and their pictures."""
    return edition.draw(Random(seed_for(0, "styles")), count, glyphs, edition.on_cells)


def measure(
    style: Style, kind: str, styled: torch.Tensor, plain: torch.Tensor, scenes: list[Scene], glyphs: Glyphs
) -> None:
    """Prints one line of the table."""
    apart = separation(style.statistic(styled), style.statistic(plain))
    right = recognize(styled, scenes, glyphs, style=style.apply).right.float().mean()
    print(f"| {style.name} | {kind} | {apart:.4f} | {right:.1%} |", flush=True)


if __name__ == "__main__":
    main()
