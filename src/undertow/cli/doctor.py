"""`undertow doctor`: what is wrong with a model, a request, a picture or this machine, and what helps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.drawn_as import load_as_drawn
from undertow.cli.generate_options import AllowPickle, AttentionFor, Device, Prediction, VaePrecision
from undertow.cli.model_loading import LoadingOptions, Precision
from undertow.cli.model_option import DEFAULT_MODEL, MODEL_HELP, complete_model, find_model
from undertow.cli.named_files import require_files
from undertow.cli.notes import Notes
from undertow.cli.option_values import named_adapters
from undertow.cli.repeated import bundled_with, model_at_hand
from undertow.cli.request_options import request_of
from undertow.cli.suggested import given_fields, requests_of
from undertow.cli.task import Task
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.engine.metadata import StoredDescription, read_stored
from undertow.engine.named_adapters import with_named
from undertow.engine.request import GenerationRequest
from undertow.errors import DamagedWeights, InvalidInput

if TYPE_CHECKING:
    from undertow.inspection.doctor.finding import Diagnosis

SERIOUS = 1
"""Exit code: something is seriously wrong."""


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help=MODEL_HELP,
            autocompletion=complete_model,
            callback=find_model,
            show_default=f"the picture's, else {DEFAULT_MODEL}",
        ),
    ] = None,
    *,
    prompt: Annotated[
        str | None, typer.Option(help="What is, or would be, drawn.", show_default="the picture's")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What not to draw.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="A picture that undertow drew: its request is looked at, and drawn again byte by byte."),
    ] = None,
    loras: Annotated[
        list[str] | None, typer.Option("--lora", metavar="LORA[@SCALE]", help="Adapter of the request; repeatable.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Size of the picture.", show_default="the model's own")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "-s", help="Sampling steps.", show_default="20; 4 with distilled models")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale.", show_default="5; 1 with distilled models")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampling algorithm.", show_default="the model's own")] = None,
    schedule: Annotated[str | None, typer.Option(help="Grid of noise levels.", show_default="the sampler's")] = None,
    clip_skip: Annotated[
        int | None, typer.Option(min=1, help="Layer of the text encoder, from the end.", show_default="as trained")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Type of the U-Net and the text encoders.", show_default="the file's")
    ] = None,
    vae_precision: VaePrecision = None,
    prediction: Prediction = None,
    attention: AttentionFor = None,
    device: Device = None,
    allow_pickle: AllowPickle = False,
    only: Annotated[
        str | None,
        typer.Option(help="Comma list of rules, or of nan, picture, slow, memory, provenance.", show_default="all"),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a preset with what helps into undertow.toml, and look again with it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Measure what is wrong: NaN, poor pictures, slow ones, too little memory, pictures that cannot be repeated.

    Every finding has its symptom, evidence in numbers, cause, fix and prevention. The exit code is 1 when something is
    seriously wrong.
    """
    options = {
        "negative": negative,
        "loras": loras,
        "size": size,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "schedule": schedule,
        "clip_skip": clip_skip,
    }
    typed = {name: value for name, value in options.items() if value is not None}
    notes = Notes()
    stored = _stored(picture)
    source = _model(model, stored, notes)
    task = _task(prompt, typed, stored, source)
    loading = LoadingOptions(
        precision=precision,
        vae_precision=vae_precision,
        prediction=prediction,
        attention=attention,
        device=device,
        allow_pickle=allow_pickle,
    )
    names = [] if only is None else [word.strip() for word in only.split(",") if word.strip()]
    require_files(task.request, source)
    console = SafeConsole(stderr=True)
    notes.tell(console)
    found = _diagnosis(source, loading, task, picture, names, console)
    _show(found, as_json=as_json)
    if fix:
        found = _fixed(source, loading, task, found, picture, names, console)
    if found.serious:
        raise typer.Exit(SERIOUS)


