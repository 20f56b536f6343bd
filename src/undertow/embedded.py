"""The models that ship in the package, and models named by a word. Imports no torch, so that a name can be checked
before anything slow is imported."""

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from undertow.assembled import assembled, is_described
from undertow.errors import UnknownCheckpoint
from undertow.lookup import did_you_mean


class EmbeddedModels(Mapping[str, Path]):
    """Name and folder of the models that ship in the package. One that shares another one's weights is put together
    when its folder is asked for, and not by its name alone. Errors: those of `assembled`."""

    def __init__(self, folders: Iterable[Path]):
        self._folders = {folder.name: folder for folder in folders}

    def __getitem__(self, name: str) -> Path:
        folder = self._folders[name]
        return assembled(folder) if is_described(folder) else folder

    def __contains__(self, name: object) -> bool:
        return name in self._folders

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


def embedded_models() -> EmbeddedModels:
    """The models that ship in the package."""
    root = Path(str(files("undertow"))) / "models"
    return EmbeddedModels(sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else ())


def embedded_name(source: str | Path) -> str | None:
    """The name of the embedded model that is named, or whose folder is."""
    known, name = embedded_models(), Path(source).name
    return name if name in known and (str(source) == name or Path(source) == known[name]) else None


def require_named(source: str | Path) -> None:
    """Errors: `UnknownCheckpoint` for an empty name, which would be the working folder."""
    if not str(source).strip():
        raise UnknownCheckpoint(repr(str(source)), "this is no name", "name a file, a folder, a model or a Hub id")


def meant_by(path: str | Path) -> str:
    """A sentence to stand before a remedy, where a path to nothing is a model's name, by itself or with a slash, such
    as ./emoji, or ends in one."""
    name, embedded = Path(path).name, embedded_models()
    if str(path) in embedded:
        place = f"undertow.embedded.embedded_models()[{name!r}]"
        return f"undertow.load and undertow.load_unet take it by its name, here it is {place}; or "
    if len(Path(path).parts) > 1 and name.lower() not in embedded:
        return ""
    return did_you_mean(name, embedded)


def located(source: str | Path) -> str | Path:
    """An embedded model's folder, or the source itself. Errors: `UnknownCheckpoint` for a name that is neither."""
    require_named(source)
    embedded = embedded_models()
    place = embedded.get(str(source), source)
    if "/" not in str(source) and not Path(place).exists():
        problem = "no such file or folder and no such embedded model"
        raise UnknownCheckpoint(source, problem, f"{did_you_mean(source, embedded)}embedded: {', '.join(embedded)}")
    return place
