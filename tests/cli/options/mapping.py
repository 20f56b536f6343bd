"""Where the options of `undertow maps` arrive: what is drawn as in `generate`, and what is averaged."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.cli.options import generate
from tests.cli.options.arrival import ABSENT, LOADED, Boundary, Case, Command, case


def mapping(at: Boundary) -> None:
    generate.boundary(at)

    def saved(folder: Path, *, overwrite: bool) -> Sequence[Path]:
        at.arrived |= {"folder": folder, "overwrite": overwrite}
        return ()

    found = SimpleNamespace(
        result=SimpleNamespace(report=SimpleNamespace(decisions=()), save=saved), save=saved, overlay=generate.image
    )
    heatmaps = "undertow.inspection.visualize_attention.attention_heatmaps"
    at.stand_in(heatmaps, found, unnoted=("engine", "run", "observe"), apart=("request", "choice", "options"))
    history = SimpleNamespace(save=saved)
    at.stand_in("undertow.inspection.activation_pictures.activation_history", _again(at, history), unnoted=NOTHING)
    at.stand_in("undertow.cli.maps.show", unnoted=("columns",))


NOTHING = ("engine", "request", "run", "observe")


def _again(at: Boundary, history: Any) -> Any:
    def drawn(*_: Any, **__: Any) -> Any:
        at.arrived["drawn again"] = True
        return history

    return drawn


ELSEWHERE = {"--prompts", "--wildcards", "--preset", "-o"}
"""Options of `generate` that `maps` has not, or that mean a folder here."""


def of_the_request() -> tuple[Case, ...]:
    """The cases of `generate` that say what is drawn; what is written has another name here."""
    return tuple(
        Case(
            typed=one.typed,
            refused=one.refused,
            changes={place: value for place, value in one.changes.items() if place.startswith(("request.", "load."))},
        )
        for one in generate.OF_THE_REQUEST
        if not one.options & ELSEWHERE
    )


MAPS = Command(
    verb=("maps",),
    arguments={"prompt": "red apple"},
    boundary=mapping,
    arrives={
        **generate.REQUEST,
        **LOADED,
        "load.source": "emoji",
        "load.dtype": generate.ARRIVES["load.dtype"],
        "load.device": "cpu",
        "choice.layers": None,
        "choice.cells": None,
        "choice.heads": None,
        "choice.steps": None,
        "options.words": None,
        "options.pooling": "mean",
        "options.among": "context",
        "options.marks": False,
        "attention_heatmaps.side": "conditional",
        "attention_heatmaps.self_attention": False,
        "folder": Path("out"),
        "overwrite": False,
        "show.pictures": [generate.image()],
        "files": [],
    },
    cases=(
        *of_the_request(),
        case("--model", "other", load__source="other", load__dtype=None),
        case("--word", "red", "-w", "apple", options__words=("red", "apple")),
        case("--layer", "up_blocks.*", "--layer", "mid_block", choice__layers=("up_blocks.*", "mid_block")),
        case("--cells", "16, 32", choice__cells=(16, 32)),
        case("--heads", "0-2", choice__heads=(0, 1, 2)),
        case("--at-steps", "0-1,9", choice__steps=(0, 1, 9)),
        case("--at-steps", "9-1", refused="a range that does not end before it begins"),
        case("--side", "unconditional", attention_heatmaps__side="unconditional"),
        case("--pooling", "max", options__pooling="max"),
        case("--among", "words", options__among="words"),
        case("--marks", options__marks=True),
        case("--self-attention", attention_heatmaps__self_attention=True),
        case("--activations", **{"drawn again": True}),
        case("--out", "maps", folder=Path("maps")),
        case("-o", "maps", folder=Path("maps")),
        case("--out", "maps.png", refused="a folder"),
        case("--overwrite", overwrite=True),
        case("--precision", "bf16", load__dtype=generate.torch.bfloat16),
        case("--device", "meta", load__device="meta"),
        case("--no-show", show__pictures=ABSENT),
        case("--no-show", "--show", "--overwrite", overwrite=True),
    ),
)
COMMANDS = (MAPS,)
