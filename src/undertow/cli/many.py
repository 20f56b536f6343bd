"""Pictures of many requests: from a file of prompts, and with choices made anew for each picture."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from undertow.cli.notes import Notes
from undertow.cli.prompt_lines import tasks_of_file
from undertow.cli.repeated import repeated_task
from undertow.cli.seeds import parse_seed, random_seed
from undertow.cli.task import Task, new_task
from undertow.cli.watching import watching
from undertow.cli.wildcards import Wildcards, has_choices
from undertow.cli.written_pictures import PictureWriter, kept_in_words
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.engine.events import PictureEvent, StepEvent
    from undertow.engine.result import GenerationResult
    from undertow.service import UNetService

TOGETHER = 8
"""Pictures that are drawn at once; the next ones begin when these are done."""


def tasks_of(
    typed: Mapping[str, Any],
    repeat: Path | None,
    prompts: Path | None,
    wildcards: Wildcards | None,
    notes: Notes,
    *,
    model: str | None = None,
    refiner: str | None = None,
) -> list[Task]:
    """What is to be drawn: a prompt, a picture again, or the lines of a file, with choices made where wildcards are
    asked for. typed: the options of a request, and the prompt. Errors: `InvalidInput`."""
    if prompts is not None:
        for name, given in (("a prompt", typed.get("prompt")), ("--from", repeat)):
            if given is not None:
                problem = f"given beside {name}"
                raise InvalidInput("--prompts", problem, "one of the two", "write the prompt into the file")
        tasks = tasks_of_file(prompts, typed)
    elif repeat is not None:
        tasks = [repeated_task(repeat, typed, notes, model, refiner)]
    else:
        tasks = [new_task(typed.get("prompt"), typed)]
    texts = [text for one in tasks for text in (one.request.prompt, one.request.negative_prompt)]
    if wildcards is None:
        if any(map(has_choices, texts)):
            notes.add("{...|...} and __name__ are text; --wildcards FOLDER or --wildcard-seed random chooses")
        return tasks
    if any(map(has_choices, texts)):
        notes.add(f"the choices have --wildcard-seed {wildcards.seed}")
    else:
        idle = {"--wildcards": wildcards.folder is not None, "--wildcard-seed": wildcards.folder is None}
        notes.add_idle(idle, "without {...|...} or __name__ in a prompt")
    return _chosen(tasks, wildcards)


def wildcards_of(folder: Path | None, seed: str | None) -> Wildcards | None:
    """None where neither option is typed. Errors: `InvalidInput`."""
    if folder is None and seed is None:
        return None
    return Wildcards(folder=folder, seed=random_seed() if seed is None else parse_seed(seed, "--wildcard-seed"))


def _chosen(tasks: Sequence[Task], wildcards: Wildcards) -> list[Task]:
    """A task for each picture, since each has a prompt of its own."""
    found: list[Task] = []
    for task in tasks:
        for index in task.indices:
            found.append(replace(task, request=_picture(task.request, index, len(found), wildcards), indices=range(1)))
    return found


def _picture(request: GenerationRequest, index: int, number: int, wildcards: Wildcards) -> GenerationRequest:
    """Picture `index` of a request as a request of its own, with choices for the `number`-th of all pictures."""
    variation = None if request.variation_seed is None else request.variation_seed + index
    return replace(
        request,
        prompt=wildcards.chosen(request.prompt, number),
        negative_prompt=wildcards.chosen(request.negative_prompt, number, of="negative prompt"),
        seed=request.seeds[index],
        count=1,
        variation_seed=variation,
    )


def draw(
    service: "UNetService",
    requests: Sequence[GenerationRequest],
    writers: Sequence[PictureWriter],
    console: Console,
    preview: Path | None = None,
    **how: Any,
) -> "list[GenerationResult]":
    """Draws one request, or many. preview: where the newest estimate of the first picture of one is kept. Errors: those
    of `UNetService.generate_many`; what was written by then is told."""
    if len(requests) > 1:
        return _draw_many(service, requests, writers, console, **how)
    (request,), (writer,) = requests, writers
    try:
        with watching(console, request.count, preview) as observe:
            result = service.run(request, observe=observe, drawn=writer.take, **how)
    except BaseException:  # interrupted, or failed at a later picture
        writer.tell_kept(console)
        raise
    writer.tell(result, console)
    return [result]


def _draw_many(
    service: "UNetService",
    requests: Sequence[GenerationRequest],
    writers: Sequence[PictureWriter],
    console: Console,
    **how: Any,
) -> "list[GenerationResult]":
    """A few at a time; every picture is written as soon as it is there, and what there is to say is said once."""
    results: list[GenerationResult] = []
    told: set[str] = set()
    try:
        for start, stop in _groups(requests):
            some, files = requests[start:stop], writers[start:stop]
            with watching(console, sum(request.count for request in some)) as observe:
                firsts = [sum(request.count for request in some[:place]) for place in range(len(some))]

                def step(event: "StepEvent", observe: Any = observe, firsts: Sequence[int] = firsts) -> None:
                    observe(replace(event, picture=firsts[event.request] + event.picture))

                def drawn(event: "PictureEvent", files: Sequence[PictureWriter] = files) -> None:
                    files[event.request].take(event)

                found = service.generate_many(some, observe=step, drawn=drawn, **how)
            for writer, result in zip(files, found, strict=True):
                writer.tell(result, console, told=told)
            results += found
    except BaseException:
        kept = sum(len(writer.paths) for writer in writers)
        every = sum(len(writer.indices) for writer in writers)
        console.print(kept_in_words(kept, every), markup=False, highlight=False, soft_wrap=True)
        raise
    return results


def _groups(requests: Sequence[GenerationRequest]) -> list[tuple[int, int]]:
    """Where each group of neighbors begins and ends, with `TOGETHER` pictures at most or one request."""
    bounds = [0]
    pictures = 0
    for place, request in enumerate(requests):
        if pictures and pictures + request.count > TOGETHER:
            bounds.append(place)
            pictures = 0
        pictures += request.count
    return list(zip(bounds, [*bounds[1:], len(requests)], strict=True))
