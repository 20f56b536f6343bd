"""Where the options of `undertow compare`, `sample` and `samplers` arrive."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.cli.options.arrival import ABSENT, LOADED, Boundary, Command, case
from tests.cli.options.generate import result_of
from undertow import Adapter
from undertow.checkpoints.files.words import read_vocabulary
from undertow.diffusion.paths import RectifiedFlow
from undertow.diffusion.schedules import NoiseSchedule
from undertow.embedded import embedded_models
from undertow.engine.direct import SamplingSettings
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult


class Service:
    """Stands in for the service that `load` gives; notes the requests in the order they come."""

    def __init__(self, at: Boundary):
        self.at = at
        self.model = SimpleNamespace(schedule=NoiseSchedule.scaled_linear(), sampler=None, suggested={})

    def run(self, request: GenerationRequest) -> GenerationResult:
        self.at.arrived.setdefault("requests", []).append(request)
        return result_of(request)


def comparing(at: Boundary) -> None:
    for name in ("other", "a.safetensors", "b.safetensors"):
        Path(name).touch()
    at.stand_in("undertow.loading.load", lambda *_, **__: Service(at))
    at.patch.setattr("undertow.cli.seeds.secrets.randbelow", lambda below: 44)
    at.patch.setattr("undertow.engine.chosen_sampler.choose_sampler", lambda *_: SimpleNamespace(grid=lambda _: []))
    sheet = Image.new("RGB", (8, 8))
    sheet.save("old.png")
    at.stand_in("undertow.inspection.contact_sheet.contact_sheet", lambda *_, **__: sheet, unnoted=("cells",))
    at.stand_in("undertow.cli.compare.show", unnoted=("pictures",))


def requests(
    samplers: tuple[str, ...] = ("euler", "heun", "dpmpp_2m"), steps: tuple[int, ...] = (5, 10, 20), **other: Any
) -> list[GenerationRequest]:
    """A row for each sampler, a column for each number of steps."""
    common = {"prompt": "red apple", "schedule": "karras", "guidance_scale": 5.0, **other}
    return [GenerationRequest(sampler=name, steps=count, **common) for name, count in product(samplers, steps)]


COMPARE = Command(
    verb=("compare",),
    arguments={"prompts": ("red apple",)},
    boundary=comparing,
    arrives={
        **LOADED,
        "load.source": "emoji",
        "requests": requests(),
        "contact_sheet.rows": ["euler", "heun", "dpmpp_2m"],
        "contact_sheet.columns": ["steps 5", "steps 10", "steps 20"],
        "contact_sheet.title": "red apple · seed 0 · schedule karras, guidance 5.0",
        "show.columns": 120,
        "files": ["out/compare.png"],
    },
    cases=(
        case("--no-show", show__columns=ABSENT),
        case("--no-show", "--show", "--model", "other", load__source="other"),
        case("--model", "other", load__source="other"),
        case("--samplers", "ddim, lms", requests=requests(("ddim", "lms")), contact_sheet__rows=["ddim", "lms"]),
        case("--schedules", "simple", requests=requests(schedule="simple"),
             contact_sheet__title="red apple · seed 0 · schedule simple, guidance 5.0"),
        case("--steps", "2,3", requests=requests(steps=(2, 3)), contact_sheet__columns=["steps 2", "steps 3"]),
        case("--guidance", "3.5", requests=requests(guidance_scale=3.5),
             contact_sheet__title="red apple · seed 0 · schedule karras, guidance 3.5"),
        case("--negative", "dark", requests=requests(negative_prompt="dark")),
        case("--seed", "9", requests=requests(seed=9),
             contact_sheet__title="red apple · seed 9 · schedule karras, guidance 5.0"),
        case("--seed", "random", requests=requests(seed=44),
             contact_sheet__title="red apple · seed 44 · schedule karras, guidance 5.0"),
        case("--seeds", "9", requests=requests(seed=9),
             contact_sheet__title="red apple · seed 9 · schedule karras, guidance 5.0"),
        case("--lora", "a.safetensors@0.5", requests=requests(adapters=(Adapter("a.safetensors", scale=0.5),)),
             contact_sheet__title="red apple · a@0.5 · seed 0 · schedule karras, guidance 5.0"),
        case("--lora", "a.safetensors", "--scales", "0.25",
             requests=requests(adapters=(Adapter("a.safetensors", scale=0.25),)),
             contact_sheet__title="red apple · a · seed 0 · scale 0.25, schedule karras, guidance 5.0"),
        case("--scales", "0.25", refused="a --lora that they belong to"),
        case("--lora", "none", "--scales", "0.25", refused="a --lora that they belong to"),
        case("--lora", "c.safetensors", refused="no such file"),
        case("--samplers", "a,b", "--steps", "1,2", "--seeds", "1,2", refused="two with more than one entry"),
        case("--steps", "", refused="at least one entry"),
        case("--out", "sheets/a.png", files=["sheets/a.png"]),
        case("-o", "sheets/a.webp", files=["sheets/a.webp"]),
        case("--out", "sheets", files=["sheets/compare.png"]),
        case("--out", "sheet.gif", refused="a folder, or a file that ends in"),
        case("--out", "old.png", refused="a file that is not there yet"),
        case("--out", "old.png", "--overwrite", files=[]),
    ),
)  # fmt: skip


def drawn(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "red apple", "steps": 20} | fields)


A, B = Adapter("a.safetensors"), Adapter("b.safetensors", scale=0.5)
COMPARE_PICTURES = Command(
    verb=("compare",),
    about="prompts, LoRAs, scales and seeds",
    arguments={"prompts": ("red apple", "owl")},
    needed=("--seeds", "3,4"),
    boundary=comparing,
    arrives=COMPARE.arrives
    | {
        "requests": [drawn(prompt=text, seed=seed) for text, seed in product(("red apple", "owl"), (3, 4))],
        "contact_sheet.rows": ["red apple", "owl"],
        "contact_sheet.columns": ["seed 3", "seed 4"],
        "contact_sheet.title": "sampler model, steps 20, guidance 5.0",
    },
    cases=(
        case("--steps", "7",
             requests=[drawn(prompt=text, seed=seed, steps=7) for text, seed in product(("red apple", "owl"), (3, 4))],
             contact_sheet__title="sampler model, steps 7, guidance 5.0"),
    ),
)  # fmt: skip

COMPARE_LORAS = Command(
    verb=("compare",),
    about="LoRAs and scales",
    arguments={"prompts": ("red apple",)},
    needed=("--lora", "none", "--lora", "a.safetensors", "--lora", "b.safetensors@0.5"),
    boundary=comparing,
    arrives=COMPARE.arrives
    | {
        "requests": [drawn(adapters=one) for one in ((), (A,), (B,))],
        "contact_sheet.rows": ["no LoRA", "a", "b@0.5"],
        "contact_sheet.columns": ["model"],
        "contact_sheet.title": "red apple · seed 0 · steps 20, guidance 5.0",
    },
    cases=(
        case("--scales", "0,1",
             requests=[drawn(adapters=tuple(replace(each, scale=scale) for each in one))
                       for one, scale in product(((), (A,), (B,)), (0.0, 1.0))],
             contact_sheet__columns=["scale 0.0", "scale 1.0"],
             contact_sheet__title="red apple · seed 0 · sampler model, steps 20, guidance 5.0"),
    ),
)  # fmt: skip

COMPARE_OTHER_LISTS = Command(
    verb=("compare",),
    about="schedules by guidance",
    arguments={"prompts": ("red apple",)},
    needed=("--samplers", "euler", "--steps", "4", "--schedules", "simple,normal", "--guidance", "2,3"),
    boundary=comparing,
    arrives=COMPARE.arrives
    | {
        "requests": [
            GenerationRequest(prompt="red apple", sampler="euler", steps=4, schedule=schedule, guidance_scale=scale)
            for schedule, scale in product(("simple", "normal"), (2.0, 3.0))
        ],
        "contact_sheet.rows": ["schedule simple", "schedule normal"],
        "contact_sheet.columns": ["guidance 2.0", "guidance 3.0"],
        "contact_sheet.title": "red apple · seed 0 · sampler euler, steps 4",
    },
)


def sampling(at: Boundary) -> None:
    model = SimpleNamespace(path=RectifiedFlow(), class_names=("zero", "one", "two"))
    at.stand_in("undertow.checkpoints.read.class_model.load_class_model", model)
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    at.stand_in("undertow.engine.class_pictures.sample_classes", pixels, unnoted=("model", "on_pictures"))
    at.stand_in("undertow.training.figures.save_grid", unnoted=("pixels",))
    at.patch.setattr("undertow.cli.seeds.secrets.randbelow", lambda below: 44)
    Path("old.png").touch()
    Path("my-run/unet").mkdir(parents=True)
    Path("my-run/unet/config.json").touch()


def settings(**other: Any) -> SamplingSettings:
    return SamplingSettings(**{"sampler": "flow_heun", "schedule": "normal", "steps": 20, "guidance": 2.0} | other)


SAMPLE = Command(
    verb=("sample",),
    arguments={"run": "my-run"},
    boundary=sampling,
    arrives={
        "load_class_model.folder": Path("my-run"),
        "load_class_model.device": None,
        "load_class_model.dtype": torch.float32,
        "sample_classes.labels": [0] * 8 + [1] * 8 + [2] * 8,
        "sample_classes.seeds": range(24),
        "sample_classes.settings": settings(),
        "sample_classes.batch_size": 64,
        "save_grid.columns": 8,
        "save_grid.path": Path("grid.png"),
        "files": ["grid.png"],
    },
    cases=(
        case("--class", "two", "--class", "0", sample_classes__labels=[2] * 8 + [0] * 8,
             sample_classes__seeds=range(16)),
        case("--count", "3", sample_classes__labels=[0] * 3 + [1] * 3 + [2] * 3, sample_classes__seeds=range(9),
             save_grid__columns=3),
        case("--guidance", "1.5", sample_classes__settings=settings(guidance=1.5)),
        case("--steps", "7", sample_classes__settings=settings(steps=7)),
        case("--sampler", "euler", sample_classes__settings=settings(sampler="euler")),
        case("--schedule", "simple", sample_classes__settings=settings(schedule="simple")),
        case("--seed", "100", sample_classes__seeds=range(100, 124)),
        case("--batch-size", "5", sample_classes__batch_size=5),
        case("--columns", "6", save_grid__columns=6),
        case("--seed", "random", sample_classes__seeds=range(44, 68)),
        case("--out", "a.webp", save_grid__path=Path("a.webp"), files=["a.webp"]),
        case("--out", "grids", save_grid__path=Path("grids/grid.png"), files=["grids/grid.png"]),
        case("--out", "old.png", refused="a file that is not there yet"),
        case("--out", "old.png", "--overwrite", save_grid__path=Path("old.png"), files=[]),
    ),
)  # fmt: skip


def listing(at: Boundary) -> None:
    """What is asked for decides which catalogue is read."""
    at.stand_in("undertow.cli.samplers._all", "all samplers")
    at.stand_in("undertow.cli.samplers._grids", "all grids")
    at.stand_in("undertow.cli.samplers._one", unnoted=("console",))
    at.stand_in("undertow.cli.samplers._plot")
    Path("old.png").touch()
    at.patch.setattr("undertow.cli.samplers.SafeConsole", lambda: Printed(at))


class Printed:
    """A console that notes the first thing it is told."""

    def __init__(self, at: Boundary):
        self.at = at

    def print(self, what: str, **how: Any) -> None:
        self.at.arrived.setdefault("printed", what)


SAMPLERS = (
    Command(
        verb=("samplers",),
        boundary=listing,
        arrives={"printed": "all samplers", "files": []},
        cases=(
            case("--schedules", printed="all grids"),
            case("--plot", "grids.txt", refused="a file that ends in .png, .jpg, .jpeg, .webp, .svg or .pdf"),
            case("--plot", "grids.png", printed="wrote grids.png", _plot__file=Path("grids.png")),
            case("--plot", "old.png", refused="a file that is not there yet"),
            case("--plot", "old.png", "--overwrite", printed="wrote old.png", _plot__file=Path("old.png")),
        ),
    ),
    Command(
        verb=("samplers",),
        about="one",
        arguments={"name": "DPM++ 2M"},
        boundary=listing,
        arrives={"_one.name": "DPM++ 2M", "files": []},
    ),
)


def telling(at: Boundary) -> None:
    """Notes what is asked of the list of words."""
    at.stand_in("undertow.cli.words._vocabulary", read_vocabulary(embedded_models()["emoji"]))
    at.stand_in("undertow.cli.words._like", ("owl",), unnoted=("vocabulary",))


WORDS = Command(
    verb=("words",),
    arguments={"model": "emoji"},
    boundary=telling,
    arrives={"_vocabulary.model": "emoji", "files": []},
    cases=(case("--like", "bird", _like__word="bird"),),
)

COMMANDS = (WORDS, COMPARE, COMPARE_PICTURES, COMPARE_LORAS, COMPARE_OTHER_LISTS, SAMPLE, *SAMPLERS)
