"""`python -m recipes.emoji few-steps`: a model in few steps beside its teacher, as a page of the documentation."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.cli.model_loading import Threads
from undertow.cli.sample import drawing, model_folder
from undertow.cli.terminal import SafeConsole
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from recipes.emoji.evaluate import Draw
    from undertow import Undertow

BATCH = 50


def few_steps(
    model: Annotated[str, typer.Option(help="The student: what `turbo` trained.")] = "runs/emoji-turbo/turbo/model",
    teacher: Annotated[str, typer.Option(help="Pipeline folder, or the embedded model.")] = "emoji",
    steps: Annotated[str, typer.Option(help="Of the student, with commas between.")] = "4,2,1",
    teacher_steps: Annotated[int, typer.Option(help="Of the teacher.", min=1)] = 20,
    guidance: Annotated[float, typer.Option(help="Of the teacher; the student needs none.")] = 4.0,
    prompts: Annotated[int | None, typer.Option(help="Of each kind.", show_default="500", min=1)] = None,
    font: Annotated[Path | None, typer.Option(help="NotoColorEmoji.ttf.", show_default="Debian's")] = None,
    machine: Annotated[str, typer.Option(help="For the page.")] = platform.machine(),
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for turbo.md and its picture.")] = Path("docs/results"),
) -> None:
    """Measure a model in few steps beside its teacher: what they draw of what is asked, and how varied it is.

    Draws the prompts of `evaluate` with the same seeds, and some prompts with several, and writes OUT/turbo.md with a
    sheet of samples. Needs the Noto Color Emoji font.
    """
    from time import perf_counter

    import torch

    from recipes.emoji.editions import edition_of
    from recipes.emoji.evaluate import PROMPTS
    from recipes.emoji.few_steps import measure_steps
    from recipes.emoji.few_steps_page import write_page
    from recipes.emoji.recipe import SHOWN
    from recipes.emoji.render import FONT, Glyphs
    from undertow.loading import load

    counts = _counts(steps)
    if threads is not None:
        torch.set_num_threads(threads)
    console = SafeConsole()
    glyphs = Glyphs(FONT if font is None else font)
    glyphs.require()
    services = {"teacher": load(model_folder(teacher)), "student": load(model_folder(model))}
    edition = edition_of(services["teacher"].vae.config.sample_size)
    measured, sheet = [], []
    for name, count, scale in (("teacher", teacher_steps, guidance), *(("student", count, 1.0) for count in counts)):
        draw = _drawing(services[name], count, scale, console, f"{name}, {count} steps")
        number = PROMPTS if prompts is None else prompts
        measured.append(measure_steps(name, count, draw, edition, glyphs, number, clock=perf_counter))
        sheet.append(draw(SHOWN, range(len(SHOWN))))
        shares = ", ".join(f"{kind.kind.name} {kind.right:.1%}" for kind in measured[-1].kinds)
        console.print(f"{name}, {count} steps: {shares}", highlight=False)
    page = write_page(measured, torch.cat(sheet), out, machine=f"{machine}, {torch.get_num_threads()} threads")
    console.print(f"written: {page}", soft_wrap=True)


def _counts(steps: str) -> list[int]:
    try:
        counts = [int(each) for each in steps.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InvalidInput("--steps", steps, "whole numbers from 1, with commas between", "for example 4,2,1")
    return counts


def _drawing(service: "Undertow", steps: int, guidance: float, console: SafeConsole, title: str) -> "Draw":
    """Draws as everyone does, by the model's own sampler, with a progress bar."""
    import numpy as np
    import torch

    from undertow.engine.request import GenerationRequest

    def draw(captions: Sequence[str], seeds: Sequence[int]) -> "Tensor":
        requests = [
            GenerationRequest(prompt=caption, seed=seed, steps=steps, guidance_scale=guidance)
            for caption, seed in zip(captions, seeds, strict=True)
        ]
        pictures: list[Tensor] = []
        with drawing(console, len(requests), title) as on_pictures:
            for start in range(0, len(requests), BATCH):
                some = service.generate_many(requests[start : start + BATCH])
                pictures += [torch.from_numpy(np.array(one.images[0])).permute(2, 0, 1) for one in some]
                on_pictures(len(some))
        return torch.stack(pictures)

    return draw
