"""The tables of `undertow inspect ADAPTER`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from undertow.cli.inspect_file import header_fields, list_names, types_text
from undertow.lookup import counted
from undertow.shortage import size_in_words

if TYPE_CHECKING:
    from undertow.adapters.lora.report import LoraReport
    from undertow.adapters.lora.targets import Targets

MOST_READ_BYTES = 2**29
"""Of values that are looked at unasked: half a second's work, and more than almost any LoRA."""


def is_adapter(source: str) -> bool:
    """Whether a path holds a LoRA rather than a model: told by the names in it, or by PEFT's config beside it."""
    from undertow.adapters.files.opened import LORA_FILES
    from undertow.adapters.lora.leaves import read_lora_names
    from undertow.adapters.lora.lora_source import PEFT_CONFIG
    from undertow.checkpoints.files.header import read_header
    from undertow.checkpoints.files.sniff import sniff

    path = Path(source).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in (PEFT_CONFIG, *LORA_FILES))
    if not path.is_file() or sniff(path) != "safetensors":
        return False
    names = read_lora_names(read_header(path).tensors)
    return len(names.layers) > len(names.unknown)


def show_adapter(console: Console, source: str, model: str | None, *, validate: bool) -> None:
    """Prints what an adapter is, values that are not numbers, and with a model what of it fits. validate: also values
    that are only suspicious, and whatever the file's size. Errors: those of `describe_lora`."""
    from undertow.adapters.lora.lora_file import describe_lora
    from undertow.checkpoints.files.weights import open_weights
    from undertow.checkpoints.health import Health

    targets = None if model is None else _targets(model)
    report = describe_lora(source, targets)
    console.print(_identity(report))
    list_names(console, "layers of another shape in the model", report.reshaped)
    missed = "unknown tensors" if targets is None else "tensors that match nothing in the model"
    list_names(console, missed, report.unmatched)
    if not validate and report.size_bytes > MOST_READ_BYTES:
        return
    weights, health = open_weights(report.path), Health()
    for name, tensor in weights.each(list(weights.tensors)):
        health.add(name, tensor)
    if validate:
        list_names(console, "findings", [str(finding) for finding in health.findings])
        console.print(f"looked at {health.tensors} tensors, {size_in_words(health.scanned_bytes)}")
    else:
        list_names(console, "values that are not numbers", [str(finding) for finding in health.problems])


def _identity(report: "LoraReport") -> Table:
    base = report.base
    rows = {
        "is": f"an adapter of {report.layers} layers: {_counts(report.kinds)}",
        "written by": _counts(report.dialects),
        "made for": "unknown" if base is None else f"{base.title} ({base.evidence})",
        "networks": _counts(report.networks),
        "rank": _span(report.ranks),
        "alpha": _span(report.alphas),
        "stored as": types_text(report.dtypes),
        "size": size_in_words(report.size_bytes),
        "bundled embeddings": ", ".join(report.embeddings),
        "notes": "\n".join(report.notes),
        "header": header_fields(report.metadata),
    }
    if report.model is not None:
        counts = [counted(len(report.matched), "tensor fits", "tensors fit")]
        counts += [counted(len(report.unmatched), "does not", "do not")] if report.unmatched else []
        counts += (
            [counted(len(report.reshaped), "layer has another shape", "layers have another shape")]
            if report.reshaped
            else []
        )
        rows[f"in {report.model}"] = ", ".join(counts)
    table = Table(title=escape(str(report.path)), show_header=False, title_justify="left", box=None)
    for key, value in rows.items():
        if value:
            table.add_row(key, escape(value))
    return table


def _targets(model: str) -> "Targets":
    """What a model offers: a preset, an embedded model, a file, a folder or a Hub id."""
    from undertow.adapters.lora.targets import targets_of_config, targets_of_source
    from undertow.embedded import embedded_models
    from undertow.unet.presets import PRESETS

    if model in PRESETS:
        return targets_of_config(PRESETS[model]())
    return targets_of_source(embedded_models().get(model, model))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" if len(counts) > 1 else name for name, count in counts.items())


def _span(span: tuple[float, float] | None) -> str:
    if span is None:
        return ""
    low, high = (f"{bound:g}" for bound in span)
    return low if low == high else f"{low} to {high}"
