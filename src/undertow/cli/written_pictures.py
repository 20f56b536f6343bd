"""Pictures written to files, each as soon as it is there, and what there is to say about them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from undertow.errors import InvalidInput
from undertow.picture_names import PicturePlace

if TYPE_CHECKING:
    from undertow.engine.events import PictureEvent
    from undertow.engine.result import GenerationResult

OVERWRITE_HELP = "Replace a file that exists, in place of a new name."

STANDARD_OUTPUT = Path("-")


@dataclass(kw_only=True)
class PictureWriter:
    """Writes pictures of a request as they come.

    indices: which of its pictures. place: where they go; `None` for standard output, once all is done. first: the
    number of the first of them, from 1. paths: what was written.
    """

    indices: Sequence[int]
    place: PicturePlace | None
    first: int = 1
    paths: list[Path] = field(default_factory=list)

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
        """Writes a picture that is finished. Errors: `OSError`."""
        from undertow.engine.saving import name_fields, save_picture

        if self.place is None or event.picture not in self.indices:
            return
        report = event.report
        fields = name_fields(report, event.picture) | {"index": self.indices.index(event.picture) + self.first}
        with self.place.taken(fields) as path:
            self.paths.append(save_picture(event.image, path, report, event.picture))

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
            kept = f"kept: {len(self.paths)} of {len(self.indices)} pictures"
            console.print(kept, markup=False, highlight=False, soft_wrap=True)


def suggest(picture: Path, console: Console, *, terminal: bool = False) -> None:
    """What to try next with the embedded model. terminal: also the package that draws into it."""
    for command, meaning in (
        ('"red apple left of dog face on blue background"', "two emoji, and where they stand"),
        ('"(penguin:1.3) on pink background" --count 4', "a weight on words, four pictures"),
        (f"--from {picture} --out again.png", "the same picture again"),
    ):
        console.print(f"try: undertow generate {command}  # {meaning}", markup=False, highlight=False, soft_wrap=True)
    if terminal:
        install = "try: pip install 'undertow[terminal]'  # pictures are then drawn into the terminal too"
        console.print(install, markup=False, highlight=False, soft_wrap=True)
