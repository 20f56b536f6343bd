"""Models by their id on the Hugging Face Hub, from the network or the local cache."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.model_folder import STEMS
from undertow.checkpoints.files.place import HUB_ID
from undertow.errors import UnknownCheckpoint

WEIGHTS = "*.safetensors"
ANSWERS_IN_S = 10.0

_ANSWERED: set[str] = set()
"""Endpoints that were reached."""

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def fetch(source: str, *, variant: str | None = None) -> Path:
    """The local path of a Hub model, a pipeline folder or a single file, in the Hub client's cache.

    A complete copy in the cache is used without network access. Only safetensors of one variant are downloaded, never
    pickles. Errors: `UnknownCheckpoint` when the model is neither cached nor reachable.
    """
    cached = cached_copy(source)
    if cached is not None:
        return cached
    location, file = hub_location(source)
    with naming_the_hub(source):
        if file is not None:
            return Path(client().hf_hub_download(**location, filename=file))
        names = client().list_repo_files(**location)
        return Path(client().snapshot_download(**location, allow_patterns=files_to_fetch(names, variant)))


def client() -> ModuleType:
    """The Hub's client library, which is slow to import."""
    import huggingface_hub  # noqa: PLC0415  slow to import

    return huggingface_hub


@contextmanager
def naming_the_hub(source: str) -> Generator[None]:
    """Makes an `UnknownCheckpoint` of what the client raises inside."""
    from huggingface_hub.errors import (  # noqa: PLC0415  slow to import
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        _require_answer()
        yield
    except RepositoryNotFoundError as err:
        raise UnknownCheckpoint(
            source, "no such file or folder here, and no such model on the Hub", "check its spelling, or sign in"
        ) from err
    except Exception as err:  # the client passes on whatever its transport raises, which differs between its versions
        if isinstance(err, EntryNotFoundError) and not isinstance(err, LocalEntryNotFoundError):
            raise UnknownCheckpoint(
                source,
                "no such file or folder here, and its repository on the Hub has no such file",
                "look there for it",
            ) from err
        reason = str(err).strip().partition("\n")[0]
        raise UnknownCheckpoint(
            source,
            f"no such file or folder here, not whole in the local cache, and the Hub did not answer ({reason})",
            "connect to the network, or give the path of a file or folder",
        ) from err


def _require_answer() -> None:
    """Asks the Hub for its first page, once in a process. Its client tries everything else again and again, for half a
    minute where there is no network. Errors: those of the client's transport."""
    endpoint = client().constants.ENDPOINT
    if endpoint not in _ANSWERED:
        client().get_session().head(endpoint, timeout=ANSWERS_IN_S)
        _ANSWERED.add(endpoint)


def cached_copy(source: str) -> Path | None:
    """The copy of a Hub id in the local cache, if it is complete. Errors: `UnknownCheckpoint` for what is no Hub id."""
    location, file = hub_location(source)
    return _cached(client(), location, file)


def hub_location(source: str) -> tuple[dict[str, Any], str | None]:
    """Repository and revision of a Hub id, and its file if it names one."""
    match = HUB_ID.fullmatch(source)
    if match is None:
        raise UnknownCheckpoint(source, "not a Hub id", "write it as owner/name")
    file = match["file"]
    location = {"repo_id": match["repository"], "revision": match["revision"]}
    return location, None if file is None else file.removeprefix("/")


def _cached(hub: ModuleType, location: Mapping[str, str | None], file: str | None) -> Path | None:
    """The copy in the local cache, if it is complete."""
    if file is not None:
        found = hub.try_to_load_from_cache(**location, filename=file)
        return Path(found) if isinstance(found, str) else None
    try:
        folder = Path(hub.snapshot_download(**location, local_files_only=True))
    except OSError:
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a pipeline or model folder was downloaded completely: every network has its weights."""
    if not (folder / "model_index.json").is_file():
        return (folder / "config.json").is_file() and any(folder.glob(WEIGHTS))
    index = read_json(folder / "model_index.json")
    networks = [name for name in NETWORKS if (index.get(name) or [None])[0] is not None]
    return all(any((folder / name).glob(WEIGHTS)) for name in networks)


def files_to_fetch(names: list[str], variant: str | None) -> list[str]:
    """The files of a repository that a pipeline needs: configs, tokenizers, and one variant of each weights file."""
    folders: dict[str, list[str]] = {}
    chosen = [name for name in names if name.endswith((".json", ".txt")) and ".index." not in name]
    for name in names:
        folder, _, file = name.rpartition("/")
        # At the top lie single files of whole pipelines, unless the repository is one network.
        ours = bool(folder) or file.startswith(f"{STEMS[0]}.")
        if ours and (file.endswith(".safetensors") or ".safetensors.index" in file):
            folders.setdefault(folder, []).append(file)
    for folder, files in folders.items():
        kinds = {file: _variant(file) for file in files}
        order = (variant, "") if variant is not None else ("fp16", "", "non_ema")
        best = next((kind for kind in order if kind in kinds.values()), None)
        chosen += [f"{folder}/{file}".removeprefix("/") for file, kind in kinds.items() if kind == best]
    return chosen


def _variant(file: str) -> str:
    """The variant in a weight file's name: "fp16" of model.fp16.safetensors and of model.fp16-00001-of-00002."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.safetensors(\.index)?", "", file.removesuffix(".json"))
    return stem.partition(".")[2]
