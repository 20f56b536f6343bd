"""Writes `emoji-turbo` as it ships: what tuning changed in `emoji`, as a LoRA among its adapters, and a folder with an
autoencoder of its own that says how all this makes a model (`undertow.assembled`).

    python -m recipes.emoji.turbo_ship --student runs/emoji-turbo/turbo/model --rank 32
"""

import argparse
import json
import shutil
from filecmp import cmp
from pathlib import Path
from textwrap import fill

import torch

from recipes.emoji.adapter_card import WIDTH
from recipes.emoji.card import CARD
from undertow.adapters.lora.extraction import as_lora, extract_lora
from undertow.adapters.lora.write import write_lora
from undertow.assembled import DESCRIPTION
from undertow.checkpoints.files.atomic import read_json, write_text
from undertow.checkpoints.files.model_folder import WEIGHTS
from undertow.checkpoints.read.model_loading import load_model

BASE, TURBO = "emoji", "emoji-turbo"
LORA = "adapters/turbo.safetensors"
SCHEDULER, INDEX, VAE = "scheduler/scheduler_config.json", "model_index.json", "vae"
RANK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--student", type=Path, default=Path("runs/emoji-turbo/turbo/model"), help="pipeline folder")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--models", type=Path, default=Path("src/undertow/models"), help="the package's models")
    options = parser.parse_args()
    kept = ship(options.student, options.models, options.rank)
    print(f"written: {options.models / TURBO}; the LoRA holds {kept:.1%} of what tuning changed (squared)")


def ship(student: Path, models: Path, rank: int = RANK) -> float:
    """Writes MODELS/emoji/adapters/turbo.safetensors with its card, and MODELS/emoji-turbo, with the student's
    autoencoder if it is another one; returns the share of the change that the LoRA holds.

    Errors: those of `load_model` and `extract_lora`.
    """
    base, tuned = (load_model(folder, dtype=torch.float32) for folder in (models / BASE, student))
    found = extract_lora({"unet": base.require_unet()}, {"unet": tuned.require_unet()}, rank)
    lora, folder = models / BASE / LORA, models / TURBO
    (folder / SCHEDULER).parent.mkdir(parents=True, exist_ok=True)
    write_lora(as_lora(found, base, tuned, "turbo"), lora, format="kohya")
    megabytes = lora.stat().st_size / 1e6
    write_text(lora_card(rank, megabytes), lora.with_suffix(".md"))
    for name in (SCHEDULER, INDEX):
        write_text(json.dumps(read_json(student / name), indent=2) + "\n", folder / name)
    write_text(json.dumps({"base": BASE, "lora": LORA}) + "\n", folder / DESCRIPTION)
    shutil.rmtree(folder / VAE, ignore_errors=True)
    if any(different(models / BASE / VAE / file.name, file) for file in (student / VAE).iterdir()):
        shutil.copytree(student / VAE, folder / VAE)
        megabytes += (folder / VAE / WEIGHTS).stat().st_size / 1e6
    write_text(model_card(megabytes), folder / CARD)
    return found.kept


def different(one: Path, other: Path) -> bool:
    """Whether two files differ, or one is missing."""
    return not one.is_file() or not cmp(one, other, shallow=False)


def model_card(megabytes: float) -> str:
    """The card of the model. megabytes: of what is its own."""
    about = (
        "`emoji` in one to four steps and without guidance: a student of it, whose guidance was distilled away, and "
        "which was then tuned to be consistent (ECT, arXiv:2406.14548). It draws the same emoji, with the same words. "
        "Its autoencoder has half the channels, and the same latents; its text encoder is that of `emoji`. What is its "
        f"own, a LoRA and the autoencoder, takes {megabytes:.1f} MB, and the whole model is put together in undertow's "
        "cache the first time that it is needed."
    )
    return f"""# {TURBO}

{fill(about, WIDTH)}

    undertow generate "red apple on white background" --model {TURBO}

diffusers' `StableDiffusionPipeline` reads the folder that `undertow.embedded.embedded_models()` names, with
LCMScheduler and `guidance_scale=1`. Trained by `python -m recipes.emoji turbo` on pictures as those of `emoji`, whose
card tells of data and licenses. What it draws of what is asked, in how many steps: `docs/results/turbo.md`.
"""


def lora_card(rank: int, megabytes: float) -> str:
    """The card of the LoRA."""
    about = (
        f"A LoRA for the embedded model `emoji`, of rank {rank} and {megabytes:.1f} MB in float16: with it `emoji` "
        "draws in one to four steps without guidance, beside requests of twenty steps in the same batch. Extracted "
        "from what `python -m recipes.emoji turbo` trained. The model `emoji-turbo` has it in its weights."
    )
    return f"""# turbo

{fill(about, WIDTH)}

    undertow generate "owl" --lora turbo --sampler lcm --schedule sgm_uniform --steps 4 --guidance 1

Data and licenses: the card of `emoji`. Figures: `docs/results/turbo.md`.
"""


if __name__ == "__main__":
    main()