def _show(found: "Diagnosis", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    from undertow.cli.doctor_text import show_diagnosis

    show_diagnosis(SafeConsole(), found)


def _stored(picture: Path | None) -> StoredDescription | None:
    """What undertow wrote into the picture; nothing in those of other programs, whose pixels are looked at all the
    same. Errors: `InvalidInput` for a file that is not there."""
    if picture is None:
        return None
    try:
        return read_stored(picture)
    except InvalidInput:
        if not picture.is_file():
            raise
        return None


def _model(typed: str | None, stored: StoredDescription | None, notes: Notes) -> str:
    """The model that is examined: as typed, else the picture's own, as `generate --from` takes it, where it is here."""
    found = model_at_hand(stored.model) if typed is None and stored is not None else None
    if stored is not None and found is not None:
        notes.add(f"the picture names {stored.model}, which is examined")
    return typed or found or DEFAULT_MODEL


def _task(prompt: str | None, typed: dict[str, Any], stored: StoredDescription | None, model: str) -> Task:
    """As typed, over the picture's own. Errors: `InvalidInput` for a picture that names files which are not given."""
    asked = request_of(prompt or "", typed)
    if stored is None:
        return Task(request=asked, indices=range(asked.count), given=given_fields(typed))
    fields = {"loras": "adapters", "negative": "negative_prompt", "guidance": "guidance_scale"}
    names = [fields.get(name, name) for name in typed] + ([] if prompt is None else ["prompt"])
    instead = {name: getattr(asked, name) for name in names}
    bundled = bundled_with(model).names()
    if "adapters" in instead:
        instead["adapters"] = with_named(stored.request, named_adapters(typed), bundled).value
    return _decided(stored.description(instead, bundled).request, stored)


def _decided(request: GenerationRequest, stored: StoredDescription | None = None) -> Task:
    """In which nothing is left to the model. stored: what a picture says, by which the model is loaded."""
    task = Task(request=request, indices=range(request.count))
    return task if stored is None else replace(task, model_hash=stored.model_hash, computing=stored.computing)


def _diagnosis(
    model: str,
    loading: LoadingOptions,
    task: Task,
    picture: Path | None,
    names: list[str],
    console: SafeConsole,
) -> "Diagnosis":
    notes = Notes()
    with waiting(console, f"loading {model}"):
        from undertow.inspection.doctor.catalogue import rules_named
        from undertow.inspection.doctor.diagnose import diagnose_damage

        rules_named(names)
        try:
            service = load_as_drawn(loading, task, model, notes)
        except DamagedWeights as error:
            return diagnose_damage(error, model, names)
    (request,) = requests_of([task], service, notes)
    notes.tell(console)
    with waiting(console, "measuring"):
        return service.diagnose(request, picture=picture, only=names)


def _fixed(
    model: str,
    loading: LoadingOptions,
    task: Task,
    found: "Diagnosis",
    picture: Path | None,
    names: list[str],
    console: SafeConsole,
) -> "Diagnosis":
    """Writes the preset, and diagnoses what it makes."""
    from undertow.cli.doctor_fix import loaded_as, preset_of, write_preset

    settings = preset_of(found)
    if not settings:
        console.print("nothing of this can be applied by itself", highlight=False)
        return found
    path, name = write_preset(model, settings)
    console.print(f"wrote [presets.{name}] into {path}: {', '.join(settings)}", markup=False, soft_wrap=True)
    console.print(f"draw with: undertow generate PROMPT --model {model} --preset {name}", markup=False, soft_wrap=True)
    cured = replace(_decided(found.cured_request()), model_hash=task.model_hash, computing=task.computing)
    again = _diagnosis(model, loaded_as(loading, found), cured, picture, names, console)
    gone = [one.rule for one in found.findings if one.rule not in {other.rule for other in again.findings}]
    left = [one.rule for one in again.findings]
    console.print(f"with it gone: {', '.join(gone) or 'nothing'}; left: {', '.join(left) or 'nothing'}", soft_wrap=True)
    return again
