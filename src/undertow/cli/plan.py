"""`undertow plan`: whether a picture will fit into memory, what gives way so that it does, and how long it takes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.figures import require_figure
from undertow.cli.model_loading import Precision, Quantized
from undertow.cli.model_option import complete_model, find_model
from undertow.cli.visible import visible
from undertow.errors import InvalidInput
from undertow.known_names import PRECISIONS

if TYPE_CHECKING:
    from undertow.memory.plan import MemoryPlan
    from undertow.memory.subjects import NamedModel
    from undertow.memory.work import Subject, Work

DOES_NOT_FIT = 3
"""Exit code: the answer is no."""

STEPS = 20

SLOTS = 8
"""Where none are asked for, and none are made."""


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A family (sd15, sdxl, ...), an embedded model, a .safetensors file, a folder or a Hub id, of which "
            "only the header is read.",
            autocompletion=complete_model,
            callback=find_model,
        ),
    ],
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="the size the model was trained at")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures that are drawn together.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a picture.", show_default="as generate takes: 20, or 4")
    ] = None,
    guidance: Annotated[
        bool | None,
        typer.Option(
            "--guidance/--no-guidance",
            help="Two rows of each picture, with the prompt and without it, or one.",
            show_default="as generate has it",
        ),
    ] = None,
    lora: Annotated[int, typer.Option(min=0, help="LoRA that act at the same time, of every layer.")] = 0,
    adapter_slots: Annotated[
        int | None, typer.Option(min=1, help="Slots for LoRA of rank 16, in place of merging them.")
    ] = None,
    controlnet: Annotated[int, typer.Option(min=0, help="ControlNets that act at the same time.")] = 0,
    reference: Annotated[int, typer.Option(min=0, help="Reference pictures that an IP-Adapter reads.")] = 0,
    prompt_chunks: Annotated[int, typer.Option(min=1, help="Chunks of 75 tokens that the prompt has.")] = 1,
    budget: Annotated[
        str | None,
        typer.Option(help="Memory of the whole process: 6GB, 512MiB.", show_default="what is free on this machine"),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Type of the U-Net and the text encoders.", show_default="as it is loaded")
    ] = None,
    vae_precision: Annotated[
        Precision | None, typer.Option(help="Type of the autoencoder.", show_default="one that does not overflow")
    ] = None,
    quantize: Annotated[
        Quantized | None,
        typer.Option(help="Weights of linear layers, while the model is loaded.", show_default="as its files"),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where it is drawn.")] = Device.cpu,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also which layers run in which precision, and when they are in memory.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine first, for the seconds; imports torch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw memory by stage into this .png, .svg or .pdf, with the budget.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a --picture that exists.")] = False,
) -> None:
    """Say whether a picture will fit into memory, what gives way so that it does, and how long it takes.

    Nothing is loaded or downloaded. Exit code 0: it fits; 3: it does not, even with everything that can give way."""
    from undertow.memory.machine import this_machine
    from undertow.memory.plan import plan as make_plan
    from undertow.memory.seconds import read_table
    from undertow.memory.subjects import named_model
    from undertow.memory.units import parse_bytes

    budget_bytes = None if budget is None else parse_bytes("--budget", budget)
    if picture is not None:
        require_figure("--picture", picture, [model], overwrite=overwrite)
    named = named_model(model, None if quantize is None else quantize.value)
    suggested = named.suggested
    if guidance is None:
        guidance = suggested.get("guidance_scale") != 1.0
    work = _work(
        named,
        size=size,
        pictures=count,
        steps=int(suggested.get("steps", STEPS)) if steps is None else steps,
        branches=2 if guidance else 1,
        loras=lora,
        **(_learned(named, lora) if adapter_slots is None else {}),
        merged=adapter_slots is None,
        lora_slots=adapter_slots or SLOTS,
        controlnets=controlnet,
        references=reference,
        tokens=77 * prompt_chunks,
        types=_types(named, precision, vae_precision, device),
    )
    machine, available = this_machine().on(str(device)), _budget(budget_bytes, device)
    if measure:
        draft = make_plan(named.subject, work, available, machine=machine)
        _measure(named.subject, (work, *(one.work for one in draft.measures)), device)
    found = make_plan(named.subject, work, available, table=read_table(device), machine=machine)
    _show(found, named.subject, as_json=as_json, given=budget_bytes is not None, layers=layers)
    if picture is not None:
        from undertow.cli.plan_picture import draw_plan

        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_plan(found, make_plan(named.subject, work, machine=machine), picture)
        typer.echo(f"wrote {visible(str(picture))}", err=True)
    if not found.fits:
        raise typer.Exit(DOES_NOT_FIT)


def _learned(named: "NamedModel", loras: int) -> dict[str, Any]:
    """What merged LoRA add to the work whose files nobody has shown: they may change every layer, convolutions
    too, and are taken to be an eighth of the U-Net in float32 each. In slots they have a rank that is known."""
    from undertow.memory.weights import unet_weights

    unet = named.subject.unet
    if not loras or unet is None:
        return {}
    return {"changes_all": True, "adapter_bytes": loras * unet_weights(unet) * 4 // 8}


def _types(named: "NamedModel", precision: Precision | None, vae: Precision | None, device: Device) -> tuple[str, str]:
    """Of the U-Net and of the VAE."""
    from undertow.memory.subjects import computed_types

    asked, vae_asked = (None if one is None else PRECISIONS[one.value] for one in (precision, vae))
    own = named.subject.vae
    overflows = own is not None and own.force_upcast
    return computed_types(named.stored, asked, vae_asked, device=device, overflows=overflows)


def _work(named: "NamedModel", *, size: str | None, types: tuple[str, str], **numbers: Any) -> "Work":
    """Errors: `InvalidInput` for a size that the model cannot draw, and for ControlNets of a model that has none."""
    from undertow.cli.sizes import parse_size
    from undertow.memory.subjects import require_size
    from undertow.memory.work import Work

    subject = named.subject
    assert subject.unet is not None
    own = subject.unet.sample_size * subject.factor
    pixels = (own, own) if size is None else parse_size(size)
    require_size("--size", pixels, subject)
    if numbers["controlnets"] and subject.controlnet is None:
        raise InvalidInput("--controlnet", numbers["controlnets"], f"none: {subject.name} takes no ControlNet")
    references = numbers.pop("references")
    if references and subject.unet.context_dim is None:
        raise InvalidInput("--reference", references, f"none: {subject.name} reads no reference pictures")
    if references:
        numbers |= _seen(subject, references, types[0])
    if subject.unet.context_dim is None:
        numbers["branches"] = 1 if subject.unet.added is None else numbers["branches"]
    return Work(size=pixels, dtype=types[0], vae_dtype=types[1], kept_text=True, **numbers)


def _seen(subject: "Subject", references: int, dtype: str) -> dict[str, int]:
    """What an IP-Adapter Plus, the largest kind, adds to the work."""
    from undertow.memory.weights import REFERENCE_TOKENS, image_prompt_weights
    from undertow.memory.work import ITEM_BYTES, VIT_H

    assert subject.unet is not None
    numbers = image_prompt_weights(subject.unet, VIT_H.width)
    return {
        "references": references,
        "image_tokens": REFERENCE_TOKENS * references,
        "image_prompt_bytes": numbers * ITEM_BYTES[dtype],
    }


def _budget(asked: int | None, device: Device) -> int | None:
    """What was asked for, or what is free on this machine; `None` where nobody tells."""
    from undertow.free_memory import host_free_bytes

    return asked if asked is not None or device is not Device.cpu else host_free_bytes()


def _measure(subject: "Subject", works: "Sequence[Work]", device: Device) -> None:
    """Measures what a plan consists of, with and without its measures, and this machine has no seconds of."""
    from undertow.cli.plan_measure import measure_missing

    measure_missing(subject, works, device)


def _show(found: "MemoryPlan", subject: "Subject", *, as_json: bool, given: bool, layers: bool) -> None:
    from undertow.cli.plan_text import layer_lines, plan_lines
    from undertow.memory.policy import layer_rules

    rules = layer_rules(subject, found.work) if layers else ()
    if as_json:
        more = {"layers": [asdict(rule) for rule in rules]} if layers else {}
        typer.echo(json.dumps({**found.to_json(), **more}, indent=2))
        return
    for line in (*plan_lines(found, given=given), *layer_lines(rules)):
        typer.echo(line)
