"""`undertow maps`: which word of a prompt drew which part of the picture."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.embeddings import require_embeddings, with_embeddings
from undertow.cli.generate_options import Device, PrecisionOrNone
from undertow.cli.model_loading import LoadingOptions
from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.named_files import require_files, require_own_place
from undertow.cli.request_options import with_request_options
from undertow.cli.show import ShowHere, require_show, show
from undertow.cli.task import new_task
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.cli.written_pictures import OVERWRITE_HELP
from undertow.errors import InvalidInput
from undertow.pictures.names import PicturePlace

if TYPE_CHECKING:
    from undertow.inspection.attention_choice import AttentionChoice
    from undertow.inspection.word_maps import WordOptions

SHEET_COLUMNS = 120
"""Width of a sheet in the terminal, in characters: its words are to be read."""

MOST_STEPS = 10_000
"""Of a range: no request has more steps."""

AVERAGED = "What is averaged"


class Side(StrEnum):
    conditional = "conditional"
    unconditional = "unconditional"


class Pooling(StrEnum):
    mean = "mean"
    sum = "sum"
    max = "max"


class Among(StrEnum):
    context = "context"
    words = "words"


def averaged(*names: str, **options: Any) -> Any:
    """An option of the choice."""
    return typer.Option(*names, rich_help_panel=AVERAGED, **options)


@with_request_options
def maps(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    model: Model = DEFAULT_MODEL,
    word: Annotated[
        list[str] | None,
        averaged("--word", "-w", help="Word or phrase of the prompt; repeatable.", show_default="every word"),
    ] = None,
    layer: Annotated[
        list[str] | None,
        averaged(help="Name of layers, with * and ?, such as up_blocks.*; repeatable.", show_default="all"),
    ] = None,
    cells: Annotated[
        str | None, averaged(help="Comma list: shorter sides of the layers' maps.", show_default="all")
    ] = None,
    heads: Annotated[str | None, averaged(help="Comma list of heads, from 0.", show_default="all")] = None,
    at_steps: Annotated[
        str | None, averaged(help="Comma list of steps and ranges, from 0: 0-4,9.", show_default="all")
    ] = None,
    side: Annotated[
        Side, averaged(help="Rows with the prompt, or with the negative prompt and its words.")
    ] = Side.conditional,
    pooling: Annotated[
        Pooling, averaged(help="What the maps of a word's pieces, or of a phrase's words, become.")
    ] = Pooling.mean,
    among: Annotated[
        Among, averaged(help="Shares of all tokens, marks and padding included, or of the words' alone.")
    ] = Among.context,
    marks: Annotated[
        bool, averaged("--marks", help="Also maps of the start mark, the end marks and the padding.")
    ] = False,
    self_attention: Annotated[
        bool, averaged("--self-attention", help="Also entropies of self-attention, and what each cell receives.")
    ] = False,
    activations: Annotated[
        bool,
        typer.Option(
            "--activations", help="Draw once more, and write how activations move over the steps, and a film."
        ),
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that is written to.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
    draw_here: ShowHere = None,
    precision: PrecisionOrNone = None,
    device: Device = None,
    **options: Any,
) -> None:
    """Draw a picture, and lay over it where each word of its prompt was attended to.

    Writes the picture, a sheet of heat by word, its arrays (.npz) and what was averaged (.json). The picture is the one
    that `undertow generate` draws with these options, to the bit.
    """
    if draw_here:
        require_show()
    request = new_task(prompt, options).request
    choice = {
        "layers": tuple(layer) if layer else None,
        "cells": numbers("--cells", cells),
        "heads": numbers("--heads", heads),
        "steps": numbers("--at-steps", at_steps),
    }
    pooled = {"pooling": pooling.value, "among": among.value, "marks": marks, "words": tuple(word) if word else None}
    PicturePlace.of(out, "attention-{index}", overwrite=overwrite)
    if out.suffix and not out.is_dir():
        raise InvalidInput("--out", repr(str(out)), "a folder: a sheet, its arrays and what they mean are written")
    embeddings = options.get("embeddings") or ()
    require_own_place("--out", out, request, *embeddings, models=[model])
    require_files(request, model)
    require_embeddings(embeddings)
    console = SafeConsole(stderr=True)
    with waiting(console, f"loading {model}"):
        from undertow.inspection.activation_pictures import activation_history
        from undertow.inspection.visualize_attention import attention_heatmaps

        service = LoadingOptions(precision=precision, device=device).load(model)
    (request,) = with_embeddings([request], service, embeddings)
    with waiting(console, "drawing"):
        made = _choice(choice), _options(pooled)
        found = attention_heatmaps(service.engine, request, *made, side=side.value, self_attention=self_attention)
    for line in found.result.report.decisions:
        console.print("note:", line, markup=False, highlight=False, soft_wrap=True)
    paths = [*found.result.save(out, overwrite=overwrite), *found.save(out, overwrite=overwrite)]
    if activations:
        with waiting(console, "drawing once more"):
            history = activation_history(service.engine, request)
        paths += history.save(out, overwrite=overwrite)
    for path in paths:
        typer.echo(path)
    if draw_here is not False:
        show([found.overlay()], columns=SHEET_COLUMNS)


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """A comma list of whole numbers and ranges. Errors: `InvalidInput`."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > len("10000"):
            raise InvalidInput(option, repr(text), "whole numbers and ranges with commas between them", "as in 0-4,9")
        end = int(last) if dash else int(first)
        if end < int(first) or end > MOST_STEPS:
            raise InvalidInput(option, repr(part), f"a range that does not end before it begins, up to {MOST_STEPS:,}")
        found += range(int(first), end + 1)
    return tuple(dict.fromkeys(found))


def _choice(choice: dict[str, Any]) -> "AttentionChoice":
    from undertow.inspection.attention_choice import AttentionChoice

    return AttentionChoice(**choice)


def _options(pooled: dict[str, Any]) -> "WordOptions":
    from undertow.inspection.word_maps import WordOptions

    return WordOptions(**pooled)
