"""The files that a command names, opened before anything slow is imported or loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.bundled import BundledAdapters
from undertow.adapters.files.picture_readers import IMAGE_PROMPT, picture_reader, require_pictures
from undertow.checkpoints.files.destination import require_elsewhere
from undertow.checkpoints.files.place import local_path
from undertow.cli.named_places import is_place
from undertow.embedded import embedded_models, located
from undertow.engine.request import GenerationRequest


def require_model(source: str | Path) -> Path | None:
    """The local path of a model; `None` for one on the Hub. Errors: `UnknownCheckpoint`, `OSError`."""
    return readable(local_path(located(source)))


def model_place(source: str) -> Path | None:
    """The local path of a model, if it has one; presets and models on the Hub have none."""
    path = Path(embedded_models().get(source, source)).expanduser()
    return path if path.exists() else None


def require_files(request: GenerationRequest, model: str | Path, refiner: str | Path | None = None) -> None:
    """Opens the model and every file that the request's adapters name.

    Errors: `UnknownCheckpoint` for what is not there, `InvalidInput` for a picture that is none, `OSError`.
    """
    place = require_model(model)
    if refiner is not None:
        require_model(refiner)
    require_adapters(request.all_adapters, place, with_pictures=True)


def require_adapters(adapters: Sequence[Adapter], place: Path | None, *, with_pictures: bool = False) -> None:
    """Opens every file that adapters name. place: of the model, which may have some of its own; `None` where it is not
    on this machine. with_pictures: whether those that read a picture must have it, to draw. Errors: as
    `require_files`."""
    bundled = BundledAdapters(place if place is None or place.is_dir() else place.parent)
    for adapter in adapters:
        if place is not None or Path(adapter.source).expanduser().exists():
            file = readable(local_path(bundled.locate(adapter.source)))
            kind = None if file is None or not with_pictures else picture_reader(file)
            if kind is not None:
                require_pictures(adapter, kind, several_allowed=kind == IMAGE_PROMPT)
        if adapter.encoder is not None:
            readable(local_path(adapter.encoder))
        adapter.images()
        adapter.masks()


def require_own_place(
    option: str, place: Path, request: GenerationRequest, *more: str | Path, models: Sequence[str | None] = ()
) -> None:
    """Refuses to write over what is read: the request's pictures, its adapters and their pictures, and whatever lies in
    the folder of a model or of an adapter. more: other files that are read. Errors: `InvalidInput`."""
    pictures: list[Any] = [request.image, request.mask, request.depth]
    folders = [located(model) for model in models if model is not None]
    for adapter in request.all_adapters:
        given = (adapter.image, adapter.mask)
        pictures += [adapter.source, *(one for many in given for one in (many if isinstance(many, tuple) else (many,)))]
        if is_place(str(adapter.source)) and any(Path(adapter.source).expanduser().glob("*.json")):
            folders.append(adapter.source)
    # A picture that was read from a file carries the file's name.
    names = [picture if isinstance(picture, str | Path) else getattr(picture, "filename", "") for picture in pictures]
    files = (Path(name).expanduser() for name in (*names, *more) if name)
    require_elsewhere(option, place, [*folders, *(file for file in files if file.is_file())])


def readable(path: Path | None) -> Path | None:
    """Errors: `OSError` for a file that this user may not read."""
    if path is not None and path.is_file():
        with path.open("rb"):
            pass
    return path
