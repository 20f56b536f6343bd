"""What was done for a request."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from undertow.checkpoints.files.hashes import inversion_hash
from undertow.engine.computing import PLAIN, Computing
from undertow.engine.fault import Fault, Rescued
from undertow.engine.request import GenerationRequest
from undertow.memory.report import MemoryReport


@dataclass(frozen=True, kw_only=True)
class UsedAdapter:
    """An adapter that acted. title: what it is called. kind: what it is, such as "LoRA". path: its file or folder."""

    title: str
    kind: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class UsedFiles:
    """The files of weights that pictures were drawn with, to be hashed when a picture is saved. model: its file or
    folder; `None` for none. refiner: of the model that drew the last steps, where one did. embeddings: the textual
    inversions that its prompts use, by name."""

    model: Path | None = None
    refiner: Path | None = None
    adapters: Sequence[UsedAdapter] = ()
    embeddings: Mapping[str, Path] = field(default_factory=dict[str, Path])

    def embedding_hashes(self) -> dict[str, str]:
        """A1111's hash of each textual inversion whose file is still there."""
        hashes = {name: inversion_hash(path) for name, path in self.embeddings.items()}
        return {name: digits for name, digits in hashes.items() if digits is not None}


@dataclass(kw_only=True)
class FoundFaults:
    """What was found where numbers were not finite. first: the first fault of each module and cause. rows: how many
    rows were computed once more. upcast, clamped: as in `Report`."""

    first: tuple[Fault, ...] = ()
    rows: int = 0
    upcast: Counter[str] = field(default_factory=Counter[str])
    clamped: Counter[str] = field(default_factory=Counter[str])

    def add(self, rescued: Rescued) -> tuple[str, ...]:
        """Counts a row; returns a line where its fault is new."""
        fault = rescued.fault
        self.rows += rescued.outcome is not None
        self.upcast.update(rescued.upcast)
        self.clamped.update(rescued.clamped)
        if (fault.module, fault.cause) in {(one.module, one.cause) for one in self.first}:
            return ()
        self.first += (fault,)
        return (f"{fault} ({fault.origin})",)

    def notes(self) -> tuple[str, ...]:
        """A line for users, where anything was done."""
        found: list[str] = []
        if not self.rows:
            return ()
        first = self.first[0]
        where = f"first at step {first.origin.step}: {first}"
        rows = f"{self.rows} row{'' if self.rows == 1 else 's'}"
        if self.upcast:
            found.append(f"computed {_named(self.upcast)} in float32 for {rows}; {where}")
        if self.clamped:
            total = sum(self.clamped.values())
            found.append(f"cut {total} numbers of {_named(self.clamped)} for {rows}: the picture changed; {where}")
        return tuple(found)


def _named(counts: Mapping[str, int]) -> str:
    first, *others = counts
    return f"{first} and {len(others)} more" if others else first


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done for one request, so that it can be understood and repeated.

    model: its name. sampler, schedule: what drew, and along which grid, by our names. sigmas: of the (last) pass.
    decisions: what the engine chose by itself and why. seconds: time by stage; of batches shared with other
    requests, its rows' part. rows: of the largest U-Net batch that its rows were in. cancelled: by an observer,
    before the end. replayed_rows, replayed_steps: evaluations, and whole steps of all pictures, that came from an
    `OutcomeLog`. debug: what the watches noted. faults: of each module and cause that made numbers that are not
    finite, the first. upcast: calls that were computed in float32 for that, by module. clamped: numbers that were
    cut, by module. computing: how the model was loaded, where somebody chose it. files: of weights, on this machine.
    memory: what was needed of it.
    """

    request: GenerationRequest
    model: str
    size: tuple[int, int]
    sigmas: tuple[float, ...]
    seconds: dict[str, float]
    sampler: str = ""
    schedule: str = ""
    rows: int = 0
    replayed_rows: int = 0
    replayed_steps: int = 0
    cancelled: bool = False
    decisions: tuple[str, ...] = ()
    debug: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    upcast: Mapping[str, int] = field(default_factory=dict[str, int])
    clamped: Mapping[str, int] = field(default_factory=dict[str, int])
    computing: Computing = PLAIN
    files: UsedFiles = field(default=UsedFiles(), repr=False)
    memory: MemoryReport = field(default=MemoryReport(), repr=False)
