"""What a description from a stranger names and does not hold: files and models, which it must not open by itself.

A picture is data, not an order: a path inside it could name any file of this machine, a Hub id starts a request with
the user's token, and a pickle wants to be read. Only what came with the package is taken at its word; the rest is
listed, and asked for. Everything else that holds stored requests of strangers goes through here too.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from undertow.engine.request import PICTURES
from undertow.infotext.reading import INVERSION, NamedFile

STORED = "png"
"""Where a picture's own bytes are in its description."""


def without_files(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request's JSON in which pictures are the bytes that are stored, or asked for: files are names."""
    cleaned = {name: _shown(request[name]) if name in PICTURES else request[name] for name in request}
    for place in ("adapters", "regions"):
        if place in cleaned:
            cleaned[place] = _within(cleaned[place])
    return cleaned


def named_files(request: Mapping[str, Any], bundled: Collection[str]) -> list[NamedFile]:
    """The files that a request's JSON names and needs. bundled: adapters that came with the model; values that are no
    JSON any more are the caller's own."""
    found = [
        NamedFile(kind=name, name=_name(request[name]), option=f"--{name}")
        for name in PICTURES
        if _is_open(request, name)
    ]
    for name in listed(request.get("embeddings")):
        found.append(NamedFile(kind=INVERSION, name=file_name(str(name)), option="--embedding"))
    for adapter in stored_adapters(request):
        source = str(adapter.get("source"))
        if source not in bundled:
            scale = adapter.get("scale", 1.0)
            scale = float(scale) if isinstance(scale, int | float) else None
            found.append(NamedFile(kind="adapter", name=file_name(source), option="--lora or --adapter", scale=scale))
        if adapter.get("encoder") is not None:
            found.append(NamedFile(kind="image encoder", name=file_name(str(adapter["encoder"])), option="--adapter"))
        for name in ("image", "mask"):
            option = "--adapter NAME=PICTURE" if name == "image" else "--adapter-mask"
            given = adapter.get(name)
            pictures: list[Any] = given if isinstance(given, list) else [given]
            found += [
                NamedFile(kind=f"{name} of {file_name(source)}", name=_name(one), option=option)
                for one in pictures
                if one is not None and not _holds_bytes(one)
            ]
    return found


def stored_adapters(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The adapters of a request's JSON, those of its regions too."""
    for holder in (request, *listed(request.get("regions"))):
        if isinstance(holder, Mapping):
            yield from request_adapters(holder)


def request_adapters(holder: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The adapters of the JSON of a request or a region itself, in a stack or not."""
    adapters = holder.get("adapters")
    if isinstance(adapters, Mapping):  # a stack
        adapters = adapters.get("adapters")
    several = [adapters] if isinstance(adapters, str) else listed(adapters)
    sources = ({"source": adapter} if isinstance(adapter, str) else adapter for adapter in several)
    yield from (adapter for adapter in sources if isinstance(adapter, dict))


def _within(holder: Any) -> Any:
    """Adapters, in a list, a stack or regions, with their pictures shown as `_shown` does."""
    if isinstance(holder, list):
        return [_within(one) for one in holder]
    if not isinstance(holder, Mapping):
        return holder
    changed = {name: _within(value) if name in ("adapters", "regions") else value for name, value in holder.items()}
    for name in ("image", "mask"):
        if name in changed:
            pictures = changed[name]
            changed[name] = [_shown(one) for one in pictures] if isinstance(pictures, list) else _shown(pictures)
    return changed


def _shown(picture: Any) -> Any:
    """A picture's JSON without the file that it came from."""
    if isinstance(picture, str):
        return {"name": file_name(picture)}
    if not isinstance(picture, Mapping) or "file" not in picture:
        return picture
    rest = {name: value for name, value in picture.items() if name != "file"}
    return rest | {"name": file_name(str(picture["file"]))}


def _is_open(request: Mapping[str, Any], name: str) -> bool:
    picture = request.get(name)
    return isinstance(picture, str | Mapping) and not _holds_bytes(picture)


def _holds_bytes(picture: Any) -> bool:
    return not isinstance(picture, str | Mapping) or (isinstance(picture, Mapping) and STORED in picture)


def _name(picture: Any) -> str:
    """What a picture is called, or how large it is."""
    if isinstance(picture, str):
        return file_name(picture)
    size = picture.get("size")
    sized = f"{size[0]}x{size[1]}" if isinstance(size, list) and len(size) == 2 else "a picture"
    return file_name(str(picture.get("file") or picture.get("name") or sized))


def file_name(path: str) -> str:
    """The file's name alone, on whatever system the path was written."""
    return PurePath(path.replace("\\", "/")).name or path


def listed(value: Any) -> Sequence[Any]:
    """A list of JSON; nothing for what is none."""
    return value if isinstance(value, list | tuple) else ()
