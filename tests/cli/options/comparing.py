"""Where the options of `undertow diff` arrive."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.cli.options.arrival import ABSENT, LOADED, Boundary, Command, case
from undertow import Adapter
from undertow.engine.request import GenerationRequest
from undertow.inspection.departure import Comparison


def comparing(at: Boundary) -> None:
    for name in ("one", "other", "a.safetensors"):
        Path(name).touch()
    Path("old").mkdir()
    Path("old/bundle.json").touch()
    Path("old.png").touch()
    loads: list[None] = []

    def load(source: str, **options: Any) -> Any:
        """Notes each side by its letter."""
        side = "ab"[len(loads)]
        loads.append(None)
        chosen = {name: value for name, value in options.items() if LOADED[f"load.{name}"] != value}
        at.arrived |= {f"{side}.source": source, f"{side}.options": chosen}
        return SimpleNamespace(config=SimpleNamespace(layer_names=lambda: ["conv_in"]))

    at.patch.setattr("undertow.loading.load", load)
    at.patch.setattr("undertow.cli.model_loading.find_device", lambda name: name)
    at.patch.setattr("undertow.cli.seeds.secrets.randbelow", lambda below: 44)
    at.stand_in("undertow.inspection.diffusers_tree.load_diffusers_unet", SimpleNamespace(config=None))
    found = Comparison(a="one", b="other", tolerance=1e-6, text={}, forwards=())
    at.stand_in("undertow.inspection.diff.compare", (found, "a departure"), unnoted=("a", "b"))
    at.patch.setattr("undertow.cli.diff_sides.computes", lambda _: "somehow")
    at.stand_in("undertow.inspection.departure_figure.save_departure_figure", unnoted=("found", "layers"))
    at.stand_in("undertow.inspection.bundle.write_bundle", unnoted=("comparison", "caught", "request", "sides"))
    at.stand_in("undertow.cli.diff._print", unnoted=("found",))
    at.stand_in("undertow.cli.diff._replay")


def asked(**other: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "red apple on white background", "steps": 4} | other)


COMPARED = {
    "compare.request": asked(),
    "compare.adapters_b": (),
    "compare.tolerance": None,
    "compare.modules": ("*",),
    "compare.names": ("one", "other"),
    "compare.alone": True,
}

DIFF = Command(
    verb=("diff",),
    arguments={"a": "one", "b": "other"},
    boundary=comparing,
    arrives={
        "a.source": "one",
        "a.options": {},
        "b.source": "other",
        "b.options": {},
        **COMPARED,
        "_print.top": 5,
        "_print.as_json": False,
        "files": [],
    },
    cases=(
        case("--against", "diffusers", refused="B is 'other', expected two models, or one and --against diffusers"),
        case("--replay", "folder", **{
            "_replay__folder": Path("folder"), "_replay__a": "one", "_replay__b": "other", "_replay__as_json": False,
            **{place.replace(".", "__"): ABSENT for place in (*COMPARED, "a.source", "a.options", "b.source",
                                                             "b.options", "_print.top", "_print.as_json")},
        }),
        case("--prompt", "a plum", compare__request=asked(prompt="a plum")),
        case("--negative", "dark", compare__request=asked(negative_prompt="dark")),
        case("--steps", "9", compare__request=asked(steps=9)),
        case("--guidance", "1.5", compare__request=asked(guidance_scale=1.5)),
        case("--seed", "7", compare__request=asked(seed=7)),
        case("--seed", "random", compare__request=asked(seed=44)),
        case("--sampler", "heun", compare__request=asked(sampler="heun")),
        case("--size", "24x16", compare__request=asked(size=(16, 24))),
        case("--precision-a", "f16", a__options={"dtype": torch.float16}, compare__names=("one (f16)", "other")),
        case("--precision-b", "bf16", b__options={"dtype": torch.bfloat16}, compare__names=("one", "other (bf16)")),
        case("--attention-a", "math", a__options={"attention": "math"}, compare__names=("one (math)", "other")),
        case("--attention-b", "sdpa", b__options={"attention": "sdpa"}, compare__names=("one", "other (sdpa)")),
        case("--backend-a", "compile", a__options={"backend": "compile"}, compare__names=("one (compile)", "other")),
        case("--backend-b", "openvino", b__options={"backend": "openvino"}, compare__names=("one", "other (openvino)")),
        case("--backend-b", "auto", b__options={"backend": "auto"}, compare__names=("one", "other (auto)")),
        case("--backend-b", "compile", b__options={"backend": "compile"}, compare__names=("one", "other (compile)")),
        case("--device-a", "cuda:1", a__options={"device": "cuda:1"}, compare__names=("one (cuda:1)", "other")),
        case("--device-b", "mps", b__options={"device": "mps"}, compare__names=("one", "other (mps)")),
        case("--lora-a", "a.safetensors@0.5", compare__names=("one (a)", "other"),
             compare__request=asked(adapters=(Adapter("a.safetensors", scale=0.5),))),
        case("--lora-b", "a.safetensors", compare__names=("one", "other (a)"),
             compare__adapters_b=(Adapter("a.safetensors"),)),
        case("--modules", "unet.mid*", "--modules", "unet.up*", compare__modules=("unet.mid*", "unet.up*")),
        case("--tolerance", "0.1", compare__tolerance=0.1),
        case("--no-alone", compare__alone=False),
        case("--no-alone", "--alone", "--top", "2", _print__top=2),
        case("--json", _print__as_json=True),
        case("--figure", "growth.txt", refused="a file that ends in .png"),
        case("--figure", "old.png", refused="--figure is 'old.png', expected a file that is not there yet"),
        case("--figure", "old.png", "--overwrite", save_departure_figure__path=Path("old.png")),
        case("--bundle", "old", refused="--bundle is old, expected a folder that is not there yet, or empty"),
        case("--bundle", "old", "--overwrite", write_bundle__folder=Path("old")),
        case("--bundle", "new", write_bundle__folder=Path("new")),
    ),
)  # fmt: skip

BESIDE_DIFFUSERS = Command(
    verb=("diff",),
    arguments={"a": "one"},
    needed=("--against", "diffusers"),
    boundary=comparing,
    arrives={
        "a.source": "one",
        "a.options": {},
        "load_diffusers_unet.folder": "one",
        "load_diffusers_unet.dtype": None,
        **COMPARED,
        "compare.names": ("one", "diffusers"),
        "_print.top": 5,
        "_print.as_json": False,
        "files": [],
    },
    cases=(
        case("--precision-b", "bf16", load_diffusers_unet__dtype=torch.bfloat16),
        case("--lora-b", "a.safetensors", refused="--against is diffusers, expected none of --lora-b"),
    ),
    about="against diffusers",
)

COMMANDS = (DIFF, BESIDE_DIFFUSERS)
