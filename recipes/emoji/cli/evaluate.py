"""`python -m recipes.emoji evaluate`: measurements of the model, written as a page of the documentation."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from undertow.cli.model_loading import Threads
from undertow.cli.sample import drawing, model_folder
from undertow.cli.terminal import SafeConsole
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.emoji.evaluate import Draw
    from recipes.emoji.render import Glyphs
    from recipes.emoji.text_to_image import TextToImage
    from undertow.engine.direct import SamplingSettings
    from undertow.vae.autoencoder import AutoencoderKL


def evaluate(
    model: Annotated[str, typer.Option(help="Pipeline folder of the recipe, or the embedded model.")] = "emoji",
    prompts: Annotated[int | None, typer.Option(help="Of each kind.", show_default="500", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompts.", show_default="4")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.", show_default="20", min=1)] = None,
    font: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf.", show_default="Debian's")] = None,
    diffusers: Annotated[
        Path | None, typer.Option(help="What recipes/emoji/measure_diffusers.py wrote about the same model.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the training run, whose loss curves go onto the page.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the figures into the model's card too.")] = False,
    machine: Annotated[str, typer.Option(help="For the page.")] = platform.machine(),
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for emoji.md and its pictures.")] = Path("docs/results"),
) -> None:
    """Measure the text-to-image model `emoji`: does it draw what is asked, also what it never saw together?

    Draws prompts of every kind with fixed seeds, finds the nearest rendering to each picture, and writes OUT/emoji.md
    with sheets of samples. Needs the Noto Color Emoji font.
    """
    import torch

    from recipes.emoji.draw import SETTINGS
    from recipes.emoji.editions import edition_of
    from recipes.emoji.evaluate import PROMPTS, kinds, measure, read_shares
    from recipes.emoji.page import Evaluation, run_logs, write_page
    from recipes.emoji.render import FONT, Glyphs
    from recipes.emoji.sheets import sheet_scenes

    if threads is not None:
        torch.set_num_threads(threads)
    console = SafeConsole()
    glyphs = Glyphs(FONT if font is None else font)
    glyphs.require()
    if run is not None:
        run_logs(run)
    count = PROMPTS if prompts is None else prompts
    peer = None if diffusers is None else read_shares(diffusers)
    if peer is not None and peer.count != count:
        raise InvalidInput("--prompts", count, f"{peer.count}, as many as {diffusers} has", "measure both alike")
    folder = model_folder(model)
    networks, vae = _loaded(folder)
    settings = replace(
        SETTINGS,
        steps=SETTINGS.steps if steps is None else steps,
        guidance=SETTINGS.guidance if guidance is None else guidance,
    )
    measured = []
    edition = edition_of(vae.config.sample_size)
    for kind in kinds(count, edition.mix):
        draw = _drawing(networks, vae, settings, console, kind.name)
        measured.append(measure(kind, draw, glyphs))
        found = measured[-1]
        console.print(f"{kind.name}: {found.right:.1%} right, background {found.color:.1%}", highlight=False)
    scenes = sheet_scenes(edition.mix)
    draw = _drawing(networks, vae, settings, console, "sheet of samples")
    evaluation = Evaluation(
        measured=tuple(measured),
        psnr=_psnr(vae, glyphs),
        sheet=draw([scene.caption for scene in scenes], range(len(scenes))),
        settings=settings,
        bytes=sum(file.stat().st_size for file in folder.glob("*/*.safetensors") if file.parent.name != "adapters"),
        machine=f"{machine}, {torch.get_num_threads()} threads",
        diffusers=peer,
    )
    page = write_page(evaluation, out, run=run, card=folder if card else None)
    console.print(f"written: {page}", soft_wrap=True)


def _loaded(folder: Path) -> "tuple[TextToImage, AutoencoderKL]":
    """The networks of the model folder, as everyone gets them."""
    import torch

    from recipes.emoji.text_to_image import TextToImage
    from undertow.loading import load

    service = load(folder, dtype=torch.float32)
    (text,) = service.model.require_text().encoders
    return TextToImage(text, service.unet), service.vae


def _drawing(
    networks: "TextToImage", vae: "AutoencoderKL", settings: "SamplingSettings", console: Console, title: str
) -> "Draw":
    """Draws with a progress bar."""
    from recipes.emoji.draw import draw

    def with_progress(captions: Sequence[str], seeds: Sequence[int]) -> "Tensor":
        with drawing(console, len(captions), title) as on_pictures:
            return draw(networks, vae, captions, seeds, settings=settings, on_pictures=on_pictures)

    return with_progress


def _psnr(vae: "AutoencoderKL", glyphs: "Glyphs") -> float:
    from recipes.emoji.autoencoder import psnr
    from recipes.emoji.editions import edition_of
    from recipes.emoji.recipe import held_out
    from undertow.pictures.pixels import from_uint8

    return psnr(vae, from_uint8(held_out(glyphs, edition_of(vae.config.sample_size))))
