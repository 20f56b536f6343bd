"""The options of `undertow maps` besides those of a request: what is averaged, and what is written."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from undertow.cli.written_pictures import OVERWRITE_HELP

averaged = partial(typer.Option, rich_help_panel="What is averaged")


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


Prompt = Annotated[str, typer.Argument(help="What to draw.")]
Word = Annotated[
    list[str] | None,
    averaged("--word", "-w", help="Word or phrase of the prompt; repeatable.", show_default="every word"),
]
Layer = Annotated[
    list[str] | None,
    averaged(help="Name of layers, with * and ?, such as up_blocks.*; repeatable.", show_default="all"),
]
Cells = Annotated[str | None, averaged(help="Comma list: shorter sides of the layers' maps.", show_default="all")]
Heads = Annotated[str | None, averaged(help="Comma list of heads, from 0.", show_default="all")]
AtSteps = Annotated[str | None, averaged(help="Comma list of steps and ranges, from 0: 0-4,9.", show_default="all")]
OfSide = Annotated[Side, averaged(help="Rows with the prompt, or with the negative prompt and its words.")]
OfPieces = Annotated[Pooling, averaged(help="What the maps of a word's pieces, or of a phrase's words, become.")]
SharesOf = Annotated[Among, averaged(help="Shares of all tokens, marks and padding included, or of the words' alone.")]
Marks = Annotated[bool, averaged("--marks", help="Also maps of the start mark, the end marks and the padding.")]
SelfAttention = Annotated[
    bool, averaged("--self-attention", help="Also entropies of self-attention, and what each cell receives.")
]
Activations = Annotated[
    bool,
    typer.Option("--activations", help="Draw once more, and write how activations move over the steps, and a film."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder that is written to.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)]
