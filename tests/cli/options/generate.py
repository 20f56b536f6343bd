"""Where the options of `undertow generate` arrive: `load`, `UNetService.run`, the request, and the files written."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.cli.options.arrival import ABSENT, LOADED, UNDISTILLED, Boundary, Command, case, picture
from undertow import Adapter, AdapterCapacity
from undertow.engine.debug import Debug
from undertow.engine.events import PictureEvent, StepEvent
from undertow.engine.parts import HighResolution, Region, StepForecast, Views
from undertow.engine.report import Report
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult
from undertow.engine.saving import save_picture
from undertow.inspection.recorder import Recorder
from undertow.service import UNetService

NAMED = (
    *("m", "b", "other", "newer", "old-model", "older-model", "refiner.safetensors"),
    *("style.safetensors", "edges.safetensors", "a.safetensors", "b.safetensors"),
)
"""Models and adapters that are typed: a file that is not there is refused before anything is loaded."""

PHOTO, MASK, DEPTH = picture((6, 4), (200, 30, 40)), picture((6, 4), 255), picture((6, 4), 90)


class Service:
    """Stands in for the service that `load` gives; draws plain pictures."""

    engine = None
    model = UNDISTILLED

    def __init__(self, boundary: Boundary):
        self.boundary = boundary

    def add_embedding(self, source: str) -> tuple[str, ...]:
        return (Path(source).stem,)

    def enable_layer_hooks(self) -> Recorder:
        return Recorder()

    def disable_layer_hooks(self) -> None:
        pass

    def run(self, request: GenerationRequest, **how: Any) -> GenerationResult:
        self.boundary.note(
            "run", UNetService.run, (self, request), how, unnoted=("observe", "drawn"), apart=("request",)
        )
        how["observe"](step())
        result = result_of(request)
        for place, drawn in enumerate(result.images):
            how["drawn"](PictureEvent(request=0, picture=place, image=drawn, report=result.report))
        return result


def step() -> StepEvent:
    """A step of the first picture that can be shown."""
    return StepEvent(
        request=0, picture=0, step=1, steps=2, sigma=1.0, denoised=None, preview=lambda: image(), cancel=lambda: None
    )


def image() -> Image.Image:
    return Image.new("RGB", (6, 4), (1, 2, 3))


def result_of(request: GenerationRequest) -> GenerationResult:
    report = Report(request=request, model="a model", size=(4, 6), sigmas=(1.0, 0.0), seconds={"decode": 0.0})
    return GenerationResult(images=[image()] * request.count, latents=torch.zeros(1, 4, 1, 1), report=report)


def keep(name: str, seed: int) -> None:
    """A picture as undertow writes it, the second of its request."""
    request = GenerationRequest(prompt=f"an {name} one", steps=3, seed=seed, count=2)
    report = Report(request=request, model=f"{name}-model", size=(4, 6), sigmas=(), seconds={})
    save_picture(image(), f"{name}.png", report, index=1)


def boundary(at: Boundary) -> None:
    Image.new("RGB", (6, 4), (200, 30, 40)).save("photo.png")
    Image.new("L", (6, 4), 255).save("mask.png")
    Image.new("L", (6, 4), 90).save("depth.png")
    for name in NAMED:
        Path(name).touch()
    Path("undertow.toml").write_text("[presets.quick]\nsteps = 31\n")
    at.patch.setattr("torch.cuda.is_available", lambda: False)
    at.patch.setattr("undertow.cli.seeds.secrets.randbelow", lambda below: 44)
    at.stand_in("undertow.loading.load", lambda *_, **__: Service(at))
    profiler = nullcontext(SimpleNamespace(profile=lambda report: None))
    at.patch.setattr("undertow.inspection.profile.Profiler", lambda engine: profiler)
    at.stand_in("undertow.cli.generate.show", unnoted=("columns",))


def with_old_pictures(at: Boundary) -> None:
    boundary(at)
    keep("old", seed=50)
    keep("older", seed=60)


def with_cuda(at: Boundary) -> None:
    boundary(at)
    at.patch.setattr("torch.cuda.is_available", lambda: True)


REQUEST = {
    "request.prompt": "red apple",
    "request.negative_prompt": "",
    "request.steps": 20,
    "request.guidance_scale": 5.0,
    "request.guidance_method": "cfg",
    "request.seed": 44,
    "request.count": 1,
    "request.size": None,
    "request.sampler": "model",
    "request.sampler_options": {},
    "request.schedule": None,
    "request.sigmas": None,
    "request.discard_penultimate": None,
    "request.dialect": "a1111",
    "request.clip_skip": None,
    "request.original_size": None,
    "request.crop": (0, 0),
    "request.target_size": None,
    "request.timestep_map": "interpolated",
    "request.noise_convention": "variance",
    "request.forecast_steps": None,
    "request.image": None,
    "request.strength": 0.8,
    "request.strength_convention": "diffusers",
    "request.mask": None,
    "request.depth": None,
    "request.paste": True,
    "request.image_guidance_scale": 1.5,
    "request.regions": (),
    "request.regions_by": "estimates",
    "request.high_resolution": None,
    "request.views": None,
    "request.seamless": "none",
    "request.variation_seed": None,
    "request.variation_strength": 0.0,
    "request.refiner_switch": 0.8,
    "request.adapters": (),
    "request.embeddings": (),
}
ARRIVES = REQUEST | {
    **LOADED,
    "load.source": "emoji",
    "load.dtype": torch.float32,
    "load.device": "cpu",
    "run.latents": None,
    "run.debug": Debug(),
    "run.low_vram": False,
    "run.budget_bytes": None,
    "run.course": (),
    "run.vae_clamp": False,
    "run.non_finite": "upcast",
    "show.pictures": [image()],
    "files": ["out/44.png"],
}

OF_THE_REQUEST = (
    case("--negative", "dark", request__negative_prompt="dark"),
    case("--steps", "31", request__steps=31),
    case("--guidance", "3.5", request__guidance_scale=3.5),
    case("--guidance-method", "apg+rescale", request__guidance_method="apg+rescale"),
    case("--sampler", "euler_a", request__sampler="euler_a"),
    case("--sampler-option", "eta=0.5", "--sampler-option", "s_noise=2",
         request__sampler_options={"eta": 0.5, "s_noise": 2.0}),
    case("--schedule", "simple", request__schedule="simple"),
    case("--timestep-map", "nearest", request__timestep_map="nearest"),
    case("--noise-convention", "comfy", request__noise_convention="comfy"),
    case("--sigmas", "14,5,1,0", request__sigmas=(14.0, 5.0, 1.0, 0.0)),
    case("--seed", "11", request__seed=11, files=["out/11.png"]),
    case("--seed", "first", refused="a whole number from 0 on, or a new one: random or -1"),
    case("--preset", "quick", request__steps=31),
    case("-s", "31", request__steps=31),
    case("-n", "2", request__count=2, show__pictures=[image()] * 2, files=["out/44.png", "out/45.png"]),
    case("-m", "other", load__source="other", load__dtype=None),
    case("-o", "folder", files=["folder/44.png"]),
    case("--count", "2", request__count=2, show__pictures=[image()] * 2, files=["out/44.png", "out/45.png"]),
    case("--size", "48x32", request__size=(32, 48)),
    case("--size", "48", request__size=(48, 48)),
    case("--image", "photo.png", request__image=PHOTO),
    case("--image", "photo.png", "--mask", "mask.png", request__image=PHOTO, request__mask=MASK),
    case("--depth", "depth.png", request__depth=DEPTH),
    case("--strength", "0.3", request__strength=0.3),
    case("--strength-as", "comfy", request__strength_convention="comfy"),
    case("--image-guidance", "1.25", request__image_guidance_scale=1.25),
    case("--refiner-switch", "0.7", request__refiner_switch=0.7),
    case("--regions", "cat@0,0,0.5,1,2", "--regions", "dog@0.5,0,1,1", request__regions=(
        Region(prompt="cat", box=(0.0, 0.0, 0.5, 1.0), weight=2.0), Region(prompt="dog", box=(0.5, 0.0, 1.0, 1.0)))),
    case("--regions-by", "attention", request__regions_by="attention"),
    case("--enlarge", "1.5", request__high_resolution=HighResolution(scale=1.5, strength=0.6)),
    case("--enlarge-strength", "0.35", refused="an --enlarge that it belongs to"),
    case("--lora-block", "up_blocks.*=0.5", refused="a --lora that it belongs to"),
    case("--enlarge", "1.5", "--enlarge-strength", "0.35",
         request__high_resolution=HighResolution(scale=1.5, strength=0.35)),
    case("--forecast-steps", "3", request__forecast_steps=StepForecast(every=3)),
    case("--views", request__views=Views(overlap=0.5)),
    case("--view-overlap", "0.25", request__views=Views(overlap=0.25)),
    case("--seamless", "y", request__seamless="y"),
    case("--variation", "7:0.2", request__variation_seed=7, request__variation_strength=0.2),
    case("--variation", "random:0.2", request__variation_seed=44, request__variation_strength=0.2),
    case("--lora", "style.safetensors@0.4", "--lora", "b.safetensors",
         request__adapters=(Adapter("style.safetensors", scale=0.4), Adapter("b.safetensors"))),
    case("--lora", "style.safetensors@0.4", "--lora-block", "up_blocks.*=0.5",
         request__adapters=(Adapter("style.safetensors", scale=0.4, blocks={"up_blocks.*": 0.5}),)),
    case("--adapter", "edges.safetensors@0.7=photo.png",
         request__adapters=(Adapter("edges.safetensors", scale=0.7, image=("photo.png",)),)),
    case("--adapter", "edges.safetensors", "--adapter-mask", "edges=mask.png",
         request__adapters=(Adapter("edges.safetensors", mask=("mask.png",)),)),
    case("--lora", "a.safetensors", "--adapter", "b.safetensors",
         request__adapters=(Adapter("a.safetensors"), Adapter("b.safetensors"))),
    case("--embedding", "a.safetensors", "--embedding", "b.safetensors", request__embeddings=("a", "b")),
    case("--embedding", "c.safetensors", refused="no such file or folder"),
    case("--prompts", "lines.txt", refused="one of the two"),
    case("--wildcards", "nowhere", refused="a folder with .txt files"),
    case("--dialect", "compel", request__dialect="compel"),
    case("--clip-skip", "2", request__clip_skip=2),
)  # fmt: skip

OF_THE_MODEL = (
    case("--model", "other", load__source="other", load__dtype=None),
    case("--precision", "f16", load__dtype=torch.float16),
    case("--precision", "bf16", load__dtype=torch.bfloat16),
    case("--vae-precision", "f32", load__vae_dtype=torch.float32),
    case("--vae-precision", "f16", load__vae_dtype=torch.float16),
    case("--vae-precision", "bf16", load__vae_dtype=torch.bfloat16),
    case("--device", "meta", load__device="meta"),
    case("--adapter-slots", "3", load__adapter_capacity=AdapterCapacity(slots=3, per_row=3)),
    case("--flash-attention", load__attention="sdpa"),
    case("--no-flash-attention", load__attention="math"),
    case("--attention", "memory", load__attention="memory"),
    case("--attention", "chunked", load__attention="chunked"),
    case("--attention", "chunk", refused="did you mean 'chunked'?"),
    case("--attention", "memory", "--flash-attention", refused="nothing beside --flash-attention"),
    case("--backend", "auto", load__backend="auto"),
    case("--backend", "background", load__backend="background"),
    case("--backend", "onnx", refused="openvino"),
    *(
        case("--quantize", scheme, load__quantize=scheme)
        for scheme in ("int8-weights", "int8-dynamic", "float8", "none")
    ),
    case("--quantize", "int4", refused="int8-weights"),
    case("--prediction", "v", load__prediction="v"),
    case("--allow-pickle", load__allow_pickle=True),
    case("--validate-weights", load__validate_weights=True),
    case("--refiner", "refiner.safetensors", load__refiner="refiner.safetensors"),
)

OF_THE_RUN = (
    case("--low-vram", run__low_vram=True, load__lazy=True),
    case("--budget", "1.5GB", run__budget_bytes=1_500_000_000, load__lazy=True),
    case("--vae-clamp", run__vae_clamp=True),
    *(case("--non-finite", how, run__non_finite=how) for how in ("clamp", "fail", "keep")),
    case("--non-finite", "clap", refused="clamp"),
    case("--debug", "nan", run__debug=Debug(nan=True)),
    case("--debug", "timing,shapes", run__debug=Debug(timing=True, shapes=True)),
    case("--debug", "all", run__debug=Debug.parse(True)),
    case("--trace", "new/layers.jsonl", files=["new/layers.jsonl", "out/44.png"]),
    case("--trace", "photo.png", refused="a file that is not there yet"),
    case("--preview", "now.png", files=["now.png", "out/44.png"]),
    case("--report", "page.html", files=["out/44.png", "page.html"]),
    case("--report", "page.txt", refused="a file that ends in .html"),
    case("--out", "made.png", files=["made.png"]),
    case("--out", "made.jpg", files=["made.jpg"]),
    case("--out", "runs/v1.5", files=["runs/v1.5/44.png"]),
    case("--out", "photo.png", refused="a file that is not there yet"),
    case("--out", "photo.png", "--overwrite", files=[]),
    case("--out", "made.bmp", refused="a folder, or a file that ends in .png, .jpg, .jpeg or .webp"),
    case("--preview", "now.txt", refused="a file that ends in .png"),
    case("--name", "{prompt}-{seed}.webp", files=["out/red-apple-44.webp"]),
    case("--name", "{sede}", refused="did you mean {seed}?"),
    case("--out", "folder", files=["folder/44.png"]),
    case("--no-show", show__pictures=ABSENT),
    case("--no-show", "--show", "--count", "2", request__count=2, show__pictures=[image()] * 2,
         files=["out/44.png", "out/45.png"]),
)  # fmt: skip

GENERATE = Command(
    verb=("generate",),
    arguments={"prompt": "red apple"},
    boundary=boundary,
    arrives=ARRIVES,
    cases=(*OF_THE_REQUEST, *OF_THE_MODEL, *OF_THE_RUN),
)

WITH_A_MODEL_OF_ONES_OWN = Command(
    verb=("generate",),
    about="a model of one's own",
    arguments={"prompt": "red apple"},
    needed=("--model", "other"),
    boundary=boundary,
    arrives=ARRIVES | {"load.source": "other", "load.dtype": None},
    cases=(
        case("--precision", "f32", load__dtype=torch.float32),
        case("--precision", "f16", load__dtype=torch.float16),
        case("--precision", "bf16", load__dtype=torch.bfloat16),
    ),
)

WITH_CUDA = Command(
    verb=("generate",),
    about="where there is a GPU",
    arguments={"prompt": "red apple"},
    boundary=with_cuda,
    arrives=ARRIVES | {"load.device": "cuda"},
    cases=(case("--device", "cpu", load__device="cpu"),),
)

AGAIN = Command(
    verb=("generate",),
    about="an old picture",
    needed=("--from", "old.png", "--model", "old-model"),
    boundary=with_old_pictures,
    arrives=ARRIVES
    | {
        "load.source": "old-model",
        "load.dtype": None,
        "request.prompt": "an old one",
        "request.steps": 3,
        "request.seed": 50,
        "request.count": 2,
        "request.size": (4, 6),
        "files": ["out/51.png"],
    },
    cases=(
        case(
            "--from",
            "older.png",
            request__prompt="an older one",
            request__seed=60,
            files=["out/61.png"],
        ),
        # What is given beside the old picture goes before what is stored with it.
        case("a new one", request__prompt="a new one"),
        case("--steps", "20", request__steps=20),
        case("--image", "photo.png", request__image=PHOTO),
        case("--enlarge", "1.5", request__high_resolution=HighResolution(scale=1.5)),
        case("--views", request__views=Views()),
        case("--lora", "b.safetensors", request__adapters=(Adapter("b.safetensors"),)),
        # Another seed or number draws other pictures: from this one's seed, which is the second of 50.
        case("--seed", "11", request__seed=11, request__count=1, files=["out/11.png"]),
        case("--seed", "random", request__seed=44, request__count=1, files=["out/44.png"]),
        case("--seed", "-1", request__seed=44, request__count=1, files=["out/44.png"]),
        case("--count", "3", request__seed=51, request__count=3, show__pictures=[image()] * 3,
             files=["out/51.png", "out/52.png", "out/53.png"]),
        case("--model", "newer", load__source="newer"),
        case("--precision", "bf16", load__dtype=torch.bfloat16),
        case("--low-vram", run__low_vram=True, load__lazy=True),
        case("--out", "again.png", files=["again.png"]),
    ),
)  # fmt: skip

RICH = GenerationRequest(
    prompt="a rich one",
    count=2,
    high_resolution=HighResolution(scale=1.5, strength=0.3),
    views=Views(window=32),
    variation_seed=5,
    variation_strength=0.25,
    sampler_options={"eta": 0.5},
    adapters=(Adapter("mosaic", scale=0.5),),
)


def with_a_rich_picture(at: Boundary) -> None:
    boundary(at)
    save_picture(image(), "rich.png", Report(request=RICH, model="emoji", size=(4, 6), sigmas=(), seconds={}), index=1)


OVER_PARTS = Command(
    verb=("generate",),
    about="an old picture with parts",
    needed=("--from", "rich.png"),
    boundary=with_a_rich_picture,
    arrives=ARRIVES
    | {
        "request.prompt": "a rich one",
        "request.seed": 0,
        "request.count": 2,
        "request.high_resolution": RICH.high_resolution,
        "request.views": RICH.views,
        "request.variation_seed": 5,
        "request.variation_strength": 0.25,
        "request.sampler_options": {"eta": 0.5},
        "request.adapters": RICH.adapters,
        "files": ["out/1.png"],
    },
    cases=(
        case("--enlarge", "3", request__high_resolution=HighResolution(scale=3.0, strength=0.3)),
        case("--enlarge-strength", "0.9", request__high_resolution=HighResolution(scale=1.5, strength=0.9)),
        case("--view-overlap", "0.25", request__views=Views(window=32, overlap=0.25)),
        case("--variation", "7:0.5", request__variation_seed=7, request__variation_strength=0.5),
        case("--sampler-option", "s_noise=2", request__sampler_options={"s_noise": 2.0}),
        case("--adapter", "b=photo.png", request__adapters=(*RICH.adapters, Adapter("b", image=("photo.png",)))),
        # Named without settings, an adapter acts as the picture says.
        case("--lora", "elsewhere/mosaic", request__adapters=(Adapter("elsewhere/mosaic", scale=0.5),)),
        case("--lora", "mosaic@1", request__adapters=(Adapter("mosaic"),)),
        case("--count", "1", request__seed=1, request__count=1, request__variation_seed=6),
    ),
)


def with_lines(at: Boundary) -> None:
    boundary(at)
    Path("lines.txt").write_text("owl | --steps 4\n")
    Path("more.txt").write_text('{"prompt": "rocket", "seed": 9}\n')
    Path("words").mkdir()
    Path("words/color.txt").write_text("green\n")


FROM_A_FILE = Command(
    verb=("generate",),
    about="a file of prompts",
    needed=("--prompts", "lines.txt"),
    boundary=with_lines,
    arrives=ARRIVES | {"request.prompt": "owl", "request.steps": 4},
    cases=(
        case("--prompts", "more.txt", request__prompt="rocket", request__steps=20, request__seed=9,
             files=["out/9.png"]),
        case("--guidance", "3.5", request__guidance_scale=3.5),
        case("--seed", "11", request__seed=11, files=["out/11.png"]),
    ),
)  # fmt: skip

CHOOSING = Command(
    verb=("generate",),
    about="with choices",
    arguments={"prompt": "{red|blue} __color__"},
    needed=("--wildcards", "words"),
    boundary=with_lines,
    arrives=ARRIVES | {"request.prompt": "blue green"},
    cases=(case("--wildcard-seed", "6", request__prompt="red green"),),
)

COMMANDS = (GENERATE, FROM_A_FILE, CHOOSING, WITH_A_MODEL_OF_ONES_OWN, WITH_CUDA, AGAIN, OVER_PARTS)
