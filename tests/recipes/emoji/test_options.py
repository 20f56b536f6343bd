"""Where the options of `python -m recipes.emoji` arrive."""

import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from recipes.emoji.__main__ import VERBS
from recipes.emoji.draw import SETTINGS
from recipes.emoji.editions import CRISP
from recipes.emoji.evaluate import Draw, Kind, Measured, Shares
from recipes.emoji.recipe import CRISP_RECIPE, EmojiRecipe, quick
from recipes.emoji.recognize import Recognized
from recipes.emoji.turbo import TurboRecipe
from tests.cli.options.arrival import LOADED, Boundary, Case, Command, case
from tests.cli.options.checks import (
    cases,
    check_case,
    check_defaults,
    check_every_option_has_a_case,
    check_threads,
    leaves,
)
from undertow.cli.app import Settings, _build
from undertow.engine.direct import SamplingSettings

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
KIND = Kind(name="one kind", scenes=(), least_right=0.5, least_color=0.5)


def evaluating(at: Boundary) -> None:
    def write_page(evaluation: Any, out: Path, *, run: Path | None, card: Path | None) -> Path:
        shown = {name: getattr(evaluation, name) for name in ("settings", "machine", "diffusers")}
        at.arrived |= {f"page.{name}": value for name, value in {**shown, "out": out, "run": run, "card": card}.items()}
        return out

    # First, because this imports the module, which would keep a stand-in for good.
    at.patch.setattr("recipes.emoji.page.write_page", write_page)
    at.patch.setattr("recipes.emoji.page.run_logs", lambda run: {})

    text = SimpleNamespace(encoders=("text",))
    vae = SimpleNamespace(config=SimpleNamespace(sample_size=64))
    service = SimpleNamespace(model=SimpleNamespace(require_text=lambda: text), unet="unet", vae=vae)
    at.patch.setattr("undertow.cli.sample.embedded_models", lambda: {"emoji": Path("embedded")})
    at.stand_in("undertow.loading.load", service)
    at.stand_in("recipes.emoji.evaluate.kinds", (KIND,), unnoted=("mix",))
    at.stand_in("recipes.emoji.evaluate.read_shares", peer)
    at.patch.setattr("recipes.emoji.evaluate.measure", measuring)
    at.patch.setattr("recipes.emoji.text_to_image.TextToImage", lambda text, unet: (text, unet))
    at.patch.setattr("recipes.emoji.render.Glyphs", glyphs(at))
    at.patch.setattr("recipes.emoji.sheets.sheet_scenes", lambda mix: ())
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    at.stand_in("recipes.emoji.draw.draw", pixels,
                unnoted=("model", "vae", "captions", "seeds", "on_pictures"))  # fmt: skip
    at.patch.setattr("recipes.emoji.recipe.held_out", lambda *_: pixels)
    at.patch.setattr("recipes.emoji.autoencoder.psnr", lambda *_: 30.0)
    at.patch.setattr("torch.set_num_threads", lambda count: at.arrived.update(threads=count))
    at.patch.setattr("torch.get_num_threads", lambda: 5)


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
    settings = replace(SETTINGS, **other)
    return {"draw__settings": settings, "page__settings": settings}


