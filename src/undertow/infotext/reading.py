"""What was read of another program's description of a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LORA = "LoRA"
INVERSION = "textual inversion"
"""The kind of file that stands for a word of a prompt."""


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A file that a description names, without holding it. kind: such as `LORA`. option: of the command line that gives
    it; empty if there is none. hash: as the program wrote it. scale: how strongly it acted."""

    kind: str
    name: str
    option: str = ""
    hash: str = ""
    scale: float | None = None

    def __str__(self) -> str:
        if not self.name:
            return f"a {self.kind}, of which it says no name"
        scale = "" if self.scale is None else f" at {self.scale:g}"
        return f"{self.kind} {self.name!r}{scale}{f' (hash {self.hash})' if self.hash else ''}"


@dataclass(frozen=True, kw_only=True)
class NotUnderstood:
    """A setting that has no part in the request. why: what it would need."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a description says. program: that wrote it. request: fields of a `GenerationRequest`, as JSON has them.
    files: that it names. not_understood: what is left. version: of the program, if it says so. notes: sentences about
    what all of the program's pictures have in common."""

    program: str
    request: Mapping[str, Any]
    files: Sequence[NamedFile] = ()
    not_understood: Sequence[NotUnderstood] = ()
    version: str = ""
    notes: Sequence[str] = ()

    def of_kind(self, kind: str) -> list[NamedFile]:
        """The files of one kind."""
        return [file for file in self.files if file.kind == kind]


@dataclass(kw_only=True)
class Collector:
    """Collects what a reader finds. The fields as in `Reading`."""

    request: dict[str, Any] = field(default_factory=dict[str, Any])
    files: list[NamedFile] = field(default_factory=list[NamedFile])
    not_understood: list[NotUnderstood] = field(default_factory=list[NotUnderstood])
    notes: list[str] = field(default_factory=list[str])

    def skip(self, name: str, value: object, why: str) -> None:
        """Notes a setting that is not understood."""
        self.not_understood.append(NotUnderstood(name=name, value=str(value), why=why))

    def reading(self, program: str, version: str = "") -> Reading:
        """All of it."""
        return Reading(
            program=program,
            request=self.request,
            files=tuple(self.files),
            not_understood=tuple(self.not_understood),
            version=version,
            notes=tuple(self.notes),
        )
