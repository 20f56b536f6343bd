"""How a picture was made, as JSON inside its file: the whole request.

What is read is data from a stranger. It is checked like any JSON, and what it names it does not open
(`undertow.engine.named_files`).
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from PIL import Image

from undertow.adapters.adapter import Adapter
from undertow.engine.computing import PLAIN, Computing, known_of
from undertow.engine.exif import from_exif
from undertow.engine.named_files import named_files, without_files
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput, in_plain_words
from undertow.infotext.reading import INVERSION, NamedFile
from undertow.pictures.files import header_of, several
from undertow.pictures.modes import loaded
from undertow.records import Record

TEXT_KEY = "parameters"
"""Where A1111, Forge, ComfyUI loaders and civitai look."""

JSON_KEY = "undertow"

MOST_NAMED = 20
"""Files that a refusal lists."""


@dataclass(frozen=True, kw_only=True)
class Description(Record):
    """How a picture came to be.

    The whole request is kept, not the one picture's: its bits may depend on how many rows were computed together.
    """

    request: GenerationRequest
    """What was asked for."""
    index: Annotated[int, Ge(0)]
    """Which of the request's pictures this is."""
    model: str
    """The model's name."""
    model_hash: str | None = None
    """The first ten digits of its SHA-256; of a folder, its U-Net's."""
    refiner: str | None = None
    """The name of the model that drew the last steps, where one did."""
    refiner_hash: str | None = None
    """As `model_hash`, of the refiner."""
    embedding_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of each textual inversion in its prompts, the first twelve digits of its file's SHA-256."""
    computing: Computing = PLAIN
    """How the model was loaded, where somebody chose it."""


@dataclass(frozen=True, kw_only=True)
class StoredDescription:
    """A description as it stands in a picture, of which nothing is opened yet. computing: `None` where nothing is said
    of it. program: whose it is."""

    path: Path
    request: Mapping[str, Any]
    index: int = 0
    model: str = ""
    model_hash: str | None = None
    refiner: str | None = None
    refiner_hash: str | None = None
    embedding_hashes: Mapping[str, str] = field(default_factory=dict[str, str])
    computing: Computing | None = None
    program: str = "undertow"

    @property
    def refining(self) -> list[NamedFile]:
        """The refiner, where one drew the last steps; the picture can be drawn without it, as another one."""
        if self.refiner is None:
            return []
        return [NamedFile(kind="refiner", name=self.refiner, option="--refiner", hash=self.refiner_hash or "")]

    def named_files(self, instead: Mapping[str, Any], bundled: Collection[str]) -> list[NamedFile]:
        """What it needs and does not hold, but for the model. instead: fields that the caller gives in place of the
        stored ones. bundled: names of adapters that came with the model."""
        own = {"embeddings": ()} if "embeddings" in instead else {}
        return [self._with_hash(file) for file in named_files({**self.request, **instead, **own}, bundled)]

    def _with_hash(self, file: NamedFile) -> NamedFile:
        return replace(file, hash=self.embedding_hashes.get(file.name, "")) if file.kind == INVERSION else file

    def description(self, instead: Mapping[str, Any] | None = None, bundled: Collection[str] = ()) -> Description:
        """The description, with `instead` in place of what is stored. Errors: `InvalidInput` for files that it only
        names, and for values that do not fit."""
        given = instead or {}
        self.require(self.named_files(given, bundled))
        found = Description.from_json(
            {
                "request": {**without_files(self.request), **given},
                "index": self.index,
                "model": self.model,
                "model_hash": self.model_hash,
                "refiner": self.refiner,
                "refiner_hash": self.refiner_hash,
                "embedding_hashes": dict(self.embedding_hashes),
                "computing": PLAIN if self.computing is None else self.computing,
            }
        )
        own = given.get("adapters", ())
        own = own.get("adapters", ()) if isinstance(own, Mapping) else own  # of a stack
        own = [one for one in own if isinstance(one, Adapter)]  # the others are stored ones
        self.require([*_foreign(found.request, bundled, own)])
        # Of fewer pictures than before the caller draws another one.
        if found.index >= found.request.count and "count" not in given:
            raise InvalidInput("picture", str(self.path), f"one of {found.request.count}", "its description is damaged")
        return found

    def require(self, needed: list[NamedFile]) -> None:
        """Errors: `InvalidInput` lists what a description names, and how each is given."""
        if needed:
            named = "; ".join(f"{file}{f' ({file.option})' if file.option else ''}" for file in needed[:MOST_NAMED])
            named += f"; and {len(needed) - MOST_NAMED:,} more" if len(needed) > MOST_NAMED else ""
            raise InvalidInput(
                "picture",
                str(self.path),
                "to come with the files that it names, because a picture opens none by itself",
                f"give {named}",
            )


