"""Pictures written to files, each as soon as it is there, and what there is to say about them."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from undertow.errors import InvalidInput
from undertow.pictures.names import PicturePlace

if TYPE_CHECKING:
    from undertow.engine.events import PictureEvent
    from undertow.engine.result import GenerationResult

OVERWRITE_HELP = "Replace a file that exists, in place of a new name."

STANDARD_OUTPUT = Path("-")


@dataclass(kw_only=True)
class PictureWriter:
    """Writes pictures of a request as they come.

    indices: which of its pictures. place: where they go; `None` for standard output, once all is done. first: the
    number of the first of them, from 1. paths: what was written. refused: why some are not where they were meant to be.
    """

    indices: Sequence[int]
    place: PicturePlace | None
    first: int = 1
    paths: list[Path] = field(default_factory=list)
    refused: list[OSError] = field(default_factory=list)

    @classmethod
    def to(cls, out: Path, name: str, indices: Sequence[int], *, overwrite: bool) -> "PictureWriter":
        """Checks the place before anything is loaded or drawn. Errors: `InvalidInput`."""
        if out != STANDARD_OUTPUT:
            place = PicturePlace.of(out, name, count=len(indices), overwrite=overwrite)
            return cls(indices=indices, place=place)
        if len(indices) > 1:
            raise InvalidInput("--out", "'-'", "a folder for several pictures", "standard output takes one")
        if sys.stdout.isatty():
            raise InvalidInput("--out", "'-'", "standard output that goes to a file or a program", "this is a terminal")
        return cls(indices=indices, place=None)

    @classmethod
    def to_each(
        cls, out: Path, name: str, indices: Sequence[Sequence[int]], *, overwrite: bool
    ) -> "list[PictureWriter]":
        """One for each of several requests, whose pictures are numbered through. Errors: as `to`."""
        counts = [len(one) for one in indices]
        common = cls.to(out, name, range(sum(counts)), overwrite=overwrite)
        firsts = accumulate(counts, initial=1)
        return [cls(indices=one, place=common.place, first=first) for one, first in zip(indices, firsts, strict=False)]

    def take(self, event: "PictureEvent") -> None:
        """Writes a picture that is finished; in a folder of its own where its place takes no files. Errors: `OSError`
        where that takes none either."""
        from undertow.engine.saving import name_fields, save_picture

        if self.place is None or event.picture not in self.indices:
            return
        report = event.report
        fields = name_fields(report, event.picture) | {"index": self.indices.index(event.picture) + self.first}
        path, error = written_somewhere(
            self.place, fields, lambda path: save_picture(event.image, path, report, event.picture)
        )
        self.paths.append(path)
        if error is not None:
            self.refused.append(error)

    @property
    def in_folder(self) -> bool:
        """Whether names are made for its pictures; otherwise one was typed, or they go to standard output."""
        return self.place is not None and self.place.template is not None

    def require_in_place(self) -> None:
        """Errors: `InvalidInput` where pictures had to be written to another folder than they were meant for."""
        if self.place is not None and self.refused:
            raise not_in_place(self.place, self.paths[-1], self.refused[0])

    def tell(self, result: "GenerationResult", console: Console, told: set[str] | None = None) -> None:
        """Prints where the pictures are, or writes the one to standard output, and what there is to say. told: what was
        said already, to which this is added."""
        told = set() if told is None else told
        report = result.report
        for line in report.debug:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for line in report.decisions:
            if line in told:
                continue
            told.add(line)
            console.print("note:", line, markup=False, highlight=False, soft_wrap=True)
        if self.place is None:
            from undertow.engine.saving import encoded

            (index,) = self.indices
            typer.echo(encoded(result.images[index], Path("-.png"), report, index), nl=False)
        for path in self.paths:
            typer.echo(path)
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
        height, width = report.size
        seeds = [report.request.seeds[index] for index in self.indices]
        seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        how = f"{len(seeds)} of {width}x{height} by {report.sampler}, {seed}: {stages}"
        console.print(how, highlight=False)

    def tell_kept(self, console: Console) -> None:
        """After an interruption or an error: which pictures there are all the same."""
        for path in self.paths:
            typer.echo(path)
        if len(self.indices) > 1 or self.paths:
            kept = kept_in_words(len(self.paths), len(self.indices))
            console.print(kept, markup=False, highlight=False, soft_wrap=True)


def kept_in_words(kept: int, pictures: int) -> str:
    """What is left of an interrupted drawing."""
    together = "; those that share a batch are finished together" if not kept and pictures > 1 else ""
    return f"kept: {kept} of {pictures} pictures{together}"


def written_somewhere(
    place: PicturePlace, fields: Mapping[str, Any], write: Callable[[Path], Any]
) -> tuple[Path, OSError | None]:
    """Writes what was drawn to its place, or where that fails (a full disk, a folder that is gone) to a new folder for
    temporary files: drawing takes long, and must not be lost. Returns the file, and why it is not in place. Errors:
    `OSError` where both fail."""
    try:
        with place.taken(fields) as path:
            write(path)
        return path, None
    except OSError as error:
        with replace(place, folder=Path(mkdtemp(prefix="undertow-"))).taken(fields) as path:
            write(path)
        return path, error


def not_in_place(place: PicturePlace, path: Path, error: OSError) -> InvalidInput:
    """The refusal of a place, when it comes late."""
    reason = error.strerror or str(error)
    return InvalidInput("--out", repr(str(place.folder)), f"a folder that takes files ({reason})", f"kept in {path}")


def suggest(writer: PictureWriter, console: Console, *, terminal: bool = False) -> None:
    """What to try next with the embedded model, below the first pictures in a folder: later ones need no such help.
    terminal: also the package that draws into it."""
    if not writer.paths or {path.name for path in writer.paths[0].parent.iterdir()} > {
        one.name for one in writer.paths
    }:
        return
    for arguments in (
        '"red apple left of dog face on blue background"',
        '"(penguin:1.3) on pink background" --count 4',
        f"--from {shlex.quote(str(writer.paths[0]))} --out again.png",
    ):
        console.print(f"try: undertow generate {arguments}", markup=False, highlight=False, soft_wrap=True)
    if terminal:
        install = "try: pip install 'undertow[terminal]'  # pictures are then drawn into the terminal too"
        console.print(install, markup=False, highlight=False, soft_wrap=True)
