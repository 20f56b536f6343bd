"""docs/results/turbo.md: a model in few steps beside its teacher."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.few_steps import CAPTIONS, SEEDS, FewSteps
from recipes.emoji.sections import NOTES_SECTION, kept_notes, section, table
from undertow.checkpoints.files.atomic import write_text
from undertow.training.figures import save_grid

PICTURE = "turbo.png"


def write_page(
    measured: Sequence[FewSteps], sheet: UInt8[Tensor, "count 3 side side"], out: Path, *, machine: str
) -> Path:
    """Writes OUT/turbo.md and its picture; returns the page. measured: the teacher first. sheet: a row of samples of
    each."""
    place = out / "turbo.md"
    save_grid(sheet, len(sheet) // len(measured), out / PICTURE)
    write_text(page(measured, machine, kept_notes(place)), place)
    return place


def page(measured: Sequence[FewSteps], machine: str, notes: str) -> str:
    """The page. notes: what people wrote on it."""
    count = len(measured[0].kinds[0].pictures)
    rows = ", ".join(f"{one.name} in {one.steps}" for one in measured)
    return f"""# emoji-turbo: few steps

A student of the embedded model, trained by `python -m recipes.emoji turbo`: first it predicts in one forward what its
teacher predicts in two, with guidance; then it is tuned to be consistent (ECT, arXiv:2406.14548).

{count} prompts of each kind; {datetime.now(UTC).date().isoformat()}, torch {torch.__version__}, {machine}.

    python -m recipes.emoji few-steps --prompts {count}

{comparison(measured)}

Shares are of pictures that show all that was asked for, as on the [page of the model](emoji.md). In brackets: of the
teacher's. "Recall" is the mean over all emoji of how often they are seen alone. "Spread" is the mean distance of two of
{SEEDS} pictures of one caption, over {CAPTIONS} captions of one emoji, and "to the nearest rendering" that of those
pictures to the nearest training rendering of their caption: root mean squares of pixels in [0, 255].

![Samples, not chosen: {rows} steps]({PICTURE})

## What was tried

{section(NOTES_SECTION, notes)}
"""


def comparison(measured: Sequence[FewSteps]) -> str:
    """A row each, compared with the first."""
    teacher = measured[0]
    names = [one.kind.name for one in teacher.kinds]
    head = ["model", "steps", *names, "recall", "spread", "to the nearest rendering", "seconds a picture"]
    return table(head, [_row(one, teacher) for one in measured])


def _row(one: FewSteps, teacher: FewSteps) -> list[str]:
    def beside(value: float, of_teacher: float, form: str) -> str:
        compared = "" if one is teacher or not of_teacher else f" ({value / of_teacher:.0%})"
        return format(value, form) + compared

    return [
        one.name,
        str(one.steps),
        *(beside(mine.right, theirs.right, ".1%") for mine, theirs in zip(one.kinds, teacher.kinds, strict=True)),
        beside(one.recall, teacher.recall, ".1%"),
        beside(one.spread, teacher.spread, ".1f"),
        beside(one.nearest, teacher.nearest, ".1f"),
        f"{one.seconds:.3f}",
    ]
