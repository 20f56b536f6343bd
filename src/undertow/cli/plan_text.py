"""A plan in lines of 80 columns, without rich, whose import would take much of the time that a plan may take."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from undertow.cli.visible import visible
from undertow.memory.plan import MemoryPlan
from undertow.memory.policy import LayerRule
from undertow.shortage import size_in_words

STAGES: Mapping[str, str] = {
    "text": "text encoding",
    "image": "image encoding",
    "controlnet": "ControlNet",
    "denoise": "one step",
    "decode": "decoding",
    "encode": "encoding",
    "train": "training step",
}
WIDTH = 80
NAMES, NUMBERS = 15, 12


def plan_lines(plan: MemoryPlan, *, given: bool) -> Iterator[str]:
    """given: the budget was asked for, and is not what the machine has free."""
    yield from textwrap.wrap(visible(_title(plan)), WIDTH)
    yield ""
    yield _row("", "weights", "activations", "together", "where")
    for stage in plan.stages:
        numbers = (stage.weight_bytes, stage.activation_bytes, stage.peak_bytes)
        yield _row(STAGES[stage.name], *map(size_in_words, numbers), stage.hotspot.module)
    yield _row("the process", "", "", size_in_words(plan.process_bytes), "with libraries and caches")
    yield ""
    yield from _verdict(plan, given)
    for number, measure in enumerate(plan.measures, 1):
        slower = "" if measure.slower is None else f"{measure.slower:+.1f} s"
        yield f" {number}. {measure.name:<53}{'-' + size_in_words(measure.saved_bytes):>11}{slower:>10}".rstrip()
    yield from _seconds(plan)


def layer_lines(rules: Sequence[LayerRule]) -> Iterator[str]:
    """Which layers run in which precision, and when their weights are in memory."""
    if not rules:
        return
    yield ""
    yield f"{'network':<14}{'layers':<26}{'weights':<9}{'computes':<10}{'in memory'}"
    for rule in rules:
        how = f"{rule.network:<14}{rule.layers:<26}{rule.weights:<9}{rule.computes:<10}{rule.residency}"
        yield how
        if rule.parts:
            yield f"{'':<14}in {rule.parts}"


def _title(plan: MemoryPlan) -> str:
    work = plan.work
    height, width = work.size
    pictures = "1 picture" if work.pictures == 1 else f"{work.pictures} pictures"
    guidance = "with guidance" if work.branches > 1 else "without guidance"
    adapters = ((work.loras, "LoRA"), (work.controlnets, "ControlNet"))
    acting = "".join(f", {count} {kind}" for count, kind in adapters if count)
    return f"{plan.name}: {width}x{height}, {pictures}, {work.steps} steps {guidance}, {work.dtype}{acting}"


def _row(name: str, *cells: str) -> str:
    numbers = "".join(f"{cell:>{NUMBERS}}" for cell in cells[:3])
    left = f"{name:<{NAMES}}{numbers}  "
    return (left + shortened(cells[3], WIDTH - len(left))).rstrip()


def shortened(module: str, columns: int) -> str:
    """The end of a module's name, which tells more than its beginning."""
    return module if len(module) <= columns else f"…{module[1 - columns :]}"


def _verdict(plan: MemoryPlan, given: bool) -> Iterator[str]:
    if plan.budget_bytes is None:
        yield "Whether that fits is not known: say with --budget how much memory there is."
        return
    budget = f"{size_in_words(plan.budget_bytes)}{'' if given else ' (free on this machine)'}"
    asked, smallest = size_in_words(plan.asked_bytes), size_in_words(plan.smallest_bytes)
    if not plan.fits:
        yield f"Does not fit into {budget}: the smallest plan takes {smallest}, with all of this:"
    elif plan.measures:
        yield f"Fits into {budget}, where without measures it would take {asked}, with this:"
    else:
        yield f"Fits into {budget} as it is."


def _seconds(plan: MemoryPlan) -> Iterator[str]:
    if plan.seconds is None:
        yield "How long it takes is not known here: run it again with --measure, once."
    else:
        yield f"About {seconds_text(plan.seconds)} for each picture on this machine."


def seconds_text(seconds: float) -> str:
    """In the unit that people would say it in."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
