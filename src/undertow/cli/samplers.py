"""`undertow samplers`: lists the samplers and the grids, with their names in other tools."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from undertow.checkpoints.files.atomic import atomic_write
from undertow.cli.figures import require_figure
from undertow.cli.notes import note_idle
from undertow.cli.terminal import SafeConsole
from undertow.extras import optional_package
from undertow.known_names import require_sampler

if TYPE_CHECKING:
    from undertow.diffusion.paths import Path as NoisePath

# A plot of the grids shows this many steps.
STEPS = 20

DIFFUSERS = "diffusers"


def samplers(
    name: Annotated[
        str | None, typer.Argument(help="A sampler, by its name here or in another tool, to show in detail.")
    ] = None,
    schedules: Annotated[bool, typer.Option("--schedules", help="List the grids of noise levels instead.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a plot of every grid, for Stable Diffusion's levels.", metavar="PNG"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a --plot that exists.")] = False,
) -> None:
    """List the samplers: order, evaluations a step, noise, models they run on, and their names in other tools."""
    console = SafeConsole()
    if name is not None:
        require_sampler(name)
    if plot is not None:
        require_figure("--plot", plot, overwrite=overwrite)
        plot.parent.mkdir(parents=True, exist_ok=True)
        _plot(plot)
        console.print(f"wrote {plot}", markup=False)
        note_idle({"NAME": name is not None, "--schedules": schedules}, "beside --plot")
    elif schedules:
        note_idle({"NAME": name is not None}, "beside --schedules")
        console.print(_grids())
    elif name is None:
        console.print(_all())
        more = "calls: of the network in each step; undertow samplers NAME shows one, --schedules the grids"
        console.print(more, style="dim")
    else:
        _one(console, name)


def _all() -> Table:
    from undertow.sampling.catalogue import SAMPLERS

    table = _table("sampler", "order", "calls", "noise", "other names")
    for name, entry in SAMPLERS.items():
        table.add_row(
            name,
            "-" if entry.order is None else str(entry.order),
            "own" if entry.evaluations is None else str(entry.evaluations),
            "yes" if entry.stochastic else "",
            "; ".join(filter(None, (_only_on(entry.paths), _aliases(entry.aliases, shortly=True)))),
        )
    return table


def _one(console: Console, name: str) -> None:
    from undertow.sampling.catalogue import canonical_name, find_sampler

    entry = find_sampler(name)
    console.print(f"[bold]{canonical_name(name)}[/bold]: {_documentation(entry.function)}\n")
    facts = Table(show_header=False, box=None)
    facts.add_row("order", "every estimate is a picture" if entry.order is None else str(entry.order))
    facts.add_row("evaluations a step", "chosen by its error" if entry.evaluations is None else str(entry.evaluations))
    facts.add_row("noise", "draws noise" if entry.stochastic else "deterministic unless its options say otherwise")
    facts.add_row("models", _models(entry.paths))
    facts.add_row("needs", "guidance with its unconditional estimate" if entry.guided else "nothing but the estimate")
    for tool, aliases in entry.aliases.items():
        facts.add_row(f"in {tool}", ", ".join(aliases))
    console.print(facts)
    if entry.options:
        table = _table("option", "default", "range", "meaning")
        for option, found in entry.options.items():
            default = "the model's" if found.default is None else f"{found.default:g}"
            table.add_row(option, default, found.describe(), found.meaning)
        console.print(table)


def _grids() -> Table:
    from undertow.diffusion.grids import GRIDS
    from undertow.known_names import GRID_ALIASES

    table = _table("schedule", "what it is", "other names")
    for name, grid in GRIDS.items():
        elsewhere = {
            tool: tuple(alias for alias, ours in names.items() if ours == name) for tool, names in GRID_ALIASES.items()
        }
        table.add_row(name, _documentation(grid), _aliases(elsewhere))
    return table


def _plot(file: Path) -> None:
    """Every grid in one picture, in small panels over the trained levels."""
    from undertow.diffusion.grids import GRIDS, sigma_grid
    from undertow.diffusion.schedules import NoiseSchedule

    with optional_package("matplotlib", "viz"):
        from matplotlib.figure import Figure
    schedule = NoiseSchedule.scaled_linear()
    columns = 6
    rows = -(-len(GRIDS) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True).flat)
    reference = sigma_grid("normal", schedule, STEPS)[:-1]
    for panel, name in zip(panels, GRIDS, strict=False):
        panel.plot(reference, color="0.8", linewidth=1)
        panel.plot([sigma for sigma in sigma_grid(name, schedule, STEPS) if sigma > 0], ".-", color="tab:blue")
        panel.set_yscale("log")
        panel.set_title(name, fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[len(GRIDS) :]:
        panel.set_axis_off()
    figure.supxlabel(f"step of {STEPS}; gray: normal")
    figure.supylabel("sigma")
    with atomic_write(file) as draft:
        figure.savefig(draft, dpi=110)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _models(paths: "tuple[type[NoisePath], ...]") -> str:
    from undertow.diffusion.paths import RectifiedFlow, VarianceExploding, VariancePreserving

    words = {VariancePreserving: "SD", VarianceExploding: "EDM", RectifiedFlow: "flow"}
    return "all" if len(paths) == len(words) else ", ".join(words[path] for path in paths)


def _only_on(paths: "tuple[type[NoisePath], ...]") -> str:
    """Nothing for samplers that run on all models."""
    models = _models(paths)
    return "" if models == "all" else f"{models} models only"


def _aliases(aliases: Mapping[str, tuple[str, ...]], *, shortly: bool = False) -> str:
    """shortly: without diffusers' classes, whose names are as long as a line."""
    return "; ".join(
        f"{tool}: {', '.join(names)}"
        for tool, names in aliases.items()
        if names and not (shortly and tool == DIFFUSERS)
    )


def _documentation(function: object) -> str:
    """The first sentence of its docstring, which is a line."""
    return (function.__doc__ or "").strip().split("\n")[0]
