"""How a departure grows: over the layers and steps of A's inputs, and over the steps of a run of its own."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from undertow.checkpoints.files.atomic import atomic_write
from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.inspection.departure import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST = 1e-8
"""What is drawn darkest: less is nothing."""

MOST_ROWS = 60
"""Rows of the map; of more modules the ones in between are left out."""


def save_departure_figure(found: Comparison, layers: tuple[str, ...], path: Path) -> None:
    """A heat map, with a row for each of these layers in the order of the network and a column for each forward, and
    B's own way beside A's as a line. layers: names with "unet." before them. Errors: `MissingDependency`;
    `InvalidInput` where none of them was compared."""
    with optional_package("matplotlib", "viz"):
        from matplotlib.colors import LogNorm  # noqa: PLC0415  an extra
        from matplotlib.figure import Figure  # noqa: PLC0415  it needs no global state of pyplot
    rows = [name for name in layers if any(name in one.grown for one in found.forwards)]
    if not rows:
        raise InvalidInput("modules", "none of the layers of a figure", "some of them, such as 'unet.mid_block*'")
    rows = rows[:: math.ceil(len(rows) / MOST_ROWS)]
    errors = [[one.grown.get(name, 0.0) for one in found.forwards] for name in rows]
    largest = max((error for row in errors for error in row if math.isfinite(error)), default=0.0)
    top = max(10 * SMALLEST, largest)
    values = [[min(max(error, SMALLEST), top) for error in row] for row in errors]
    figure = Figure(figsize=(11, 2.4 + 0.22 * len(rows)), layout="constrained")
    figure.suptitle(_wrapped(found.verdict()), fontsize=10)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    image = left.imshow(values, aspect="auto", cmap="magma", norm=LogNorm(SMALLEST, top), interpolation="nearest")
    left.set_yticks(range(len(rows)), [name.removeprefix("unet.") for name in rows], fontsize=7)
    columns = [f"{one.place.step} {one.place.branch}" for one in found.forwards]
    every = math.ceil(len(columns) / 16)
    left.set_xticks(range(0, len(columns), every), columns[::every], rotation=60, ha="right", fontsize=7)
    left.set_title("error of outputs, both networks on A's inputs", fontsize=9)
    left.set_xlabel("step and branch of guidance", fontsize=8)
    figure.colorbar(image, ax=left, shrink=0.7, label="‖B - A‖ / ‖A‖")
    _mark_first(left, found, rows)
    _draw_steps(right, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        figure.savefig(draft, dpi=110)


def _mark_first(axes: "Axes", found: Comparison, rows: list[str]) -> None:
    """A ring around the forward, and the layer, of the first departure."""
    first = found.first
    if first is None or first.place.stage:
        return
    column = next((index for index, one in enumerate(found.forwards) if one.place == first.place), None)
    inside = [index for index, name in enumerate(rows) if f"{first.module}.".startswith(f"{name}.")]
    if column is None or not inside:
        return
    axes.plot(column, inside[-1], "o", markersize=11, markerfacecolor="none", markeredgecolor="cyan", markeredgewidth=2)


def _draw_steps(axes: "Axes", found: Comparison) -> None:
    by_step: dict[int, float] = {}
    for one in found.forwards:
        by_step[one.place.step] = max(by_step.get(one.place.step, 0.0), one.prediction)
    axes.plot(list(by_step), _drawn(list(by_step.values())), "o-", label="prediction, on A's inputs")
    if found.free:
        axes.plot(range(len(found.free)), _drawn(found.free), "s-", label="estimate of the picture, B alone")
    axes.axhline(found.tolerance, color="gray", linestyle="--", linewidth=1, label="tolerance of one module")
    axes.set_yscale("log")
    axes.set_ylim(bottom=SMALLEST)
    axes.set_xlabel("step", fontsize=8)
    axes.set_title("error over the steps", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]  of MaxNLocator
    axes.legend(fontsize=7, loc="best")


def _drawn(errors: "list[float] | tuple[float, ...]") -> list[float]:
    """What has no place on a logarithmic axis stands at its foot; what is not finite is left out."""
    return [max(error, 1.5 * SMALLEST) if math.isfinite(error) else math.nan for error in errors]


def _wrapped(sentence: str) -> str:

    return "\n".join(textwrap.wrap(sentence, 120))
