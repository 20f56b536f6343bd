"""A model loaded as that of a picture was, where nothing else is typed."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from undertow.checkpoints.files.place import local_path
from undertow.cli.model_loading import Backend, LoadingOptions, Precision
from undertow.cli.notes import Notes
from undertow.cli.task import Task
from undertow.embedded import located
from undertow.engine.computing import PLAIN, Computing
from undertow.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from undertow.service import UNetService


def load_as_drawn(loading: LoadingOptions, task: Task, source: str, notes: Notes) -> "UNetService":
    """Imports torch. task: what its picture says is noted, and also where it cannot be had here. Errors: as
    `LoadingOptions.load`."""
    stored = PLAIN if task.computing is None else task.computing
    if stored.prediction is not None and _is_another(source, task.model_hash):
        stored = replace(stored, prediction=None)
    wanted, taken = _completed(loading, stored)
    if not taken.chosen():
        return loading.load(source)
    try:
        service = wanted.load(source)
    except (InvalidInput, MissingDependency) as err:
        service = loading.load(source)
        notes.add(f"the picture was computed with {taken}, which cannot be done here, so that its bits differ: {err}")
        return service
    notes.add(f"computed as the picture was: {taken}")
    return service


def _is_another(source: str, digits: str | None) -> bool:
    """Whether the model is known to have another hash than the one that drew."""
    from undertow.checkpoints.files.hashes import model_hash

    place = None if digits is None else local_path(located(source))
    found = None if place is None else model_hash(place)
    return found is not None and found != digits


def _completed(loading: LoadingOptions, stored: Computing) -> tuple[LoadingOptions, Computing]:
    """The options with what is stored in place of what was not typed, and what that is."""
    typed: dict[str, Any] = {
        "prediction": loading.prediction,
        "precision": loading.precision,
        "vae_precision": loading.vae_precision,
        "quantize": loading.quantize,
        "backend": loading.backend,
        "attention": loading.flash_attention if loading.attention is None else loading.attention,
        "slots": loading.adapter_slots,
    }
    taken = replace(stored, **{name: None for name, value in typed.items() if value is not None})
    found: dict[str, Any] = {name: getattr(taken, name) for name in taken.chosen()}
    for name, kind in (("precision", Precision), ("vae_precision", Precision), ("backend", Backend)):
        if name in found:
            found[name] = kind(found[name])
    if "slots" in found:
        found["adapter_slots"] = found.pop("slots")
    return replace(loading, **found), taken
