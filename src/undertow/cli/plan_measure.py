"""Measures what a plan consists of, once for each machine: `undertow plan --measure`."""

from collections.abc import Sequence

from undertow.cli.terminal import SafeConsole
from undertow.memory.forecast import forecast
from undertow.memory.seconds import Signature, read_table, stage_dtype
from undertow.memory.work import Subject, Work


def measure_missing(subject: Subject, works: Sequence[Work], device: str) -> None:
    """Measures every operation of `works` of which this machine has no seconds, and keeps them in the cache folder.
    Imports torch. Errors: `InvalidInput` for a device that is not there; `OSError`."""
    table = read_table(device)
    wanted: dict[str, set[Signature]] = {}
    stages = ((work, stage) for work in works for stage in forecast(subject, work).stages)
    for work, stage in stages:
        dtype = stage_dtype(stage.name, work)
        wanted.setdefault(dtype, set()).update(table.missing(dtype, stage.operations))
    count = sum(map(len, wanted.values()))
    if not count:
        return
    import torch

    from undertow.checkpoints.read.dtypes import require_device
    from undertow.memory.stopwatch import measure

    require_device("--device", device)
    console = SafeConsole(stderr=True)
    with console.status(f"measuring {count} operations, once for this machine"):
        for dtype, signatures in wanted.items():
            table = table.with_more(dtype, measure(sorted(signatures, key=str), getattr(torch, dtype), device))
    table.save()
