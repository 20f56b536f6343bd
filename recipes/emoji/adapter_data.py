"""Writes what the ControlNet and the image prompt of the embedded model `emoji` are trained from, and trains the image
encoder that the image prompt reads; then tells the two commands that train them.

    python -m recipes.emoji.adapter_data --out out/emoji-adapters [--crisp]

OUT/edges/pictures, OUT/edges/edges            scenes with captions, and their canny edges
OUT/references/pictures, .../references        emoji with captions, and other pictures of the same emoji
OUT/image_encoder                              a small CLIP vision network; its run is in OUT/vision

With --ship FOLDER and both trained, FOLDER/edges and FOLDER/references are written, with their cards.
Everything that lies there already is kept; a training that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from recipes.arguments import add_threads, count, parsed
from recipes.emoji.adapter_card import ship_control, ship_image_prompt
from recipes.emoji.control import draw_with_edges, draw_with_references, write_paired
from recipes.emoji.editions import CRISP, FIRST
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.vision import VISION, accuracy, train_vision, write_vision

COMMANDS = """undertow train controlnet --model {model} --images {out}/edges/pictures --hint {out}/edges/edges \\
    --out {out}/controlnet --title emoji-edges --steps {steps} --batch-size 32 --learning-rate 3e-3 \\
    --optimizer muon --dropout-captions 0.3 --timesteps logit_normal --precision bf16
undertow train image-prompt --model {model} --images {out}/references/pictures \\
    --references {out}/references/references \\
    --encoder {out}/image_encoder --out {out}/image-prompt --title emoji-references --steps {steps} --batch-size 32 \\
    --learning-rate 3e-3 --optimizer muon --dropout-captions 0.15 --timesteps logit_normal --precision bf16"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/emoji-adapters"))
    parser.add_argument("--model", default="emoji", help="base model, for the commands")
    parser.add_argument("--pictures", type=count, default=4096, help="of each kind")
    parser.add_argument("--vision-steps", type=count, default=VISION.steps)
    parser.add_argument("--steps", type=count, default=2000, help="of the commands")
    parser.add_argument("--ship", type=Path, help="folder for what was trained, with cards")
    add_threads(parser)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--crisp", action="store_true", help="pictures of the second edition")
    options = parsed(parser)
    edition = CRISP if options.crisp else FIRST
    glyphs = Glyphs(options.font)
    glyphs.require()
    for name, paired, draw in (
        ("edges", "edges", draw_with_edges),
        ("references", "references", draw_with_references),
    ):
        folder = options.out / name
        if not (folder / "pictures" / "metadata.jsonl").is_file():
            write_paired(draw(options.pictures, glyphs, edition=edition), folder, paired)
            print(f"written: {folder}", flush=True)
    settings = replace(VISION, steps=options.vision_steps)
    classifier = train_vision(
        settings,
        options.out / "vision",
        glyphs,
        on_record=lambda record: (
            print(f"image encoder, step {record.step}: loss {record.loss:.3f}", flush=True)
            if record.step % 100 == 0
            else None
        ),
    )
    folder = write_vision(classifier.encoder, options.out / "image_encoder")
    print(f"written: {folder}; it names {accuracy(classifier, glyphs):.1%} of emoji in pictures that it has not seen")
    if options.ship is None:
        print(COMMANDS.format(out=options.out, model=options.model, steps=options.steps))
        return
    references = options.out / "image-prompt" / "emoji-references.safetensors"
    print(f"written: {ship_control(options.out / 'controlnet' / 'emoji-edges', options.ship / 'edges')}")
    print(f"written: {ship_image_prompt(references, folder, options.ship / 'references')}")


if __name__ == "__main__":
    main()
