"""A plan as a picture: what each stage takes, in stacked bars, and the budget."""

from collections.abc import Mapping
from pathlib import Path

from undertow.checkpoints.files.atomic import atomic_write
from undertow.cli.plan_text import STAGES
from undertow.cli.visible import visible
from undertow.extras import optional_package
from undertow.memory.forecast import StageForecast
from undertow.memory.plan import MemoryPlan
from undertow.shortage import size_in_words

PARTS: Mapping[str, str] = {
    "weights": "#8a8f98",
    "self_attention": "#0072b2",
    "cross_attention": "#56b4e9",
    "feed_forward": "#d55e00",
    "convolutions": "#009e73",
    "skips": "#f0e442",
    "workspace": "#cc79a7",
    "everything else": "#bbbbbb",
}
"""Colors of what memory is taken for (Okabe and Ito's, which all eyes tell apart)."""


def draw_plan(plan: MemoryPlan, asked: MemoryPlan, file: Path) -> None:
    """asked: the plan without measures, whose bars are drawn as outlines. Errors: `MissingDependency`; `OSError`."""
    with optional_package("matplotlib", "viz"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    rest = plan.process_bytes - plan.peak_bytes
    names = [STAGES[stage.name] for stage in plan.stages]
    bottoms = [rest / 1e9] * len(names)
    axes.bar(names, bottoms, color="#dddddd", label="libraries")
    for part, color in PARTS.items():
        heights = [parts_of(stage)[part] / 1e9 for stage in plan.stages]
        if any(heights):
            axes.bar(names, heights, bottom=bottoms, color=color, label=part.replace("_", " "))
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    if plan.measures:
        outlines = [(stage.peak_bytes + rest) / 1e9 for stage in asked.stages]
        axes.bar(names, outlines, facecolor="none", edgecolor="0.3", linestyle=":", label="without measures")
    if plan.budget_bytes is not None and plan.budget_bytes < 4 * max(plan.asked_bytes, plan.process_bytes):
        axes.axhline(plan.budget_bytes / 1e9, color="black", linewidth=1.5)
        axes.annotate(
            f"budget {size_in_words(plan.budget_bytes)}", (0, plan.budget_bytes / 1e9), va="bottom", ha="center"
        )
    height, width = plan.work.size
    axes.set_title(
        f"{visible(plan.name)}, {width}x{height}: {'fits' if plan.fits else 'does not fit'}", parse_math=False
    )
    axes.set_ylabel("GB")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    with atomic_write(file) as draft:
        figure.savefig(draft, dpi=120)


def parts_of(stage: StageForecast) -> dict[str, int]:
    """Bytes by the names of `PARTS`, which together are the stage's peak."""
    found = dict.fromkeys(PARTS, 0)
    found["weights"] = stage.weight_bytes
    for component, size in stage.by_component.items():
        found[component if component in PARTS else "everything else"] += size
    return found
