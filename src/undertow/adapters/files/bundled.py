"""Adapters that came with a model, in the `adapters` of its folder: named without a path."""

from pathlib import Path

from undertow.errors import UnknownCheckpoint
from undertow.lookup import did_you_mean

ADAPTERS, ENDING = "adapters", ".safetensors"


class BundledAdapters:
    """The adapters in the `adapters` folder of a model. folder: the model's; `None` if it has none."""

    def __init__(self, folder: Path | None = None):
        self._folder = None if folder is None else folder / ADAPTERS

    def names(self) -> tuple[str, ...]:
        """Names of all of them, in order: folders, and files without their extension."""
        if self._folder is None or not self._folder.is_dir():
            return ()
        places = (place for place in self._folder.iterdir() if place.is_dir() or place.suffix == ENDING)
        return tuple(sorted(place.name.removesuffix(ENDING) for place in places))

    def locate(self, source: str | Path) -> str | Path:
        """The path of the bundled adapter called `source`; an existing path, or what may be a Hub id, is returned
        unchanged.

        Errors: `UnknownCheckpoint` lists the bundled adapters, for a plain word that is none of them.
        """
        names = self.names()
        if self._folder is None or not names or Path(source).expanduser().exists():
            return source
        name = str(source).removesuffix(ENDING)
        if name in names:
            place = self._folder / name
            return place if place.is_dir() else self._folder / f"{name}{ENDING}"
        if "/" in str(source):
            return source
        raise UnknownCheckpoint(
            source,
            "no such file or folder, and no adapter of that name came with the model",
            f"{did_you_mean(source, names)}its own: {', '.join(names)}",
        )
