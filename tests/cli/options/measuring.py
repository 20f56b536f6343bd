"""Where the options of `undertow evaluate emoji` and `undertow adapters` arrive."""

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.cli.options.arrival import Boundary, Command, case
from undertow import Adapter
from undertow.adapters.stacking.decisions import Decisions
from undertow.engine.request import GenerationRequest
from undertow.inspection.impact import Impact, Overhead
from undertow.training.emoji.draw import DrawSettings
from undertow.training.emoji.evaluate import Draw, Kind, Measured, Shares
from undertow.training.emoji.recognize import Recognized

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
KIND = Kind(name="one kind", scenes=(), least_right=0.5, least_color=0.5)


def evaluating(at: Boundary) -> None:
    text = SimpleNamespace(encoders=("text",))
    service = SimpleNamespace(model=SimpleNamespace(require_text=lambda: text), unet="unet", vae="vae")
    at.patch.setattr("undertow.service.embedded_models", lambda: {"emoji": Path("embedded")})
    at.stand_in("undertow.service.load", service)
    at.stand_in("undertow.training.emoji.evaluate.kinds", (KIND,))
    at.stand_in("undertow.training.emoji.evaluate.read_shares", peer)
    at.patch.setattr("undertow.training.emoji.evaluate.measure", measuring)
    at.patch.setattr("undertow.training.emoji.text_to_image.TextToImage", lambda text, unet: (text, unet))
    at.patch.setattr("undertow.training.emoji.render.Glyphs", glyphs(at))
    at.patch.setattr("undertow.training.emoji.sheets.sheet_scenes", lambda: ())
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    at.stand_in("undertow.training.emoji.draw.draw", pixels,
                unnoted=("model", "vae", "captions", "seeds", "on_pictures"))  # fmt: skip
    at.patch.setattr("undertow.training.emoji.autoencoder.scenes_at", lambda *_: pixels)
    at.patch.setattr("undertow.training.emoji.autoencoder.psnr", lambda *_: 30.0)
    at.patch.setattr("torch.set_num_threads", lambda count: at.arrived.update(threads=count))
    at.patch.setattr("torch.get_num_threads", lambda: 5)

    def write_page(evaluation: Any, out: Path, *, run: Path | None, card: Path | None) -> Path:
        told = {name: getattr(evaluation, name) for name in ("settings", "machine", "diffusers")}
        at.arrived |= {f"page.{name}": value for name, value in {**told, "out": out, "run": run, "card": card}.items()}
        return out

    at.patch.setattr("undertow.training.emoji.page.write_page", write_page)


def peer(path: Path) -> Shares:
    return Shares(program=str(path), count=500, right=(1.0,), color=(1.0,))


def measuring(kind: Kind, draw: Draw, glyphs: Any) -> Measured:
    """Draws one picture, which shows what it should."""
    pictures, seen = draw(["a caption"], [0]), torch.ones(1, dtype=torch.bool)
    return Measured(kind=kind, pictures=pictures, recognized=Recognized(found=(("apple",),), right=seen, color=seen))


def glyphs(at: Boundary) -> Any:
    """Stands in for the font."""

    def make(font: Path) -> Any:
        at.arrived["font"] = font
        return SimpleNamespace(require=lambda: None)

    return make


def drawn(**other: Any) -> dict[str, Any]:
    """Both what is drawn with and what the page says of it."""
    settings = DrawSettings(**{"steps": 20, "guidance": 4.0} | other)
    return {"draw__settings": settings, "page__settings": settings}


EVALUATE = Command(
    verb=("evaluate", "emoji"),
    boundary=evaluating,
    arrives={
        "load.source": Path("embedded"),
        "load.dtype": torch.float32,
        "load.device": None,
        "load.backend": "eager",
        "load.vae_dtype": None,
        "load.validate_weights": False,
        "load.refiner": None,
        "load.adapter_capacity": None,
        "load.attention": "auto",
        "kinds.count": 500,
        "font": FONT,
        "draw.settings": DrawSettings(steps=20, guidance=4.0, sampler="dpmpp_2m", schedule="karras"),
        "draw.batch_size": 50,
        "page.settings": DrawSettings(steps=20, guidance=4.0, sampler="dpmpp_2m", schedule="karras"),
        "page.machine": f"{platform.machine()}, 5 threads",
        "page.diffusers": None,
        "page.out": Path("docs/results"),
        "page.run": None,
        "page.card": None,
        "files": [],
    },
    cases=(
        case("--model", "mine", load__source=Path("mine")),
        case("--prompts", "7", kinds__count=7),
        case("--guidance", "2.5", **drawn(guidance=2.5)),
        case("--steps", "9", **drawn(steps=9)),
        case("--font", "Noto.ttf", font=Path("Noto.ttf")),
        case("--diffusers", "peer.json", read_shares__path=Path("peer.json"), page__diffusers=peer(Path("peer.json"))),
        case("--run", "runs/mine", page__run=Path("runs/mine")),
        case("--card", page__card=Path("embedded")),
        case("--machine", "a laptop", page__machine="a laptop, 5 threads"),
        case("--threads", "3", threads=3),
        case("--out", "pages", page__out=Path("pages")),
    ),
)

