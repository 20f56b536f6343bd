"""What a file in memory is to a stack: a `AdapterSummary` of it, without pictures and before anything is placed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from undertow.adapters.adapter import Adapter
from undertow.adapters.control.control_file import ControlFile
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.lora.kind import KIND, unet_updates
from undertow.adapters.lora.lora_file import Lora
from undertow.adapters.stacking.conflicts import AdapterSummary
from undertow.errors import AdapterMismatch, UnsupportedModel
from undertow.unet.config import UNetConfig

LoadedAdapter = Lora | ControlFile | ImagePrompt


def summarize(adapter: Adapter, held: LoadedAdapter, config: UNetConfig) -> AdapterSummary:
    """The adapter with what its file holds. config: of the U-Net that it was read for."""
    match held:
        case Lora():
            changes = unet_updates(adapter, held)
            return AdapterSummary(adapter=adapter, kind=KIND, size_bytes=held.size_bytes, layers=changes)
        case ControlFile():
            kind, points = held.title, held.network.points
        case ImagePrompt():
            kind, points = held.title, config.cross_attentions()
    acting = tuple(point for point in points if adapter.factor(point) != 0)
    silent = not any(adapter.scales)
    return AdapterSummary(adapter=adapter, kind=kind, size_bytes=held.size_bytes, points=() if silent else acting)


def summarize_all(
    read: Callable[[str | Path], LoadedAdapter], config: UNetConfig, adapters: Sequence[Adapter]
) -> tuple[AdapterSummary, ...]:
    """Every adapter, also those that this model cannot use, each with the reason. read: opens a source, such as
    `AdapterManager.read`. Errors: of files that are missing or damaged; kinds of `CheckpointError`."""
    found = []
    for adapter in adapters:
        try:
            found.append(summarize(adapter, read(adapter.source), config))
        except (AdapterMismatch, UnsupportedModel) as err:
            found.append(AdapterSummary(adapter=adapter, kind="unusable", problem=str(err)))
    return tuple(found)
