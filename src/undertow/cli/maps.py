"""`undertow maps`: which word of a prompt drew which part of the picture."""

from pathlib import Path
from typing import Any

import typer

from undertow.cli.embeddings import require_embeddings, with_embeddings
from undertow.cli.generate_options import Device, PrecisionOrNone
from undertow.cli.maps_options import (
    Activations,
    Among,
    AtSteps,
    Cells,
    Heads,
    Layer,
    Marks,
    OfPieces,
    OfSide,
    Out,
    Overwrite,
    Pooling,
    Prompt,
    SelfAttention,
    SharesOf,
    Side,
    Word,
)
from undertow.cli.model_loading import LoadingOptions
from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.named_files import require_files, require_own_place
from undertow.cli.notes import Notes
from undertow.cli.request_options import with_request_options
from undertow.cli.show import ShowHere, require_show, show
from undertow.cli.suggested import requests_of
from undertow.cli.task import new_task
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.errors import InvalidInput
from undertow.pictures.names import PicturePlace

SHEET_COLUMNS = 120
"""Width of a sheet in the terminal, in characters: its words are to be read."""

MOST_STEPS = 10_000
"""Of a range: no request has more steps."""


@with_request_options
def maps(
    prompt: Prompt,
    *,
    model: Model = DEFAULT_MODEL,
    word: Word = None,
    layer: Layer = None,
    cells: Cells = None,
    heads: Heads = None,
    at_steps: AtSteps = None,
    side: OfSide = Side.conditional,
    pooling: OfPieces = Pooling.mean,
    among: SharesOf = Among.context,
    marks: Marks = False,
    self_attention: SelfAttention = False,
    activations: Activations = False,
    out: Out = Path("out"),
    overwrite: Overwrite = False,
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
    task = new_task(prompt, options)
    request = task.request
    choice = {
        "layers": tuple(layer) if layer else None,
        "cells": numbers("--cells", cells),
        "heads": numbers("--heads", heads),
        "steps": numbers("--at-steps", at_steps),
    }
    pooled = {"pooling": pooling.value, "among": among.value, "marks": marks, "words": tuple(word) if word else None}
    _require_folder(out, overwrite=overwrite)
    embeddings = options.get("embeddings") or ()
    require_own_place("--out", out, request, *embeddings, models=[model])
    require_files(request, model)
    require_embeddings(embeddings)
    console = SafeConsole(stderr=True)
    with waiting(console, f"loading {model}"):
        from undertow.inspection.activation_pictures import activation_history
        from undertow.inspection.attention_choice import AttentionChoice
        from undertow.inspection.visualize_attention import attention_heatmaps
        from undertow.inspection.word_maps import WordOptions

        service = LoadingOptions(precision=precision, device=device).load(model)
    notes = Notes()
    (request,) = with_embeddings(requests_of([task], service, notes), service, embeddings)
    notes.tell(console)
    with waiting(console, "drawing"):
        made = AttentionChoice(**choice), WordOptions(**pooled)
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


def _require_folder(out: Path, *, overwrite: bool) -> None:
    """Errors: `InvalidInput` for a place that takes no files."""
    PicturePlace.of(out, "attention-{index}", overwrite=overwrite)
    if out.suffix and not out.is_dir():
        raise InvalidInput("--out", repr(str(out)), "a folder: a sheet, its arrays and what they mean are written")


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
