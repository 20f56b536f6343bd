"""Pictures written to files, each as soon as it is there, and what there is to say about them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

    indices: which of its pictures. place: where they go; `None` for standard output, once all is done. model: its name,
    where a picture must not say where it lies on this machine. paths: what was written.
    """

    indices: Sequence[int]
    place: PicturePlace | None
    model: str | None = None
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

    def take(self, event: "PictureEvent") -> None:
        """Writes a picture that is finished. Errors: `OSError`."""
        from undertow.engine.saving import name_fields, save_picture

        if self.place is None or event.picture not in self.indices:
            return
        report = event.report if self.model is None else replace(event.report, model=self.model)
        fields = name_fields(report, event.picture) | {"index": self.indices.index(event.picture) + 1}
        with self.place.taken(fields) as path:
            self.paths.append(save_picture(event.image, path, report, event.picture))

    def tell(self, result: "GenerationResult", console: Console) -> None:
        """Prints where the pictures are, or writes the one to standard output, and what there is to say."""
        report = result.report if self.model is None else replace(result.report, model=self.model)
        for line in report.debug:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for line in report.decisions:
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


def suggest(picture: Path, console: Console) -> None:
    """What to try next with the embedded model."""
    for command, meaning in (
        ('"red apple left of dog face on blue background"', "two emoji, and where they stand"),
        ('"(penguin:1.3) on pink background" --count 4', "a weight on words, four pictures"),
        (f"--from {picture} --out again.png", "the same picture again"),
    ):
        console.print(f"try: undertow generate {command}  # {meaning}", markup=False, highlight=False, soft_wrap=True)
