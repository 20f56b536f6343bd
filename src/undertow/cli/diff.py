"""`undertow diff`: two runs that should agree, and the first module in which they do not."""

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undertow.cli.figures import require_figure
from undertow.cli.model_loading import LoadingOptions, Precision
from undertow.cli.model_option import complete_model, find_model
from undertow.cli.named_files import model_place, require_adapters, require_model
from undertow.cli.option_values import parse_loras
from undertow.cli.seeds import parse_seed
from undertow.cli.terminal import SafeConsole
from undertow.cli.waiting import waiting
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.pictures.names import require_folder

if TYPE_CHECKING:
    from undertow.adapters.adapter import Adapter
    from undertow.inspection.bundle import Bundle, Replay
    from undertow.inspection.departure import Comparison
    from undertow.inspection.departure_runs import Drawing
    from undertow.inspection.diffusers_tree import DiffusersTree
    from undertow.service import UNetService

DEPARTED = 3
"""Exit code: they do not agree; or a departure is not reproduced."""

PROMPT = "red apple on white background"


class Backend(StrEnum):
    eager = "eager"
    compile = "compile"


class Against(StrEnum):
    diffusers = "diffusers"


of_a = partial(typer.Option, rich_help_panel="How A computes")
of_b = partial(typer.Option, rich_help_panel="How B computes")
found_in = partial(typer.Option, rich_help_panel="What is said")

Source = Annotated[
    str | None,
    typer.Argument(
        help="A model; see `undertow generate --model`.", autocompletion=complete_model, callback=find_model
    ),
]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two, as it was typed."""

    source: str
    loading: LoadingOptions
    backend: Backend
    adapters: "tuple[Adapter, ...]"

    @property
    def title(self) -> str:
        loading = self.loading
        words = [
            loading.precision,
            loading.attention,
            None if self.backend is Backend.eager else self.backend,
            loading.device,
        ]
        said = [str(word) for word in words if word is not None] + [one.title for one in self.adapters]
        return f"{self.source} ({', '.join(said)})" if said else self.source

    def load(self) -> "UNetService":
        """Imports torch."""
        return self.loading.load(self.source, self.backend.value)

    def to_json(self, computes: str) -> dict[str, Any]:
        return {
            "source": self.source,
            "precision": self.loading.precision,
            "attention": self.loading.attention,
            "device": self.loading.device,
            "backend": self.backend,
            "adapters": [f"{one.source}@{','.join(f'{scale:g}' for scale in one.scales)}" for one in self.adapters],
            "computes": computes,
        }


def diff(
    a: Source = None,
    b: Source = None,
    against: Annotated[
        Against | None,
        typer.Option(help="In place of B: this library's U-Net over the same folder; it must be installed."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Folder of a bundle: whether its departure is there on this machine.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Of the picture that both draw.")] = PROMPT,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="To draw it in.")] = 4,
    guidance: Annotated[float, typer.Option(help="1 is off.")] = 5.0,
    seed: Annotated[str, typer.Option(help="Of its noise, or random.")] = "0",
    sampler: Annotated[str | None, typer.Option(help="See `undertow samplers`.", show_default="the model's")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="the model's own")] = None,
    precision_a: Annotated[
        Precision | None, of_a(help="Type of the U-Net and the text encoders.", show_default="the file's")
    ] = None,
    attention_a: Annotated[
        str | None, of_a(help="Attention kernel by its name, or speed, memory or balanced.", show_default="speed")
    ] = None,
    backend_a: Annotated[
        Backend, of_a(help="Of a compiled graph the whole is compared, not the modules in it.")
    ] = Backend.eager,
    device_a: Annotated[
        str | None, of_a(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu")
    ] = None,
    loras_a: Annotated[list[str] | None, of_a("--lora-a", help="LORA[@SCALE]; repeatable.")] = None,
    precision_b: Annotated[
        Precision | None, of_b(help="Type of the U-Net and the text encoders.", show_default="the file's")
    ] = None,
    attention_b: Annotated[
        str | None, of_b(help="Attention kernel by its name, or speed, memory or balanced.", show_default="speed")
    ] = None,
    backend_b: Annotated[
        Backend, of_b(help="Of a compiled graph the whole is compared, not the modules in it.")
    ] = Backend.eager,
    device_b: Annotated[
        str | None, of_b(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu")
    ] = None,
    loras_b: Annotated[list[str] | None, of_b("--lora-b", help="LORA[@SCALE]; repeatable.")] = None,
    modules: Annotated[
        list[str] | None,
        found_in("--modules", help="Only modules of such names, as 'unet.mid_block*'; repeatable.", show_default="all"),
    ] = None,
    tolerance: Annotated[
        float | None, found_in(help="Relative error of one module that counts as equal.", show_default="by type")
    ] = None,
    alone: Annotated[
        bool, found_in("--alone/--no-alone", help="B also draws by itself, to show how the departure grows.")
    ] = True,
    top: Annotated[int, found_in(min=0, help="Modules to list, those that depart most by themselves.")] = 5,
    figure: Annotated[
        Path | None, found_in(help="Draw growth over layers and steps into this .png, .svg or .pdf.")
    ] = None,
    bundle: Annotated[
        Path | None, found_in(help="Folder to write the departure into, so that it can be replayed elsewhere.")
    ] = None,
    overwrite: Annotated[bool, found_in("--overwrite", help="Replace a --figure or --bundle that exists.")] = False,
    as_json: Annotated[bool, found_in("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Find the first module in which two runs differ that should agree.

    Two types, attention kernels, backends, adapters, versions of a checkpoint, or undertow and diffusers. A draws; in
    each step B's network receives what A's received. Exit code 0: they agree; 3: they do not."""
    settings: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    settings |= {} if size is None else {"size": _size(size)}
    request = GenerationRequest(
        prompt=prompt,
        negative_prompt=negative,
        steps=steps,
        guidance_scale=guidance,
        seed=parse_seed(seed),
        **settings,
    )
    loadings = (
        LoadingOptions(precision=precision_a, attention=attention_a, device=device_a),
        LoadingOptions(precision=precision_b, attention=attention_b, device=device_b),
    )
    if replay is not None:
        _replay(replay, a, b, as_json=as_json)
        return
    if a is None or (b is None) == (against is None):
        raise InvalidInput("B", repr(b), "two models, or one and --against diffusers", "undertow diff A B")
    side_a = Side(source=a, loading=loadings[0], backend=backend_a, adapters=parse_loras(loras_a, {}))
    side_b = Side(source=b or a, loading=loadings[1], backend=backend_b, adapters=parse_loras(loras_b, {}))
    if against is not None and (loras_b or backend_b != Backend.eager or attention_b or device_b):
        raise InvalidInput(
            "--against", against, "none of --lora-b, --backend-b, --attention-b and --device-b beside it"
        )
    for side in (side_a, side_b):
        require_model(side.source)
        require_adapters(side.adapters, model_place(side.source))
    if figure is not None:
        require_figure("--figure", figure, [side_a.source, side_b.source], overwrite=overwrite)
    if bundle is not None:
        require_folder(bundle, "--bundle")
        if not overwrite and bundle.exists() and any(bundle.iterdir()):
            raise InvalidInput("--bundle", bundle, "a folder that is not there yet, or empty", "or add --overwrite")

    from undertow.inspection.diff import EVERYTHING, compare

    console = SafeConsole(stderr=True)
    with waiting(console, f"loading {side_a.source} and {side_b.source}"):
        drawing = side_a.load()
        other: UNetService | DiffusersTree = _tree(side_b) if against is not None else side_b.load()
    titles = side_a.title, str(against) if against is not None else side_b.title
    with waiting(console, "comparing"):
        found, caught = compare(
            drawing,
            other,
            replace(request, adapters=side_a.adapters),
            adapters_b=side_b.adapters,
            tolerance=tolerance,
            modules=tuple(modules or EVERYTHING),
            names=titles if titles[0] != titles[1] else (f"A, {titles[0]},", f"B, {titles[1]}"),
            alone=alone,
        )
    if figure is not None:
        from undertow.inspection.departure_figure import save_departure_figure

        save_departure_figure(found, tuple(f"unet.{name}" for name in drawing.config.layer_names()), figure)
    if bundle is not None and caught is not None:
        from undertow.inspection.bundle import write_bundle

        sides = {"a": side_a.to_json(_computes(drawing)), "b": side_b.to_json(_computes(other))}
        write_bundle(bundle, found, caught, replace(request, adapters=side_a.adapters), sides)
    _print(found, top, as_json=as_json)
    if not as_json:
        written = [place for place in (figure, bundle if caught is not None else None) if place is not None]
        for place in written:
            typer.echo(f"wrote {place}")
    if not found.agree:
        raise typer.Exit(DEPARTED)


