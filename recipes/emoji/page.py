"""docs/results/emoji.md: the measurements as a page, with its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from recipes.emoji.card import write_figures
from recipes.emoji.editions import CRISP
from recipes.emoji.evaluate import Measured, Shares, agreement
from recipes.emoji.recipe import HELD_OUT_PICTURES
from recipes.emoji.sections import NOTES_SECTION, kept_notes, section, table
from recipes.emoji.sheets import COLUMNS, SAMPLES, framed
from undertow.checkpoints.files.atomic import write_text
from undertow.engine.direct import SamplingSettings
from undertow.errors import InvalidInput
from undertow.training.figures import save_grid, save_loss_plot
from undertow.training.log import LOG, StepRecord, read_records

LEAST_PSNR = 31.0
MOST_DISAGREEMENT = 0.01
CONFUSIONS = 8
"""Mistakes listed of each kind."""

CURVES = {
    "autoencoder": "Autoencoder",
    "text_to_image": "Text encoder and U-Net",
    "details": "The same, on less noise",
    "pairs": "The same, mostly on two emoji",
    "polish": "The U-Net alone, on less noise",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """All that was measured. psnr: of the autoencoder, in dB. sheet: uncurated samples. bytes: of all weights.
    diffusers: what its pipeline gives on the same folder."""

    measured: tuple[Measured, ...]
    psnr: float
    sheet: UInt8[Tensor, "count 3 side side"]
    settings: SamplingSettings
    bytes: int
    machine: str
    diffusers: Shares | None = None


def write_page(evaluation: Evaluation, out: Path, *, run: Path | None = None, card: Path | None = None) -> Path:
    """Writes OUT/emoji.md and its pictures; returns the page.

    run: folder of the training run, for its loss curves; those there are stay otherwise, also those of a stage that the
    run lacks. card: model folder whose card gets the table. Errors: `InvalidInput` for a folder without any log.
    """
    logs = {} if run is None else run_logs(run)
    place = out / "emoji.md"
    save_grid(evaluation.sheet, COLUMNS, out / "emoji.png")
    for index, one in enumerate(evaluation.measured):
        shown = framed(one.pictures[:SAMPLES], one.recognized.right[:SAMPLES])
        save_grid(shown, COLUMNS, out / _sheet_name(index))
    for stage, records in logs.items():
        save_loss_plot(records, out / _curve_name(stage))
    curves = [stage for stage in CURVES if (out / _curve_name(stage)).is_file()]
    write_text(page(evaluation, curves, kept_notes(place)), place)
    if card is not None:
        write_figures(card, f"{_conditions(evaluation)}\n\n{_table(evaluation)}")
    return place


def run_logs(run: Path) -> Mapping[str, Sequence[StepRecord]]:
    """What the stages of a run recorded, without those that recorded nothing. Errors: `InvalidInput`."""
    found = {stage: records for stage in CURVES if (records := read_records(run / stage / LOG))}
    if not found:
        expected = f"the folder of a run, with {LOG} in the folder of a stage: {', '.join(CURVES)}"
        raise InvalidInput("--run", str(run), expected, "leave it out to keep the loss curves that are there")
    return found


def page(evaluation: Evaluation, curves: list[str], notes: str) -> str:
    """The page. curves: stages whose loss curves lie beside it. notes: what people wrote on it."""
    crisp = " --crisp" if evaluation.sheet.shape[-1] == CRISP.side else ""
    return f"""# emoji: does it draw what is asked?

The embedded text-to-image model, trained from nothing by `python -m recipes.emoji train{crisp}`. Its weights take
{evaluation.bytes / 2**20:.1f} MiB in float16.

{_conditions(evaluation)}

    python -m recipes.emoji evaluate --prompts {len(evaluation.measured[0].pictures)}

{_table(evaluation)}

{_verdict(evaluation)}

How it is measured (`recipes.emoji`): the n-th prompt of a kind is drawn with seed n. A picture shows the
emoji of the rendering that has the least squared distance to it, among all emoji at every size and place of training,
on the background of the picture; of several emoji each is compared in its part of the picture alone. The background is
the named color nearest to the median of the picture's border. Real renderings are recognized without exception. The
autoencoder's figure is that of {HELD_OUT_PICTURES} renderings that it was not trained with.