FILES = ("a.safetensors@0.5", "b.safetensors=photo.png")
A, B = Adapter("a.safetensors", scale=0.5), Adapter("b.safetensors", image=("photo.png",))


def explaining(at: Boundary) -> None:
    def summarize(adapters: tuple[Adapter, ...]) -> tuple[()]:
        at.arrived["summarize.adapters"] = adapters
        return ()

    targets = SimpleNamespace(targets=SimpleNamespace(family="SD"))
    manager = SimpleNamespace(summarize=summarize, kind=lambda _: targets)
    at.stand_in("undertow.service.load", SimpleNamespace(adapters=manager, config="the config", unet="the U-Net"))
    decisions = Decisions(kept=(), disabled=(), layers={}, conflicts=(), notes=())
    at.stand_in("undertow.adapters.stacking.decisions.decide", decisions, unnoted=("summaries",), apart=("stack",))
    for found in ("relative_sizes", "pairwise_cosines"):
        at.patch.setattr(f"undertow.inspection.conflict_figure.{found}", lambda *_: None)
    at.stand_in("undertow.inspection.conflict_figure.save_figure", unnoted=("sizes", "cosines"))


LOADED = {
    "load.source": "emoji",
    "load.dtype": None,
    "load.device": None,
    "load.backend": "eager",
    "load.vae_dtype": None,
    "load.validate_weights": False,
    "load.refiner": None,
    "load.adapter_capacity": None,
    "load.attention": "auto",
}
EXPLAIN = Command(
    verb=("adapters", "explain"),
    arguments={"files": FILES},
    boundary=explaining,
    arrives={
        **LOADED,
        "summarize.adapters": (A, B),
        "stack.adapters": (A, B),
        "stack.strategy": "sum",
        "stack.weights": None,
        "stack.density": 0.2,
        "stack.budget_bytes": None,
        "stack.off": frozenset(),
        "files": [],
    },
    cases=(
        case("--model", "mine", load__source="mine"),
        *(
            case("--strategy", name, stack__strategy=name)
            for name in ("normalised", "weighted", "ties", "orthogonal", "priority")
        ),
        case("--priority", "b=2", "--priority", "a=-1", **{
            place: (Adapter("b.safetensors", image=("photo.png",), priority=2),
                    Adapter("a.safetensors", scale=0.5, priority=-1))
            for place in ("summarize__adapters", "stack__adapters")
        }),
        case("--strategy", "weighted", "--weight", "a=0.3", stack__strategy="weighted", stack__weights={"a": 0.3}),
        case("--density", "0.6", stack__density=0.6),
        case("--budget", "1.5", stack__budget_bytes=3 * 2**19),
        case("--figure", "map.png", save_figure__path=Path("map.png"), save_figure__title="a and b in emoji"),
    ),
)  # fmt: skip


def probing(at: Boundary) -> None:
    service = SimpleNamespace(model="the model", adapters="the manager")
    at.stand_in("undertow.service.load", service)

    def probe(model: Any, manager: Any, request: GenerationRequest) -> str:
        at.arrived |= {"probe.model": model, "probe.manager": manager, "probe.request": request}
        return "the probe"

    def impact(probe: str, adapters: list[Adapter]) -> Impact:
        at.arrived.setdefault("impacts of", []).append([one.title for one in adapters])
        return Impact(names=tuple(one.title for one in adapters), prediction=0.5, layers={})

    def overhead(probe: str, adapters: list[Adapter], repeats: int) -> Overhead:
        at.arrived["repeats"] = repeats
        return Overhead(without_s=1.0, with_s=1.0, placing_s=0.0)

    at.patch.setattr("undertow.inspection.probe.Probe", SimpleNamespace(draw=probe))
    at.patch.setattr("undertow.inspection.impact.measure_impact", impact)
    at.patch.setattr("undertow.inspection.impact.measure_overhead", overhead)
    at.stand_in("undertow.cli.adapter_tables.print_impacts", unnoted=("console", "impacts", "overheads"))


def asked(**other: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "red apple on white background", "steps": 12, "seed": 0} | other)


IMPACT = Command(
    verb=("adapters", "impact"),
    arguments={"files": FILES},
    boundary=probing,
    arrives={
        **LOADED,
        "probe.model": "the model",
        "probe.manager": "the manager",
        "probe.request": asked(),
        "impacts of": [["a"], ["b"], ["a", "b"]],
        "repeats": 7,
        "print_impacts.layers": 3,
        "files": [],
    },
    cases=(
        case("--model", "mine", load__source="mine"),
        case("--prompt", "a plum", probe__request=asked(prompt="a plum")),
        case("--steps", "4", probe__request=asked(steps=4)),
        case("--seed", "9", probe__request=asked(seed=9)),
        case("--layers", "2", print_impacts__layers=2),
        case("--repeats", "3", repeats=3),
    ),
)
COMMANDS = (EVALUATE, EXPLAIN, IMPACT)
