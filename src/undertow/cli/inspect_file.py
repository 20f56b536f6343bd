"""The tables of `undertow inspect FILE`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.suggested import distilled_words
from undertow.lookup import counted
from undertow.shortage import size_in_words

if TYPE_CHECKING:
    import torch

    from undertow.checkpoints.identify.prediction import Evidence
    from undertow.checkpoints.report import CheckpointReport, ComponentReport
    from undertow.unet.config import UNetConfig

SHOWN = 8
"""Names listed of each kind of difference."""

METADATA_CHARACTERS = 70


def show_checkpoint(console: Console, source: str, *, validate: bool, allow_pickle: bool) -> "UNetConfig | None":
    """Prints what a checkpoint is; returns its U-Net's architecture."""
    from undertow.checkpoints.identify.checkpoint import OpenOptions
    from undertow.checkpoints.report import report_on

    report = report_on(source, opening=OpenOptions(allow_pickle=allow_pickle), validate=validate)
    console.print(_identity(report))
    console.print(_components(report))
    for part in report.components:
        for kind, names in _differences(part).items():
            list_names(console, f"{part.title}: {kind}", names)
    list_names(console, "unknown tensors, left out", report.unknown)
    if report.health is not None:
        health = report.health
        list_names(console, "findings", [str(finding) for finding in health.findings])
        console.print(f"looked at {health.tensors} tensors, {size_in_words(health.scanned_bytes)}")
    return report.identification.config


def _identity(report: "CheckpointReport") -> Table:
    found = report.identification
    rows = {
        "is": f"{found.title} ({found.family}, {found.variant})",
        "because": found.family_evidence,
        "predicts": _with_evidence(found.prediction),
        "zero terminal SNR": _with_evidence(found.zero_terminal_snr),
        "schedule": report.schedule,
        "draws with": report.sampler or "",
        "was": distilled_words(report.suggested),
        "parameters": f"{report.parameters:,}",
        "read as" if report.packed() else "stored as": types_text(report.dtypes()),
        "quantized": _packed(report),
        "computes in": _rules(report),
        "weights in memory": " · ".join(
            f"{size_in_words(size)} {_name(dtype)}" for dtype, size in report.run_bytes().items()
        ),
        "averaged weights": "yes (undertow convert --ema writes them)" if report.has_ema else "",
        "markers": ", ".join(report.markers),
        "left aside": f"{report.ignored} tensors of training" if report.ignored else "",
        "header": header_fields(report.metadata),
    }
    table = Table(title=escape(str(report.path)), show_header=False, title_justify="left", box=None)
    for key, value in rows.items():
        if value:
            table.add_row(key, escape(value))
    return table


def _components(report: "CheckpointReport") -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("part", "names", "tensors", "parameters", "complete"):
        table.add_column(column, no_wrap=True)
    for part in report.components:
        table.add_row(
            part.title,
            part.dialect,
            str(part.tensors),
            f"{part.parameters:,}",
            _completeness(part),
        )
    return table


def _completeness(part: "ComponentReport") -> str:
    return ", ".join(f"{len(names)} {kind}" for kind, names in _differences(part).items() if names) or "yes"


def _differences(part: "ComponentReport") -> dict[str, tuple[str, ...]]:
    """The names that differ from the network's, by the kind of difference."""
    found = part.differences
    return {"missing": found.missing, "unexpected": found.unexpected, "reshaped": found.reshaped}


def header_fields(metadata: Mapping[str, str]) -> str:
    """The first fields of a header, each truncated to one line."""
    return "\n".join(
        f"{key}: {value[:METADATA_CHARACTERS]}{'...' if len(value) > METADATA_CHARACTERS else ''}"
        for key, value in list(metadata.items())[:SHOWN]
    )


def list_names(console: Console, title: str, names: Sequence[str]) -> None:
    """Prints how many names there are and the first of them; nothing when there are none."""
    if not names:
        return
    console.print(f"{title}: {len(names)}", markup=False)
    for name in names[:SHOWN]:
        console.print(f"  {name}", markup=False, highlight=False, soft_wrap=True)
    if len(names) > SHOWN:
        console.print(f"  and {len(names) - SHOWN} more", markup=False)


def _with_evidence(evidence: "Evidence[object]") -> str:
    return f"{evidence.value} ({evidence.confidence}: {evidence.evidence})"


def types_text(counts: "Mapping[torch.dtype, int]") -> str:
    """The share of values stored in each type."""
    total = sum(counts.values())
    if len(counts) == 1:
        return f"all {_name(next(iter(counts)))}"
    return ", ".join(
        f"{_name(dtype)} {count / total:.1%}" for dtype, count in sorted(counts.items(), key=lambda item: -item[1])
    )


def _packed(report: "CheckpointReport") -> str:
    """The share of values stored in each quantization, and what a value of the whole file takes."""
    counts = report.packed()
    if not counts:
        return ""
    shares = [
        f"{packed.name} {count / report.parameters:.1%} ({packed.bits:g} bits each)"
        for packed, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    left = report.parameters - sum(counts.values())
    rest = f"; {left / report.parameters:.1%} are not" if left else ""
    read = "" if report.quantization else "; read one tensor at a time into the type that is asked for"
    return f"{', '.join(shares)}{rest}{read}"


def _rules(report: "CheckpointReport") -> str:
    """What undertow quantized it with, rule by rule."""
    if report.quantization is None:
        return ""
    layers = sum(part.quantized_layers for part in report.components)
    return f"{counted(layers, 'linear layer')} by rule, the last that matches: {report.quantization}"


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
