"""`undertow diff`: two runs that should agree, and the first module in which they do not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from undertow.cli.diff_options import (
    Alone,
    AsJson,
    AttentionA,
    AttentionB,
    BackendA,
    BackendB,
    BundleFolder,
    DeviceA,
    DeviceB,
    Figure,
    Guidance,
    InPlaceOfB,
    LorasA,
    LorasB,
    Modules,
    Negative,
    Overwrite,
    PrecisionA,
    PrecisionB,
    Prompt,
    ReplayOf,
    Sampler,
    Seed,
    Size,
    Source,
    Steps,
    Tolerance,
    Top,
)
from undertow.cli.diff_sides import Side, models_of
from undertow.cli.figures import require_figure
from undertow.cli.model_loading import Backend, LoadingOptions
from undertow.cli.option_values import parse_loras
from undertow.cli.seeds import parse_seed
from undertow.cli.sizes import parse_size
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.pictures.names import require_folder

if TYPE_CHECKING:
    from undertow.inspection.bundle import Replay
    from undertow.inspection.departure import Comparison

DEPARTED = 3
"""Exit code: they do not agree; or a departure is not reproduced."""

PROMPT = "red apple on white background"


def diff(
    a: Source = None,
    b: Source = None,
    against: InPlaceOfB = None,
    replay: ReplayOf = None,
    prompt: Prompt = PROMPT,
    negative: Negative = "",
    steps: Steps = 4,
    guidance: Guidance = 5.0,
    seed: Seed = "0",
    sampler: Sampler = None,
    size: Size = None,
    precision_a: PrecisionA = None,
    attention_a: AttentionA = None,
    backend_a: BackendA = Backend.eager,
    device_a: DeviceA = None,
    loras_a: LorasA = None,
    precision_b: PrecisionB = None,
    attention_b: AttentionB = None,
    backend_b: BackendB = Backend.eager,
    device_b: DeviceB = None,
    loras_b: LorasB = None,
    modules: Modules = None,
    tolerance: Tolerance = None,
    alone: Alone = True,
    top: Top = 5,
    figure: Figure = None,
    bundle: BundleFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find the first module in which two runs differ that should agree.

    Two types, attention kernels, backends, adapters, versions of a checkpoint, or undertow and diffusers. A draws; in
    each step B's network receives what A's received. Exit code 0: they agree; 3: they do not."""
    settings: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    settings |= {} if size is None else {"size": parse_size(size)}
    request = GenerationRequest(
        prompt=prompt,
        negative_prompt=negative,
        steps=steps,
        guidance_scale=guidance,
        seed=parse_seed(seed),
        **settings,
    )
    how_a = LoadingOptions(precision=precision_a, attention=attention_a, device=device_a, backend=backend_a)
    how_b = LoadingOptions(precision=precision_b, attention=attention_b, device=device_b, backend=backend_b)
    if replay is not None:
        _replay(replay, a, b, as_json=as_json)
        return
    if a is None or (b is None) == (against is None):
        raise InvalidInput("B", repr(b), "two models, or one and --against diffusers", "undertow diff A B")
    if tolerance is not None:
        from undertow.inspection.departure import require_tolerance

        require_tolerance(tolerance, "--tolerance")
    sides = (
        Side(source=a, loading=how_a, adapters=parse_loras(loras_a, {})),
        Side(source=b or a, loading=how_b, adapters=parse_loras(loras_b, {}), against=against),
    )
    for side in sides:
        side.require()
    places = _Places(figure=figure, bundle=bundle)
    places.require([side.source for side in sides], overwrite=overwrite)
    found, written = _compared(sides, request, places, tolerance=tolerance, modules=modules, alone=alone)
    _print(found, top, as_json=as_json)
    for place in () if as_json else written:
        typer.echo(f"wrote {place}")
    if not found.agree:
        raise typer.Exit(DEPARTED)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """What is written: the growth as a picture, and the departure."""

    figure: Path | None
    bundle: Path | None

    def require(self, sources: Sequence[str], *, overwrite: bool) -> None:
        """Errors: `InvalidInput` for what must not be, or cannot be, written to."""
        if self.figure is not None:
            require_figure("--figure", self.figure, list(sources), overwrite=overwrite)
        if self.bundle is not None:
            require_folder(self.bundle, "--bundle")
            if not overwrite and self.bundle.exists() and any(self.bundle.iterdir()):
                expected = "a folder that is not there yet, or empty"
                raise InvalidInput("--bundle", self.bundle, expected, "or add --overwrite")


def _compared(
    sides: tuple[Side, Side],
    request: GenerationRequest,
    places: _Places,
    *,
    tolerance: float | None,
    modules: Sequence[str] | None,
    alone: bool,
) -> "tuple[Comparison, list[Path]]":
    """What was found, and the files that were written of it."""
    from undertow.inspection.diff import EVERYTHING, compare

    a, b = sides
    console = SafeConsole(stderr=True)
    with waiting(console, f"loading {a.source} and {b.source}"):
        drawing, other = a.load_service(), b.load()
    request = replace(request, adapters=a.adapters)
    with waiting(console, "comparing"):
        found, caught = compare(
            drawing,
            other,
            request,
            adapters_b=b.adapters,
            tolerance=tolerance,
            modules=tuple(modules or EVERYTHING),
            names=(a.title, b.title) if a.title != b.title else (f"A, {a.title},", f"B, {b.title}"),
            alone=alone,
        )
    written: list[Path] = []
    if places.figure is not None:
        from undertow.inspection.departure_figure import save_departure_figure

        save_departure_figure(found, tuple(f"unet.{name}" for name in drawing.config.layer_names()), places.figure)
        written.append(places.figure)
    if places.bundle is not None and caught is not None:
        from undertow.inspection.bundle import write_bundle

        write_bundle(places.bundle, found, caught, request, {"a": a.to_json(drawing), "b": b.to_json(other)})
        written.append(places.bundle)
    return found, written


def _print(found: "Comparison", top: int, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    typer.echo(found.verdict())
    rows = found.top(top)
    width = max((len(name) for name, _, _ in rows), default=0)
    if rows:
        typer.echo(f"\n{'departs by itself':{width}}  {'own':>9}  {'grown':>9}")
    for name, own, grown in rows:
        typer.echo(f"{name:{width}}  {own:9.2g}  {grown:9.2g}")
    if found.free:
        typer.echo(
            f"\nB alone: its picture departs by {found.free[0]:.2g} after 1 step, {found.free[-1]:.2g} at the end"
        )
    for note in found.notes:
        typer.echo(f"- {note}")


def _replay(folder: Path, a: str | None, b: str | None, *, as_json: bool) -> None:
    from undertow.inspection.bundle import read_bundle, replay

    bundle = read_bundle(folder)
    models = () if bundle.is_self_contained and a is None else models_of(bundle, a, b)
    found: Replay = replay(bundle, *models)
    said = {"reproduced": found.reproduced, "module": found.module, "now": found.now, "then": found.then}
    typer.echo(json.dumps(said, indent=2) if as_json else found.sentence())
    if not found.reproduced:
        raise typer.Exit(DEPARTED)
