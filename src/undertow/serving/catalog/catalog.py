"""Models, adapters and embeddings by name. Clients never give a path: what is not listed does not exist."""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

from undertow.adapters.files.bundled import ADAPTERS
from undertow.adapters.files.opened import LORA_FILES
from undertow.adapters.lora.blocks import unknown_layers
from undertow.checkpoints.files.model_folder import CONFIG
from undertow.errors import CheckpointError, InvalidInput, UndertowError
from undertow.lookup import did_you_mean
from undertow.serving.catalog.entries import EMBEDDING, AdapterEntry, ModelEntry, Skipped
from undertow.serving.catalog.reading import read_adapter, read_model
from undertow.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
"""Folders are looked at again after so long."""

PICKLES = (".pt", ".bin", ".pth", ".ckpt")
SAFETENSORS = ".safetensors"
PICKLE = "a pickle, which can run code when it is read; `undertow convert` makes a safe file of it"
DEPTH = 4
"""Folders inside folders that are looked through."""

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything at one moment. places: by path, its stamp and what was found there."""

    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    adapters: Mapping[tuple[str | None, str], AdapterEntry] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


class Catalog:
    """What clients may name. It is read when it is made, and again when a folder changed. device: that models are
    loaded on. Any thread may ask."""

    def __init__(self, settings: ServerSettings, *, device: str = "cpu", refresh_s: float = REFRESH_S):
        self.settings = settings
        self.device = device
        self._refresh_s = refresh_s
        self._lock = Lock()
        self._read: dict[tuple[str, str], tuple[Stamp, ModelEntry | AdapterEntry | Skipped]] = {}
        self._noted: set[Skipped] = set()
        self._found = Found()
        self._looked_at = float("-inf")
        self.refresh()

    @property
    def models(self) -> Mapping[str, ModelEntry]:
        """By name; the first is taken where a client names none."""
        return self._current().models

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What is there and is not offered, with the reason."""
        return self._current().skipped

    def adapters(self, model: str | None = None) -> list[AdapterEntry]:
        """Adapters and embeddings: all of them, or those that fit a model, the ones that came with it first."""
        found = sorted(self._current().adapters.values(), key=lambda entry: (entry.model is None, entry.name))
        if model is None:
            return found
        own = self.model(model)
        return [entry for entry in found if entry.model in (None, own.name) and misfit(entry, own) is None]

    def model(self, name: str | None = None) -> ModelEntry:
        """Errors: `InvalidInput` for a name that is not listed, with a near one; for one that cannot be read, why."""
        found = self._current()
        name = self.settings.default_model if name is None else name
        if name in found.models:
            return found.models[name]
        if name in self.settings.models:
            reason = next((one.reason for one in found.skipped if one.name == name), "it cannot be read")
            raise InvalidInput("model", repr(name), "a model that can be loaded", reason)
        raise _unknown("model", name, found.models, "a model of this service")

    def quicker(self, model: ModelEntry) -> ModelEntry | None:
        """The first model that may take the place of one which takes many steps, and takes few."""
        others = () if model.is_quick else self.models.values()
        return next((one for one in others if one.is_quick and one.draws_like(model)), None)

    def adapter(self, name: str, model: str | None = None, *, argument: str = "adapters") -> AdapterEntry:
        """The adapter or embedding of that name; one that came with the model goes before others. Errors:
        `InvalidInput` for a name that is not listed, with a near one."""
        bare = name.removesuffix(SAFETENSORS)
        found = self._current()
        if not any((place, bare) in found.adapters for place in (model, None)):
            self.refresh()  # another process may have been given it just now
            found = self._found
        for place in (model, None):
            if (place, bare) in found.adapters:
                return found.adapters[place, bare]
        reason = next((one.reason for one in found.skipped if one.name.removesuffix(SAFETENSORS) == bare), None)
        if reason is not None:
            raise InvalidInput(argument, repr(name), "an adapter that can be used", reason)
        known = [one for place, one in found.adapters if place in (model, None)]
        raise _unknown(argument, name, known, "an adapter of this service")

    def refresh(self) -> None:
        """Looks at all folders now; only what changed is read again."""
        with self._lock:
            self._found = self._look()
            self._looked_at = time.monotonic()

    def _current(self) -> Found:
        if time.monotonic() - self._looked_at > self._refresh_s:
            self.refresh()
        return self._found

    def _look(self) -> Found:
        models: dict[str, ModelEntry] = {}
        adapters: dict[tuple[str | None, str], AdapterEntry] = {}
        skipped: list[Skipped] = []
        for name, source in self.settings.models.items():
            entry = self._model(name, source)
            if isinstance(entry, ModelEntry):
                models[name] = entry
            else:
                skipped.append(entry)
        uploads = self.settings.adapter_uploads
        folders = (*self.settings.adapters, *((uploads,) if uploads.is_dir() else ()))
        places = [(place, None) for folder in folders for place in _places(folder, skipped)]
        for entry in models.values():
            own = entry.path / ADAPTERS
            places += [(place, entry.name) for place in _places(own, skipped)] if own.is_dir() else []
        for place, model in places:
            entry = self._adapter(place, model)
            if isinstance(entry, Skipped):
                skipped.append(entry)
            elif (model, entry.name) in adapters:
                skipped.append(Skipped(name=entry.name, reason="another adapter has the same name; rename one of them"))
            else:
                adapters[model, entry.name] = entry
        return Found(models=models, adapters=adapters, skipped=tuple(skipped))

    def _model(self, name: str, source: str) -> ModelEntry | Skipped:
        known = self._read.get((name, source))
        if known is not None and isinstance(known[1], ModelEntry) and known[0] == _stamp(known[1].files):
            return known[1]
        try:
            entry = read_model(name, source, self.settings, self.device)
            self._read[name, source] = (_stamp(entry.files), entry)
        except (UndertowError, OSError) as err:
            entry = Skipped(name=name, reason=reason_of(err))
            self._note(entry)
        return entry

    def _adapter(self, place: Path, model: str | None) -> AdapterEntry | Skipped:
        name = place.name.removesuffix(SAFETENSORS)
        if place.suffix in PICKLES:
            return Skipped(name=place.name, reason=PICKLE)
        key = (str(place), model or "")
        stamp = _stamp(_files(place))
        known = self._read.get(key)
        if known is not None and known[0] == stamp and not isinstance(known[1], ModelEntry):
            return known[1]
        try:
            entry = read_adapter(place, name, model)
        except (UndertowError, OSError) as err:
            entry = Skipped(name=name, reason=reason_of(err))
            self._note(entry)
        self._read[key] = (stamp, entry)
        return entry

    def _note(self, entry: Skipped) -> None:
        if entry not in self._noted:
            self._noted.add(entry)
            logger.warning("%s is not offered: %s", entry.name, entry.reason)


