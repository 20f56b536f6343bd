"""Checkpoints that a run resumes from: whole or absent, checked before use, the newest few kept.

    RUN/training/checkpoints/step-000500/
        state.pt      weights, averaged weights and optimizer state, by `torch.save`, read with `weights_only=True`
        meta.json     step, seconds, the run's config, and size and SHA-256 of state.pt

A checkpoint is written into a draft, synced to disk and renamed, so a folder with a step's name is complete.
What happens to its bytes later (a cut copy, a bad disk) is found by size and hash before anything is loaded or written.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undertow.checkpoints.files.atomic import atomic_folder, read_json, write_text
from undertow.errors import CheckpointError, CorruptFile, UndertowError, UnknownCheckpoint

FORMAT = "undertow training state 2"
META, STATE = "meta.json", "state.pt"
NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedState:
    """What a checkpoint holds. seconds: time trained so far."""

    step: int
    seconds: float
    config: dict[str, Any]
    tensors: dict[str, Any]


def save_state(folder: Path, saved: SavedState, *, keep: int) -> Path:
    """Writes `folder/step-N`, then removes the oldest others until `keep` checkpoints are left; returns it.

    A checkpoint of this step is replaced. Others may be newer, when a run was resumed from an older one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"step-{saved.step:06d}"
    with atomic_folder(place) as draft:
        with (draft / STATE).open("wb") as file:
            torch.save(saved.tensors, file)
            file.flush()
            os.fsync(file.fileno())
        meta = {
            "format": FORMAT,
            "step": saved.step,
            "seconds": round(saved.seconds, 3),
            "bytes": (draft / STATE).stat().st_size,
            "sha256": _sha256(draft / STATE),
            "config": saved.config,
        }
        write_text(json.dumps(meta, indent=2) + "\n", draft / META)
        _sync_folder(draft)
    _sync_folder(folder)
    others = [step for step in saved_steps(folder) if step != saved.step]
    for old in others[: max(0, len(others) - (keep - 1))]:
        shutil.rmtree(folder / f"step-{old:06d}")
    return place


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))


def find_step(folder: Path, step: int | None = None) -> int:
    """The step of a checkpoint in `folder`: this one, or the newest. Errors: `UnknownCheckpoint` if it is not there."""
    steps = saved_steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        there = f"there are steps {', '.join(map(str, steps))}" if steps else "start the run without --resume"
        raise UnknownCheckpoint(folder, wanted, there)
    return steps[-1] if step is None else step


def load_state(folder: Path, step: int | None = None) -> SavedState:
    """The checkpoint of `step`, the newest when `None`, after its size and hash have been checked.

    Errors: `UnknownCheckpoint` when there is none or it is not ours; `CorruptFile` when it is damaged. The message
    names the newest other checkpoint that is whole.
    """
    step = find_step(folder, step)
    place = folder / f"step-{step:06d}"
    try:
        meta = _checked_meta(place)
        return SavedState(step=step, seconds=meta["seconds"], config=meta["config"], tensors=_read(place / STATE))
    except CheckpointError as err:
        others = [other for other in saved_steps(folder) if other != step]
        raise type(err)(err.path, err.problem, _remedy(folder, others)) from err


def _checked_meta(place: Path) -> Mapping[str, Any]:
    meta = read_json(place / META)
    if meta.get("format") != FORMAT or not isinstance(meta.get("config"), dict):
        raise UnknownCheckpoint(place / META, f"its format is {meta.get('format')!r}, not {FORMAT!r}")
    state = place / STATE
    size = state.stat().st_size if state.is_file() else 0
    if size != meta["bytes"]:
        raise CorruptFile(state, f"{size} bytes instead of {meta['bytes']}: it was truncated")
    if _sha256(state) != meta["sha256"]:
        raise CorruptFile(state, "its bytes are not those that were written")
    return meta


def _read(state: Path) -> dict[str, Any]:
    try:
        tensors = torch.load(state, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as err:
        raise UnknownCheckpoint(state, f"not a training state ({err})") from err
    if not isinstance(tensors, dict) or tensors.keys() != {"network", "average", "optimizer"}:
        raise UnknownCheckpoint(state, "it holds something else than weights, averaged weights and optimizer state")
    return tensors


def _remedy(folder: Path, others: list[int]) -> str:
    for step in reversed(others):
        try:
            _checked_meta(folder / f"step-{step:06d}")
        except UndertowError:
            continue
        return f"step {step} is whole: resume from it with --resume-step {step}"
    return "no other checkpoint is whole: start the run again in another folder"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes names in `folder` durable; systems that cannot open a folder (Windows) do that themselves."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
