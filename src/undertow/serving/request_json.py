"""Requests in three forms: a client's JSON, the JSON of a spec, and the request that a worker draws.

What a client names by a word of the catalog stays a word in the spec; only a worker knows where it lies.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from PIL import Image

from undertow.doors import shown
from undertow.engine.request import PICTURES, GenerationRequest
from undertow.errors import InvalidInput
from undertow.pictures.files import picture_from_bytes
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.catalog.entries import AdapterEntry
from undertow.serving.failures import FailureCode, Refused
from undertow.serving.jobs import JobSpec
from undertow.serving.uploads import Artifacts

OF_ADAPTERS = ("image", "mask")
"""Fields of an adapter that hold pictures."""

Json = dict[str, Any]


def with_pictures(wanted: Mapping[str, Any], opened: Callable[[str, Any], Any]) -> Json:
    """A request's JSON in which every picture is what `opened` makes of it. opened: is told where it stands."""
    request = deepcopy(dict(wanted))
    for name in PICTURES:
        if request.get(name) is not None:
            request[name] = opened(name, request[name])
    for place, adapter in adapters_in(request):
        for name in OF_ADAPTERS:
            given = adapter.get(name)
            if isinstance(given, list):
                adapter[name] = [opened(f"{place}.{name}[{index}]", one) for index, one in enumerate(given)]
            elif given is not None:
                adapter[name] = opened(f"{place}.{name}", given)
    return request


def adapters_in(request: Json) -> Iterator[tuple[str, Json]]:
    """Each adapter of a request's JSON, also in a stack and in regions, with its place; a word is made an object."""
    holders: list[tuple[str, Json]] = [("adapters", request)]
    regions = request.get("regions")
    if isinstance(regions, Mapping):
        regions = request["regions"] = [regions]
    if isinstance(regions, list):
        holders += [(f"regions[{i}].adapters", one) for i, one in enumerate(regions) if isinstance(one, dict)]
    for place, holder in holders:
        given = holder.get("adapters")
        if isinstance(given, dict) and "adapters" in given:  # a stack
            holder, given = given, given["adapters"]
        several = given if isinstance(given, list) else [given] if isinstance(given, str | dict) else []
        if several:
            holder["adapters"] = [{"source": one} if isinstance(one, str) else one for one in several]
        for index, one in enumerate(holder["adapters"] if several else ()):
            if not isinstance(one, dict):
                raise InvalidInput(f"{place}[{index}]", shown(one), "the name of an adapter, or an object with it")
            yield f"{place}[{index}]", one


def with_sources(request: Json) -> Json:
    """The same with every adapter's name of the catalog as its `source`, which clients may write as `name`. Errors:
    `InvalidInput`."""
    for place, adapter in adapters_in(request):
        if "source" not in adapter and "name" in adapter:
            adapter["source"] = adapter.pop("name")
        if not isinstance(adapter.get("source"), str):
            raise InvalidInput(f"{place}.name", shown(adapter.get("source")), "the name of an adapter")
        if adapter.get("encoder") is not None:
            expected = "nothing: the service finds it beside the adapter"
            raise InvalidInput(f"{place}.encoder", shown(adapter["encoder"]), expected)
    return request


def request_of(spec: JobSpec, artifacts: Artifacts, catalog: Catalog) -> GenerationRequest:
    """The request that a worker draws: adapters by their places, embeddings by the words that prompts use, pictures
    from their bytes.

    Errors: `Refused` for files that are others than when the job was accepted; `InvalidInput` for what is gone; what
    `artifacts` raises."""
    require_same_files(spec, catalog)
    request = with_pictures(spec.request, lambda place, given: stored_picture(artifacts, place, given))
    for place, adapter in adapters_in(request):
        entry = catalog.adapter(adapter["source"], spec.model, argument=place)
        if adapter.get("name") is None:
            adapter["name"] = entry.name
        adapter["source"] = entry.name if entry.model is not None else str(entry.path)
    words = [catalog.adapter(name, spec.model, argument="embeddings").words for name in request.get("embeddings", ())]
    request["embeddings"] = [word for several in words for word in several]
    return GenerationRequest.from_json(request)


def embeddings_of(spec: JobSpec, catalog: Catalog) -> list[AdapterEntry]:
    """The files of textual inversions that a model must know before the job is drawn."""
    return [catalog.adapter(name, spec.model, argument="embeddings") for name in spec.request.get("embeddings", ())]


def require_same_files(spec: JobSpec, catalog: Catalog) -> None:
    """Errors: `Refused` with `FILE_CHANGED` where a model, an adapter or an embedding is gone, or another one than when
    the job was accepted."""
    for name, accepted in spec.files.items():
        try:
            entry = catalog.adapter(name, spec.model) if name else catalog.model(spec.model)
            found = entry.hash
        except (InvalidInput, OSError) as err:
            raise _changed(name or spec.model, accepted, None, str(err)) from err
        if found != accepted:
            raise _changed(name or spec.model, accepted, found, "its bytes are others now")


def _changed(name: str, accepted: str, found: str | None, why: str) -> Refused:
    return Refused(
        FailureCode.FILE_CHANGED,
        f"{name} is not the file that the job was accepted with ({why}): put the old one back, or submit the job again",
        {"name": name, "accepted": accepted, "found": found},
    )


def stored_picture(artifacts: Artifacts, place: str, given: Any) -> Image.Image:
    return picture_from_bytes(place, artifacts.read(given["artifact"]))