def misfit(entry: AdapterEntry, model: ModelEntry) -> str | None:
    """Why an adapter does not fit a model, where its tensors tell; `None` where it fits, or nothing tells."""
    if model.subject.unet is None:
        return None
    unknown = _unknown_layers(entry, model)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return f"the layer {unknown[0][:100]}{more} is none of its U-Net"
    if entry.text_width is None:
        return None
    if entry.kind == EMBEDDING:
        widths = {network.width for network in model.subject.text_encoders}
        return None if entry.text_width in widths else f"its vectors are {entry.text_width} wide"
    wide = model.subject.unet.context_dim
    if entry.text_width == wide:
        return None
    return f"it was made for a model whose text is {entry.text_width} wide, and this one's is {wide} wide"


@lru_cache(maxsize=1024)
def _unknown_layers(entry: AdapterEntry, model: ModelEntry) -> list[str]:
    assert model.subject.unet is not None
    return unknown_layers(entry.layers, model.subject.unet)


def _places(folder: Path, skipped: list[Skipped], depth: int = DEPTH) -> Iterable[Path]:
    """Files and folders that may be adapters; a folder that is none is looked into."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name))
    except OSError as err:
        skipped.append(Skipped(name=folder.name, reason=f"a folder that cannot be read ({err.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if (entry.suffix in (SAFETENSORS, *PICKLES) and entry.is_file()) or (entry.is_dir() and _is_adapter(entry)):
            yield entry
        elif entry.is_dir() and depth:
            yield from _places(entry, skipped, depth - 1)


def _is_adapter(folder: Path) -> bool:
    """Whether a folder is one adapter: diffusers' of a control network, PEFT's, or one with an image encoder."""
    if (folder / "image_encoder").is_dir() or (folder / CONFIG).is_file():
        return True
    return any((folder / name).is_file() for name in (*LORA_FILES, "adapter_config.json"))


def _files(place: Path) -> Sequence[Path]:
    return [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())


def _stamp(files: Iterable[Path]) -> Stamp:
    """Changes when a file does."""
    found = ((file, os.stat(file)) for file in files)
    return tuple((str(file), status.st_size, status.st_mtime_ns) for file, status in found)


def _unknown(argument: str, name: str, known: Iterable[str], expected: str) -> InvalidInput:
    """A path, or a URL, is a name that there is not."""
    names = sorted(set(known))
    listed = ", ".join(names[:20]) if names else "there is none"
    return InvalidInput(argument, repr(name[:100]), expected, f"{did_you_mean(name, names)}known: {listed}")


def reason_of(err: Exception) -> str:
    """An error without the path that it names."""
    if isinstance(err, CheckpointError):
        return "; ".join(filter(None, (err.problem, err.remedy)))
    return (err.strerror or type(err).__name__) if isinstance(err, OSError) else str(err)