def read_texts(path: str | Path) -> dict[str, str]:
    """The texts inside a picture file, by name: PNG's chunks, or EXIF. Errors: `InvalidInput` for no picture."""
    with header_of("picture", path) as image:
        found = _texts(image)
        if not found.keys() & {TEXT_KEY, JSON_KEY} and image.format == "PNG":
            loaded(image, "picture")  # texts may also stand behind the pixels
            found = _texts(image)
        return found


def _texts(image: Image.Image) -> dict[str, str]:
    found = {key: text for key, text in image.info.items() if isinstance(key, str) and isinstance(text, str)}
    if isinstance(comment := image.info.get("comment"), bytes) and image.format == "GIF":  # where A1111 writes it
        found[TEXT_KEY] = comment.decode(errors="replace")
    return {**from_exif(image), **found}


def read_stored(path: str | Path, texts: Mapping[str, str] | None = None) -> StoredDescription:
    """The description that undertow wrote into a picture. texts: those of `read_texts`, where they are read already.

    Errors: `InvalidInput` for a file that is no picture, or without an undamaged description.
    """
    content = (read_texts(path) if texts is None else texts).get(JSON_KEY)
    if content is None:
        raise InvalidInput("picture", str(path), "a picture that undertow wrote", "its description is missing")
    try:
        stored = json.loads(content)
        request = stored["request"]
        index, model, digits = stored["index"], stored["model"], stored.get("model_hash")
        hashes = stored.get("embedding_hashes", {})
        refiner, refiner_digits = stored.get("refiner"), stored.get("refiner_hash")
        computing = stored.get("computing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise _damaged(path, in_plain_words(err)) from err
    if not isinstance(request, dict):
        raise _damaged(path, "its request is none")
    if not isinstance(index, int) or index < 0 or not isinstance(model, str) or not isinstance(digits, str | None):
        raise _damaged(path, "its index or model is none")
    if not isinstance(refiner, str | None) or not isinstance(refiner_digits, str | None):
        raise _damaged(path, "its refiner is none")
    if not isinstance(hashes, dict) or not all(isinstance(one, str) for one in hashes.values()):
        raise _damaged(path, "its hashes are none")
    if not isinstance(computing, dict | None):
        raise _damaged(path, "its computing is none")
    try:
        computed = None if computing is None else known_of(computing)
    except InvalidInput as err:
        raise _damaged(path, f"its computing: {err}") from err
    return StoredDescription(
        path=Path(path),
        request=request,
        index=index,
        model=model,
        model_hash=digits,
        refiner=refiner,
        refiner_hash=refiner_digits,
        embedding_hashes=hashes,
        computing=computed,
    )


def read_description(
    path: str | Path, instead: Mapping[str, Any] | None = None, bundled: Collection[str] = ()
) -> Description:
    """How the picture in a file was made. instead: fields of the request that replace the stored ones. bundled: names
    of adapters that came with the model. Errors: those of `read_stored` and `StoredDescription.description`."""
    return read_stored(path).description(instead, bundled)


def _foreign(request: GenerationRequest, bundled: Collection[str], own: Iterable[Adapter]) -> Iterator[NamedFile]:
    """The adapters that a request would open, whatever JSON it was made of. own: the caller's."""
    for adapter in request.all_adapters:
        pictures = (*several(adapter.image), *several(adapter.mask))
        opens = adapter.encoder is not None or any(not isinstance(one, Image.Image) for one in pictures)
        if adapter not in own and (opens or str(adapter.source) not in bundled):
            yield NamedFile(kind="adapter", name=adapter.title, option="--lora or --adapter")


def _damaged(path: str | Path, problem: str) -> InvalidInput:
    return InvalidInput("picture", str(path), "an unchanged description", f"it is damaged ({problem})")