## Samples, not chosen

Seeds 0 to {SAMPLES - 1}; the prompts by a rule (`sheet_scenes`): the kinds in turn.

![{SAMPLES} samples](emoji.png)

{_kinds(evaluation)}

## Training

{_curves(curves)}

## What was tried

{section(NOTES_SECTION, notes)}
"""


def _conditions(evaluation: Evaluation) -> str:
    settings, count = evaluation.settings, len(evaluation.measured[0].pictures)
    return (
        f"{count} prompts of each kind, {settings.sampler} with {settings.steps} steps on a {settings.schedule} grid,\n"
        f"guidance {settings.guidance:g}; {datetime.now(UTC).date().isoformat()}, torch {torch.__version__}, "
        f"{evaluation.machine}."
    )


def _table(evaluation: Evaluation) -> str:
    peer = evaluation.diffusers
    head = ["", "wanted", "reached", *([] if peer is None else [peer.program])]
    rows: list[list[str]] = []
    for index, one in enumerate(evaluation.measured):
        theirs = [] if peer is None else [f"{peer.right[index]:.1%}"]
        rows.append([f"{one.kind.name}: emoji", f"≥ {one.kind.least_right:.0%}", f"{one.right:.1%}", *theirs])
        wanted = "" if one.kind.least_color is None else f"≥ {one.kind.least_color:.0%}"
        theirs = [] if peer is None else [f"{peer.color[index]:.1%}"]
        rows.append([f"{one.kind.name}: background", wanted, f"{one.color:.1%}", *theirs])
    blank = [] if peer is None else [""]
    rows.append(["autoencoder, PSNR", f"≥ {LEAST_PSNR:.0f} dB", f"{evaluation.psnr:.1f} dB", *blank])
    if peer is not None:
        largest = agreement(evaluation.measured, peer)
        rows.append([f"largest difference to {peer.program}", f"≤ {MOST_DISAGREEMENT:.0%}", f"{largest:.1%}", ""])
    return table(head, rows)


def _verdict(evaluation: Evaluation) -> str:
    """Which bars are not met, and by how much."""
    missed: list[str] = []
    for one in evaluation.measured:
        bars = [("emoji", one.right, one.kind.least_right), ("background", one.color, one.kind.least_color)]
        for what, reached, wanted in bars:
            if wanted is not None and reached < wanted:
                missed.append(f"{one.kind.name}, {what}, by {100 * (wanted - reached):.1f} points")
    if evaluation.psnr < LEAST_PSNR:
        missed.append(f"autoencoder, by {LEAST_PSNR - evaluation.psnr:.1f} dB")
    if evaluation.diffusers is None:
        missed.append("diffusers' pipeline was not measured beside it")
    elif agreement(evaluation.measured, evaluation.diffusers) > MOST_DISAGREEMENT:
        missed.append(f"{evaluation.diffusers.program} gives other shares")
    return "Not met:\n\n" + "\n".join(f"- {one}" for one in missed) if missed else "Every bar is met."


def _kinds(evaluation: Evaluation) -> str:
    parts: list[str] = []
    for index, one in enumerate(evaluation.measured):
        mistakes = [f"{asked} → {found} ({times})" for asked, found, times in one.confusions(CONFUSIONS)]
        frequent = f"Most frequent mistakes, asked for → found: {', '.join(mistakes)}." if mistakes else "No mistakes."
        shown = min(SAMPLES, len(one.pictures))
        parts.append(
            f"## {one.kind.name[0].upper()}{one.kind.name[1:]}\n\n{frequent}\n\nThe first {shown}, right ones in green "
            f"frames, wrong ones in red:\n\n![{one.kind.name}]({_sheet_name(index)})"
        )
    return "\n\n".join(parts)


def _curves(curves: list[str]) -> str:
    shown = [f"{CURVES[stage]}:\n\n![Loss over the steps]({_curve_name(stage)})" for stage in curves]
    missing = "No loss curves here: `python -m recipes.emoji evaluate --run FOLDER` draws them."
    return "\n\n".join(shown) if shown else missing


def _sheet_name(index: int) -> str:
    return f"emoji-kind-{index + 1}.png"


def _curve_name(stage: str) -> str:
    return f"emoji-loss-{stage.replace('_', '-')}.png"
