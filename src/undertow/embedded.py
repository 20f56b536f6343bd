"""The models that ship in the package, and models named by a word. Imports no torch, so that a name can be checked
before anything slow is imported."""

from importlib.resources import files
from pathlib import Path

from undertow.assembled import assembled, is_described
from undertow.errors import UnknownCheckpoint
from undertow.lookup import did_you_mean


def embedded_models() -> dict[str, Path]:
    """Name and folder of the models that ship in the package; of those that share another one's weights the folder in
    the cache, where there is room for one."""
    root = Path(str(files("undertow"))) / "models"
    shipped = [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
    whole = {folder.name: assembled(folder) if is_described(folder) else folder for folder in shipped}
    return {name: folder for name, folder in whole.items() if folder is not None}


def require_named(source: str | Path) -> None:
    """Errors: `UnknownCheckpoint` for an empty name, which would be the working folder."""
    if not str(source).strip():
        raise UnknownCheckpoint(repr(str(source)), "this is no name", "name a file, a folder, a model or a Hub id")


def located(source: str | Path) -> str | Path:
    """An embedded model's folder, or the source itself. Errors: `UnknownCheckpoint` for a name that is neither."""
    require_named(source)
    embedded = embedded_models()
    place = embedded.get(str(source), source)
    if "/" not in str(source) and not Path(place).exists():
        problem = "no such file or folder and no such embedded model"
        raise UnknownCheckpoint(source, problem, f"{did_you_mean(source, embedded)}embedded: {', '.join(embedded)}")
    return place
