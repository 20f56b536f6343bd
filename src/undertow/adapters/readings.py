"""What a file in memory is to a stack: a `Reading` of it, without pictures and before anything is placed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from undertow.adapters.adapter import Adapter
from undertow.adapters.bound_lora import KIND, changes_of_unet
from undertow.adapters.conflicts import Reading
from undertow.adapters.control.file import ControlFile
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.lora.file import Lora
from undertow.errors import AdapterMismatch, UnsupportedModel
from undertow.unet.config import UNetConfig

Held = Lora | ControlFile | ImagePrompt


def reading_of(adapter: Adapter, held: Held, config: UNetConfig) -> Reading:
    """The adapter with what its file holds. config: of the U-Net that it was read for."""
    match held:
        case Lora():
            changes = changes_of_unet(adapter, held)
            return Reading(adapter=adapter, kind=KIND, size_bytes=held.size_bytes, changes=changes)
        case ControlFile():
            kind, points = held.title, held.network.points
        case ImagePrompt():
            kind, points = held.title, config.cross_attentions()
    acting = tuple(point for point in points if adapter.factor(point) != 0)
    silent = not any(adapter.scales)
    return Reading(adapter=adapter, kind=kind, size_bytes=held.size_bytes, points=() if silent else acting)


def read_all(
    read: Callable[[str | Path], Held], config: UNetConfig, adapters: Sequence[Adapter]
) -> tuple[Reading, ...]:
    """Every adapter, also those that this model cannot use, each with the reason. read: opens a source, such as
    `AdapterHost.read`. Errors: of files that are missing or damaged; kinds of `CheckpointError`."""
    found = []
    for adapter in adapters:
        try:
            found.append(reading_of(adapter, read(adapter.source), config))
        except (AdapterMismatch, UnsupportedModel) as err:
            found.append(Reading(adapter=adapter, kind="unusable", problem=str(err)))
    return tuple(found)
