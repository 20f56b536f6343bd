"""`undertow models`: the models that can be named, where they are and what they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from undertow.cli.config import read_config
from undertow.cli.suggested import distilled_words
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.embedded import embedded_models
from undertow.errors import InvalidInput
from undertow.shortage import size_in_words

WEIGHTS = (".safetensors", ".gguf", ".ckpt", ".pt", ".bin", ".pth")
PIPELINE = "model_index.json"


class Place(NamedTuple):
    """A name that --model takes, the file or folder behind it, and why it is listed."""

    name: str
    path: Path
    found: str


def models(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder to look into; else undertow.toml's, and the Hub's cache.")
    ] = None,
) -> None:
    """List models: those that ship in the package, those that undertow.toml names or has folders of, and those in the
    Hub's cache. Only headers are read."""
    console = SafeConsole()
    if folder is not None and not folder.is_dir():
        raise InvalidInput("FOLDER", str(folder), "a folder with models", "there is none of that name")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model", "what it is", "size", "from"):
        table.add_column(column, overflow="fold")
    with waiting(SafeConsole(stderr=True), "looking into files"):
        for place in _everywhere() if folder is None else _inside(folder, folder, "FOLDER"):
            table.add_row(escape(place.name), escape(_kind(place.path)), size_in_words(_bytes(place.path)), place.found)
    console.print(table)


def _everywhere() -> Iterator[Place]:
    """Where `generate --model` looks, in an order that a reader expects."""
    for name, path in embedded_models().items():
        yield Place(name, path, "the package")
    config = read_config()
    for name, path in config.models.items():
        yield Place(name, embedded_models().get(path, Path(path).expanduser()), "undertow.toml")
    for folder in config.folders:
        yield from _inside(Path(folder).expanduser(), Path(folder).expanduser(), folder)
    yield from _cached()


def _inside(folder: Path, top: Path, found: str) -> Iterator[Place]:
    """Files of weights and pipelines in a folder and the folders below it, named as they are found in `top`."""
    if (folder / PIPELINE).is_file():
        yield Place(str(folder.relative_to(top)), folder, found)
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir():
            yield from _inside(path, top, found)
        elif path.suffix in WEIGHTS:
            yield Place(str(path.relative_to(top)).removesuffix(WEIGHTS[0]), path, found)


def _cached() -> Iterator[Place]:
    """Pipelines in the Hub's cache by their ids."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        for revision in repository.revisions:
            if repository.repo_type == "model" and (revision.snapshot_path / PIPELINE).is_file():
                yield Place(repository.repo_id, revision.snapshot_path, "the Hub's cache")


def _kind(path: Path) -> str:
    """What a file or folder is by its header, or why that is not known, in one line."""
    from undertow.checkpoints.identify.opening import open_checkpoint
    from undertow.cli.inspect_adapter import is_adapter
    from undertow.errors import UndertowError, UnsupportedModel

    try:
        if is_adapter(str(path)):
            return "a LoRA"
        with open_checkpoint(path) as checkpoint:
            found = checkpoint.identification
            parts = ", ".join(checkpoint.parts)
            if found.config is None:
                return f"only {parts}"
            words = (found.title, f"predicts {found.prediction.value}", distilled_words(checkpoint.suggested))
            return ", ".join(word for word in words if word)
    except UnsupportedModel as err:
        return err.model.partition(",")[0]
    except (UndertowError, OSError) as err:
        return str(err).removeprefix(f"{path}: ").partition(";")[0]


def _bytes(path: Path) -> int:
    """Of a file, or of all weights in a folder."""
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.suffix in WEIGHTS)
