"""`undertow adapters`: what several adapters are to each other and to a model, before anything is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from undertow.adapters.adapter import Adapter
from undertow.adapters.stack import DENSITY, AdapterStack, StrategyName
from undertow.cli.figures import require_figure
from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.named_files import model_place, require_adapters
from undertow.cli.option_values import numbers_by_name, parse_adapters
from undertow.cli.preset_model import manager_of_preset
from undertow.cli.terminal import SafeConsole
from undertow.errors import InvalidInput
from undertow.memory.units import parse_bytes

PROMPT = "red apple on white background"

adapters = typer.Typer(help="Look at adapters beside each other.", no_args_is_help=True)

Files = Annotated[
    list[str], typer.Argument(help="FILE[@SCALE][=PICTURE]: LoRA and its kin, ControlNet, T2I-Adapter, IP-Adapter.")
]


@adapters.command("explain")
def explain(
    files: Files,
    model: Model = DEFAULT_MODEL,
    strategy: Annotated[
        StrategyName,
        typer.Option(help="What becomes of layers that several LoRAs change; see docs/guides/adapters.md."),
    ] = "sum",
    priorities: Annotated[
        list[str] | None,
        typer.Option("--priority", help="NAME=NUMBER, higher first; else the order given counts; repeatable."),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weight", help="NAME=NUMBER for --strategy weighted; repeatable.")
    ] = None,
    density: Annotated[float | None, typer.Option(help="Share of each change that --strategy ties keeps.")] = None,
    budget: Annotated[str | None, typer.Option(help="Memory that all adapters may take together: 64MB, 16MiB.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG to write: size of each adapter's changes by block, and how alike they are.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a --figure that exists.")] = False,
) -> None:
    """Show what adapters are in a model, where they are in each other's way, and what would be done about it."""
    if figure is not None:
        files_named = [model, *(str(adapter.source) for adapter in parse_adapters(files, None))]
        require_figure("--figure", figure, files_named, overwrite=overwrite)
    stack = AdapterStack(
        _prioritised(parse_adapters(files, None), priorities),
        strategy=strategy,
        weights=numbers_by_name("--weight", weights) if weights else None,
        density=DENSITY if density is None else density,
        budget_bytes=None if budget is None else parse_bytes("--budget", budget),
    )
    require_adapters(stack.adapters, model_place(model))
    from undertow.adapters.lora.kind import LoraKind
    from undertow.adapters.stacking.decisions import decide
    from undertow.cli.adapter_tables import print_explanation
    from undertow.inspection.conflict_figure import pairwise_cosines, relative_sizes, save_figure
    from undertow.loading import load
    from undertow.unet.presets import PRESETS

    if model in PRESETS and figure is not None:
        remedy = "name a model: sizes are compared with its weights"
        raise InvalidInput("--figure", figure, "none with an architecture alone", remedy)
    manager = manager_of_preset(model) if model in PRESETS else load(model).adapters
    summaries = manager.summarize(tuple(stack))
    decisions = decide(stack, summaries)
    held = {summary.name: manager.read(summary.adapter.source) for summary in summaries if not summary.problem}
    console = SafeConsole()
    print_explanation(console, f"{model} ({manager.kind(LoraKind).targets.family})", summaries, held, decisions)
    if figure is not None:
        sizes, cosines = relative_sizes(summaries, manager.unet), pairwise_cosines(summaries, manager.unet)
        save_figure(sizes, cosines, figure, f"{' and '.join(stack.names)} in {model}")
        console.print(f"wrote {figure}", markup=False, highlight=False, soft_wrap=True)


@adapters.command("impact")
def impact(
    files: Files,
    model: Model = DEFAULT_MODEL,
    prompt: Annotated[str, typer.Option(help="Of the picture to measure with.")] = PROMPT,
    steps: Annotated[int, typer.Option(help="To draw it in.")] = 12,
    seed: Annotated[int, typer.Option(help="Of its noise.")] = 0,
    layers: Annotated[int, typer.Option(help="Layers to list of each adapter, those that change most.")] = 3,
    repeats: Annotated[int, typer.Option(help="Timed evaluations of each kind; 0 times nothing.")] = 7,
) -> None:
    """Measure how much adapters change a model's predictions, where, and what time they take.

    The model draws a picture without them and is asked about it under three levels of noise, with each and with all.
    """
    stack = AdapterStack(parse_adapters(files, None))
    require_adapters(stack.adapters, model_place(model), with_pictures=True)
    from undertow.cli.adapter_tables import print_impacts
    from undertow.engine.request import GenerationRequest
    from undertow.inspection.impact import measure_impact, measure_overhead
    from undertow.inspection.noisy_picture import NoisyPicture
    from undertow.loading import load

    service = load(model)
    probe = NoisyPicture.draw(service.model, service.adapters, GenerationRequest(prompt=prompt, steps=steps, seed=seed))
    groups = [[one] for one in stack] + ([list(stack)] if len(stack) > 1 else [])
    impacts = [measure_impact(probe, group) for group in groups]
    overheads = [measure_overhead(probe, group, repeats) for group in groups] if repeats > 0 else []
    print_impacts(SafeConsole(), impacts, overheads, layers)


def _prioritised(given: Sequence[Adapter], priorities: Sequence[str] | None) -> tuple[Adapter, ...]:
    wanted = numbers_by_name("--priority", priorities)
    known = [one.title for one in given]
    for name, number in wanted.items():
        if name not in known:
            raise InvalidInput("--priority", repr(name), f"a name of the adapters: {', '.join(known)}")
        if number != int(number):
            raise InvalidInput("--priority", f"{name}={number:g}", "a whole number")
    return tuple(replace(one, priority=int(wanted.get(one.title, 0))) for one in given)
