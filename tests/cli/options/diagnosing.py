"""Where the options of `undertow doctor` and `profile` arrive."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.cli.options.arrival import LOADED, UNDISTILLED, Boundary, Command, case
from undertow import Adapter
from undertow.engine.request import GenerationRequest
from undertow.inspection.doctor.finding import Change, Diagnosis, Seen
from undertow.inspection.doctor.request import guidance_high

SEEN = Seen(
    evidence="30",
    cause="too much",
    fix="less",
    changes=(Change(where="request", name="guidance_scale", value=7.0),),
)


def diagnosing(at: Boundary) -> None:
    Path("a.safetensors").touch()
    Image.new("RGB", (6, 4)).save("photo.png")

    def diagnose(request: GenerationRequest, *, picture: Path | None, only: list[str]) -> Diagnosis:
        at.arrived |= {"picture": picture, "only": only, "request": request}
        return Diagnosis(findings=(guidance_high.finding(SEEN),), rules=("guidance-high",), request=request)

    at.stand_in("undertow.loading.load", SimpleNamespace(diagnose=diagnose, model=UNDISTILLED))
    at.stand_in("undertow.cli.doctor._show", unnoted=("found",))


def profiling(at: Boundary) -> None:
    service = SimpleNamespace(
        model=UNDISTILLED,
        profile=lambda request: at.arrived.update(request=request),
        run=lambda request: at.arrived.update(again=request),
        unet=SimpleNamespace(device=torch.device("cpu")),
    )
    at.stand_in("undertow.loading.load", service)
    at.stand_in("undertow.cli.profile._show", unnoted=("found",))
    at.stand_in("undertow.inspection.trace_file.traced", nullcontext(SimpleNamespace(table="")), unnoted=("device",))


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "", **fields})


COMMANDS = (
    Command(
        verb=("doctor",),
        arguments={"model": "digits-flow"},
        boundary=diagnosing,
        arrives={
            **LOADED,
            "load.source": "digits-flow",
            "load.device": "cpu",
            "load.dtype": torch.float32,
            "picture": None,
            "only": [],
            "request": request(),
            "_show.as_json": False,
            "files": [],
        },
        cases=(
            case("--prompt", "a cat", request=request(prompt="a cat")),
            case("--negative", "a dog", request=request(negative_prompt="a dog")),
            case("--picture", "photo.png", picture=Path("photo.png")),
            case("--picture", "none.png", refused="none.png"),
            case("--lora", "a.safetensors@0.5", request=request(adapters=(Adapter("a.safetensors", scale=0.5),))),
            case("--size", "96x64", request=request(size=(64, 96))),
            case("--steps", "7", request=request(steps=7)),
            case("-s", "7", request=request(steps=7)),
            case("--guidance", "3", request=request(guidance_scale=3.0)),
            case("--sampler", "euler", request=request(sampler="euler")),
            case("--schedule", "karras", request=request(schedule="karras")),
            case("--clip-skip", "2", request=request(clip_skip=2)),
            case("--precision", "bf16", load__dtype=torch.bfloat16),
            case("--vae-precision", "f32", load__vae_dtype=torch.float32),
            case("--prediction", "v", load__prediction="v"),
            case("--attention", "memory", load__attention="memory"),
            case("--device", "meta", load__device="meta"),
            case("--allow-pickle", load__allow_pickle=True),
            case("--only", "nan, slow", only=["nan", "slow"]),
            case("--only", "lost", refused="only is 'lost', expected a rule or a family of rules"),
            case("--json", _show__as_json=True),
            case("--fix", request=request(guidance_scale=7.0), files=["undertow.toml"]),
        ),
    ),
    Command(
        verb=("profile",),
        arguments={"model": "digits-flow"},
        boundary=profiling,
        arrives={
            **LOADED,
            "load.source": "digits-flow",
            "load.device": "cpu",
            "load.dtype": torch.float32,
            "request": request(steps=4),
            "_show.top": 12,
            "_show.as_json": False,
            "files": [],
        },
        cases=(
            case("--prompt", "a cat", request=request(steps=4, prompt="a cat")),
            case("--size", "96x64", request=request(steps=4, size=(64, 96))),
            case("--steps", "7", request=request(steps=7)),
            case("-s", "7", request=request(steps=7)),
            case("--count", "2", request=request(steps=4, count=2)),
            case("-n", "2", request=request(steps=4, count=2)),
            case("--precision", "bf16", load__dtype=torch.bfloat16),
            case("--attention", "memory", load__attention="memory"),
            case("--device", "meta", load__device="meta"),
            case("--top", "3", _show__top=3),
            case("--operators", again=request(steps=4), traced__path=None, traced__top=12),
            case("--trace", "a.json", again=request(steps=4), traced__path=Path("a.json"), traced__top=12),
            case("--trace", "a.txt", refused="a file that ends in .json"),
            case("--json", _show__as_json=True),
        ),
    ),
)
