"""What `undertow generate --from PICTURE` is asked for: the request of a picture, with what was typed in its place.

A picture is data. What it names is asked for by option, and what undertow has no word for is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from undertow.adapters.files.bundled import BundledAdapters
from undertow.checkpoints.files.place import local_path
from undertow.cli.config import read_config
from undertow.cli.notes import Notes
from undertow.cli.option_values import named_adapters
from undertow.cli.request_options import changes, with_parts
from undertow.cli.task import Task, typed_rows
from undertow.embedded import embedded_models, located
from undertow.engine.metadata import JSON_KEY, StoredDescription, read_stored, read_texts
from undertow.engine.named_adapters import with_named
from undertow.engine.named_files import file_name
from undertow.errors import InvalidInput
from undertow.infotext.reading import INVERSION, LORA, NamedFile

if TYPE_CHECKING:
    from undertow.infotext.reading import Reading
    from undertow.service import UNetService


def repeated_task(
    picture: Path, options: Mapping[str, Any], notes: Notes, model: str | None = None, refiner: str | None = None
) -> Task:
    """The request that a picture was drawn by, but for what is given now.

    All pictures of that request are drawn again, as their number may decide the last bits, and the one is written. With
    another seed or number they are other pictures: one, or as many as are asked for, from this one's seed. model,
    refiner: those that were typed. Errors: `InvalidInput`.
    """
    texts = read_texts(picture)
    instead = changes(options) | ({"prompt": options["prompt"]} if "prompt" in options else {})
    stored, needed = read_stored(picture, texts) if JSON_KEY in texts else None, list[NamedFile]()
    if stored is None:
        taken = {INVERSION: bool(options.get("embeddings")), LORA: bool(options.get("loras"))}
        stored, needed = _of_others(picture, texts, instead, model, notes, taken)
    source = model or model_at_hand(stored.model)
    if source is None:
        source = stored.model
        needed.append(NamedFile(kind="model", name=source, option="--model", hash=stored.model_hash or ""))
    bundled = bundled_with(source).names()
    if options.get("embeddings"):  # files, whose names take the place of the stored ones once they are read
        instead["embeddings"] = ()
        _note_other_embeddings(options["embeddings"], stored.embedding_hashes, notes)
    if "adapters" in instead:
        merged = with_named(stored.request, named_adapters(options), bundled)
        instead["adapters"] = merged.value
        if merged.dropped:
            notes.add(f"drawn without what was stored and is not named now: {', '.join(merged.dropped)}")
    if refiner is None:
        for file in stored.refining:
            notes.add(f"drawn without the {file}; {file.option} FILE takes it")
    stored.require([*needed, *stored.named_files(instead, bundled)])
    found = stored.description(instead, bundled)
    if options:
        names = ", ".join(name.replace("_", " ") for name in options)
        notes.add(f"given now, in place of what is stored: {names}")
    request, index = with_parts(found.request, options), found.index
    rows = typed_rows(options)
    drawn_by = {"model": source, "model_hash": stored.model_hash, "computing": stored.computing}
    if not rows:
        return Task(request=request, indices=[index], **drawn_by)
    variation = request.variation_seed
    if variation is not None and "variation" not in options:
        variation += index
    rows = {"seed": request.seed + index, "count": 1, **rows}
    request = replace(request, **rows, variation_seed=variation)
    return Task(request=request, indices=range(request.count), **drawn_by)


def model_at_hand(name: str) -> str | None:
    """The model that a picture names, where it is here without being asked for: in the user's config file, or in the
    package. A picture may name one, and not a place."""
    return _configured(name) or (name if name in embedded_models() else None)


def bundled_with(model: str) -> BundledAdapters:
    """The adapters that came with a model, in its folder."""
    place = embedded_models().get(model)
    if place is None and model:
        place = local_path(located(model)) if Path(model).expanduser().exists() else None
    return BundledAdapters(place if place is not None and place.is_dir() else None)


def note_another_model(task: Task, service: "UNetService", console: Console) -> None:
    """Says so where a picture was drawn by a model with other weights."""
    from undertow.checkpoints.files.hashes import MODEL_DIGITS, model_hash

    if task.model_hash is None or len(task.model_hash) < MODEL_DIGITS:  # A1111's first hashes were of another kind
        return
    found = model_hash(service.engine.model.path)
    if found is None or found == task.model_hash[:MODEL_DIGITS]:
        return
    message = f"note: the picture was drawn by a model with the hash {task.model_hash}; this one has {found}"
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def _of_others(
    picture: Path,
    texts: Mapping[str, str],
    instead: Mapping[str, Any],
    model: str | None,
    notes: Notes,
    taken: Mapping[str, bool],
) -> tuple[StoredDescription, list[NamedFile]]:
    """A request from another program's description, and what it needs besides the model. taken: kinds of files,
    and whether such are given now. Errors: `InvalidInput`."""
    from undertow.engine.foreign import within_limits
    from undertow.infotext.picture import read_description_of_others, unread_program

    reading = read_description_of_others(texts)
    if reading is None:
        program = unread_program(texts)
        problem = "it holds no description" if program is None else f"its description is of {program}"
        raise InvalidInput("picture", str(picture), "one that undertow, A1111, ComfyUI or InvokeAI described", problem)
    reading = within_limits(reading)
    named = next(iter(reading.of_kind("model")), None)
    request = dict(reading.request)
    of_model = bundled_with(model or (named.name if named is not None else ""))
    bundled = of_model.names()
    if not taken[LORA]:
        request["adapters"] = [
            {"source": file.name, "scale": 1.0 if file.scale is None else file.scale}
            for file in reading.of_kind(LORA)
            if file.name in bundled
        ]
        _note_other_loras(reading, of_model, notes)
    told = {"model", "picture", *(kind for kind, given in taken.items() if given)}
    for file in reading.files:
        if file.kind not in told and file.name not in bundled:
            notes.add(f"drawn without {file}; {file.option} FILE takes it")
    for note in reading.notes:
        notes.add(note)
    for one in reading.not_understood:
        said = f"{one.name}: {one.value[:60]}" if one.value else one.name
        notes.add(f"not understood of {reading.program}'s description: {said!r}; {one.why}")
    stored = StoredDescription(
        path=picture,
        request=request,
        model="" if named is None else named.name,
        model_hash=None if named is None else named.hash or None,
        embedding_hashes={file.name: file.hash for file in reading.of_kind(INVERSION)},
    )
    return stored, [] if "image" in instead else reading.of_kind("picture")


def _note_other_embeddings(given: Sequence[str], stored: Mapping[str, str], notes: Notes) -> None:
    """Says where a file is none of the textual inversions that a picture was drawn with."""
    from undertow.checkpoints.files.hashes import inversion_hash

    for source in given:
        place = local_path(source)
        found = None if place is None else inversion_hash(place)
        if stored and found is not None and found not in stored.values():
            drawn = ", ".join(f"{name!r} with the hash {digits}" for name, digits in stored.items())
            notes.add(f"the picture was drawn with the textual inversion {drawn}; {source} has {found}")


def _configured(name: str) -> str | None:
    """The place of the model of this name in the user's config file."""
    if not name or file_name(name) != name:
        return None
    found = read_config().find(name)
    return None if found == name else found


def _note_other_loras(reading: "Reading", bundled: BundledAdapters, notes: Notes) -> None:
    """Says where a LoRA that came with the model has the name of the one that drew, and other contents."""
    from undertow.checkpoints.files.hashes import lora_hash

    for file in reading.of_kind(LORA):
        if file.name not in bundled.names() or not file.hash:
            continue
        found = lora_hash(Path(bundled.locate(file.name)))
        if found is not None and not found.startswith(file.hash) and not file.hash.startswith(found):
            notes.add(f"the picture was drawn with {file}; the model's own of that name has the hash {found}")