EVALUATE = Command(
    verb=("evaluate",),
    verbs=VERBS,
    boundary=evaluating,
    arrives={
        **LOADED,
        "load.source": Path("embedded"),
        "load.dtype": torch.float32,
        "kinds.count": 500,
        "font": FONT,
        "draw.settings": SamplingSettings(steps=20, guidance=4.0, sampler="dpmpp_2m", schedule="karras"),
        "draw.batch_size": 50,
        "page.settings": SamplingSettings(steps=20, guidance=4.0, sampler="dpmpp_2m", schedule="karras"),
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


def training(at: Boundary) -> None:
    at.patch.setattr("torch.set_num_threads", lambda count: at.arrived.update(threads=count))
    at.stand_in("recipes.emoji.recipe.train_emoji", Path("model"), unnoted=("callbacks",))


def with_steps(steps: int) -> EmojiRecipe:
    recipe = EmojiRecipe()
    return replace(recipe, text_to_image=replace(recipe.text_to_image, steps=steps))


TRAIN = Command(
    verb=("train",),
    verbs=VERBS,
    boundary=training,
    arrives={
        "train_emoji.out": Path("runs/emoji"),
        "train_emoji.recipe": EmojiRecipe(),
        "train_emoji.font": FONT,
        "train_emoji.autoencoder": None,
        "files": [],
    },
    cases=(
        case("--out", "mine", train_emoji__out=Path("mine")),
        case("--font", "Noto.ttf", train_emoji__font=Path("Noto.ttf")),
        case("--autoencoder", "trained", train_emoji__autoencoder=Path("trained")),
        case("--quick", train_emoji__recipe=quick(EmojiRecipe())),
        case("--crisp", train_emoji__recipe=CRISP_RECIPE),
        case("--steps", "70", train_emoji__recipe=with_steps(70)),
        case("--threads", "1", threads=1),
    ),
)


def distilling(at: Boundary) -> None:
    config = SimpleNamespace(sample_size=128)
    model = SimpleNamespace(require_vae=lambda: SimpleNamespace(config=config))
    at.patch.setattr("undertow.cli.sample.embedded_models", lambda: {"emoji": Path("embedded")})
    at.patch.setattr("torch.set_num_threads", lambda count: at.arrived.update(threads=count))
    at.patch.setattr("undertow.checkpoints.read.model_loading.load_model", lambda *_, **__: model)
    at.patch.setattr("recipes.emoji.render.Glyphs", glyphs(at))
    at.stand_in(
        "recipes.emoji.turbo.train_turbo", Path("model"), unnoted=("glyphs", "on_stage", "on_record", "on_count")
    )


TURBO = Command(
    verb=("turbo",),
    verbs=VERBS,
    boundary=distilling,
    arrives={
        "train_turbo.teacher": Path("embedded"),
        "train_turbo.out": Path("runs/emoji-turbo"),
        "train_turbo.recipe": TurboRecipe(),
        "train_turbo.edition": CRISP,
        "font": FONT,
        "files": [],
    },
    cases=(
        case("--model", "mine", train_turbo__teacher=Path("mine")),
        case("--out", "mine", train_turbo__out=Path("mine")),
        case("--font", "Noto.ttf", font=Path("Noto.ttf")),
        case("--threads", "1", threads=1),
    ),
)


def few(at: Boundary) -> None:
    def load(source: Path) -> Any:
        at.arrived.setdefault("loads", []).append(source)
        return SimpleNamespace(vae=SimpleNamespace(config=SimpleNamespace(sample_size=128)), generate_many=drawn_many)

    def drawn_many(requests: Any) -> Any:
        (how,) = {(one.steps, one.guidance_scale) for one in requests}
        at.arrived.setdefault("drawn", []).append(how)
        return [SimpleNamespace(images=[Image.new("RGB", (128, 128))]) for _ in requests]

    def measure_steps(name: str, steps: int, draw: Draw, edition: Any, glyphs: Any, count: int, *, clock: Any) -> Any:
        at.arrived.setdefault("measured", []).append((name, steps, edition, count))
        return SimpleNamespace(kinds=())

    def write_page(measured: Any, sheet: Any, out: Path, *, machine: str) -> Path:
        at.arrived |= {"out": out, "machine": machine}
        return out

    at.patch.setattr("undertow.cli.sample.embedded_models", lambda: {"emoji": Path("embedded")})
    at.patch.setattr("undertow.loading.load", load)
    at.patch.setattr("recipes.emoji.few_steps.measure_steps", measure_steps)
    at.patch.setattr("recipes.emoji.few_steps_page.write_page", write_page)
    at.patch.setattr("recipes.emoji.render.Glyphs", glyphs(at))
    at.patch.setattr("torch.set_num_threads", lambda count: at.arrived.update(threads=count))
    at.patch.setattr("torch.get_num_threads", lambda: 5)


def measured_at(*steps: int, teacher: int = 20, count: int = 500) -> list[tuple[object, ...]]:
    """The teacher first."""
    return [("teacher", teacher, CRISP, count), *(("student", each, CRISP, count) for each in steps)]


def drawn_at(*steps: int, teacher: int = 20, guidance: float = 4.0) -> list[tuple[int, float]]:
    return [(teacher, guidance), *((each, 1.0) for each in steps)]


FEW_STEPS = Command(
    verb=("few-steps",),
    verbs=VERBS,
    boundary=few,
    arrives={
        "loads": [Path("embedded"), Path("runs/emoji-turbo/turbo/model")],
        "measured": measured_at(4, 2, 1),
        "drawn": drawn_at(4, 2, 1),
        "font": FONT,
        "machine": f"{platform.machine()}, 5 threads",
        "out": Path("docs/results"),
        "files": [],
    },
    cases=(
        case("--model", "mine", loads=[Path("embedded"), Path("mine")]),
        case("--teacher", "mine", loads=[Path("mine"), Path("runs/emoji-turbo/turbo/model")]),
        case("--steps", "8,3", measured=measured_at(8, 3), drawn=drawn_at(8, 3)),
        case("--teacher-steps", "30", measured=measured_at(4, 2, 1, teacher=30), drawn=drawn_at(4, 2, 1, teacher=30)),
        case("--guidance", "2.5", drawn=drawn_at(4, 2, 1, guidance=2.5)),
        case("--prompts", "7", measured=measured_at(4, 2, 1, count=7)),
        case("--font", "Noto.ttf", font=Path("Noto.ttf")),
        case("--machine", "a laptop", machine="a laptop, 5 threads"),
        case("--threads", "1", threads=1),
        case("--out", "pages", out=Path("pages")),
    ),
)

COMMANDS = (TRAIN, EVALUATE, TURBO, FEW_STEPS)
LEAVES = dict(leaves(typer.main.get_command(_build(VERBS, Settings()))))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.title)
def test_defaults_arrive(command: Command, monkeypatch, tmp_path):
    check_defaults(command, monkeypatch, tmp_path)


@pytest.mark.parametrize(("command", "case"), cases(COMMANDS))
def test_an_option_arrives_and_changes_nothing_else(command: Command, case: Case, monkeypatch, tmp_path, capsys):
    check_case(command, case, monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_every_option_of_every_verb_has_a_case(verb: tuple[str, ...]):
    check_every_option_has_a_case(verb, LEAVES[verb], COMMANDS)


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_a_number_of_threads_is_refused_before_torch_is_asked(verb: tuple[str, ...]):
    check_threads(LEAVES[verb])