def _size(text: str) -> tuple[int, int]:
    from undertow.cli.sizes import parse_size

    return parse_size(text)


def _tree(side: Side) -> "DiffusersTree":
    from undertow.cli.model_loading import dtype_of
    from undertow.embedded import located
    from undertow.inspection.diffusers_tree import load_diffusers_unet

    return load_diffusers_unet(located(side.source), dtype_of(side.loading.precision, side.source))


def _computes(side: "Drawing | DiffusersTree") -> str:
    from undertow.inspection.departure_runs import described
    from undertow.inspection.diffusers_tree import DiffusersTree

    return "diffusers" if isinstance(side, DiffusersTree) else described(side)


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
    models = () if bundle.is_self_contained and a is None else _models(bundle, a, b)
    found: Replay = replay(bundle, *models)
    said = {"reproduced": found.reproduced, "module": found.module, "now": found.now, "then": found.then}
    typer.echo(json.dumps(said, indent=2) if as_json else found.sentence())
    if not found.reproduced:
        raise typer.Exit(DEPARTED)


def _models(bundle: "Bundle", a: str | None, b: str | None) -> "tuple[UNetService, UNetService]":
    """Both models, as the bundle names them or as they were typed. Errors: `InvalidInput` for diffusers."""
    loaded: list[UNetService] = []
    for which, typed in (("a", a), ("b", b)):
        side = bundle.side(which)
        if side.get("computes") == "diffusers":
            raise InvalidInput("--replay", bundle.folder, "a bundle of two models", "compare with diffusers again")
        precision = side.get("precision")
        loading = LoadingOptions(
            precision=None if precision is None else Precision(precision),
            attention=side.get("attention"),
            device=side.get("device"),
        )
        source = str(side["source"]) if typed is None else typed
        require_model(source)
        loaded.append(loading.load(source))
    return loaded[0], loaded[1]
