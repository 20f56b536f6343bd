"""Where the options of `undertow convert`, `quantize` and `inspect` arrive."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from tests.cli.options.arrival import LOADED, Boundary, Command, case, stop
from undertow.checkpoints.files.gguf_types import QUANTIZED
from undertow.inspection.trace import StageShape
from undertow.quantization import Quantization
from undertow.unet.config import UNetConfig


def converting(at: Boundary) -> None:
    Path("in.safetensors").touch()
    Path("old.safetensors").touch()
    at.stand_in("undertow.checkpoints.write.convert.convert", "there", apart=("opening",))
    at.stand_in("undertow.checkpoints.write.convert.left_behind", [], unnoted=("source", "written"))


CONVERT = Command(
    verb=("convert",),
    arguments={"source": "in.safetensors", "destination": "out.safetensors"},
    needed=("--to", "diffusers"),
    boundary=converting,
    arrives={
        "convert.source": "in.safetensors",
        "convert.destination": Path("out.safetensors"),
        "convert.to": "diffusers",
        "convert.dtype": None,
        "convert.gguf_type": None,
        "convert.overwrite": False,
        "convert.quantization": None,
        "opening.config": None,
        "opening.prediction": None,
        "opening.zero_terminal_snr": None,
        "opening.ema": False,
        "opening.variant": None,
        "opening.prefer_plain": True,
        "opening.allow_pickle": False,
        "files": [],
    },
    cases=(
        case("--to", "ldm", convert__to="ldm"),
        case("--dtype", "q8_0", refused="write GGUF instead"),
        case("--type", "bf16", convert__dtype=torch.bfloat16),
        case("--dtype", "f32", convert__dtype=torch.float32),
        case("--dtype", "f16", convert__dtype=torch.float16),
        case("--dtype", "bf16", convert__dtype=torch.bfloat16),
        case("--ema", opening__ema=True),
        case("--prediction", "v", opening__prediction="v"),
        case("--allow-pickle", opening__allow_pickle=True),
        case("--overwrite", convert__overwrite=True),
    ),
)


def quantizing(at: Boundary) -> None:
    """The library is met where it writes; what it measures before is another's."""
    converting(at)

    def measured(console: Any, source: str, rules: Quantization, count: int, prompt: str) -> Quantization:
        at.arrived |= {"measured": (source, count, prompt)}
        return rules.keeping(["measured"])

    at.patch.setattr("undertow.cli.quantize._measured", measured)


EVERY = Quantization(rules=(("*", "int8-weights"),))
QUANTIZE = Command(
    verb=("quantize",),
    arguments={"model": "in.safetensors", "destination": "out.safetensors"},
    needed=("--to", "int8-weights"),
    boundary=quantizing,
    arrives={
        **{place: value for place, value in CONVERT.arrives.items() if place != "convert.to"},
        "convert.to": "ldm",
        "convert.quantization": EVERY,
    },
    cases=(
        case("--to", "int8-dynamic", convert__quantization=Quantization(rules=(("*", "int8-dynamic"),))),
        case("--to", "float8", convert__quantization=Quantization(rules=(("*", "float8"),))),
        case("--to", "int4", refused="int8-weights"),
        case("--keep", "vae.*", "--keep", "*.proj_in", convert__quantization=EVERY.keeping(["vae.*", "*.proj_in"])),
        case(
            *("--keep-most-sensitive", "3", "--prompt", "an apple"),
            measured=("in.safetensors", 3, "an apple"),
            convert__quantization=EVERY.keeping(["measured"]),
        ),
        case("--dtype", "f32", convert__dtype=torch.float32),
        case("--dtype", "f16", convert__dtype=torch.float16),
        case("--dtype", "bf16", convert__dtype=torch.bfloat16),
        case("--overwrite", convert__overwrite=True),
    ),
)


TO_GGUF = Command(
    verb=("convert",),
    about="to GGUF",
    arguments={"source": "in.safetensors", "destination": "out.gguf"},
    needed=("--to", "gguf"),
    boundary=converting,
    arrives=CONVERT.arrives | {"convert.destination": Path("out.gguf"), "convert.to": "gguf"},
    cases=(
        *(case("--type", name, convert__gguf_type=name) for name in QUANTIZED),
        case("--dtype", "f16", convert__dtype=torch.float16),
    ),
)


def extracting(at: Boundary) -> None:
    """Both models are loaded alike: what arrives is noted of the second."""
    for name in ("in.safetensors", "tuned.safetensors"):
        Path(name).touch()
    at.stand_in("undertow.cli.extract.require_destination")
    at.stand_in("undertow.loading.load", SimpleNamespace(model=None))
    at.stand_in("undertow.adapters.lora.beside.differences_beside", (), unnoted=("base", "tuned"))
    at.stand_in("undertow.adapters.lora.beside.without_text", "", unnoted=("base", "tuned"))
    at.stand_in("undertow.adapters.lora.extraction.networks_of", unnoted=("model", "text"))
    found = SimpleNamespace(updates={"unet": {"conv_in": None}}, kept=0.5, left_out=(), ranks=(4,))
    at.stand_in("undertow.adapters.lora.extraction.extract_lora", found, unnoted=("base", "tuned", "beside"))
    at.stand_in("undertow.adapters.lora.extraction.as_lora", unnoted=("extracted", "base", "tuned"))

    def written(lora: Any, path: Path, **named: Any) -> None:
        path.touch()

    at.stand_in("undertow.adapters.lora.write.write_lora", written, unnoted=("lora",))


EXTRACT = Command(
    verb=("extract",),
    arguments={"base": "in.safetensors", "tuned": "tuned.safetensors", "destination": "made.safetensors"},
    boundary=extracting,
    arrives={
        **LOADED,
        "load.source": "tuned.safetensors",
        "load.quantize": "none",
        "require_destination.destination": Path("made.safetensors"),
        "require_destination.form": "ldm",
        "require_destination.overwrite": False,
        "extract_lora.rank": 32,
        "as_lora.title": "made",
        "write_lora.path": Path("made.safetensors"),
        "write_lora.format": "kohya",
        "write_lora.dtype": torch.float16,
        "files": ["made.safetensors"],
    },
    cases=(
        case("--rank", "8", extract_lora__rank=8),
        case("--rank", "0", refused="1"),
        case("--format", "peft", write_lora__format="peft"),
        case("--overwrite", require_destination__overwrite=True),
    ),
)


def inspecting(at: Boundary) -> None:
    stage = StageShape(name="conv_in", kind="Conv2d", input=(1,), output=(1,))
    at.stand_in("undertow.inspection.trace.trace_shapes", [stage])
    at.patch.setattr("undertow.adapters.state.injection_points", noting(at, "ports", ()))
    at.stand_in("undertow.cli.inspect_attention.show_attention", unnoted=("console",))
    at.stand_in("undertow.checkpoints.report.report_on", stop, apart=("opening",))
    at.patch.setattr("undertow.adapters.lora.lora_file.describe_lora", described(at))
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, "model.safetensors")
    pair = {f"lora_unet_conv_in.lora_{end}.weight": torch.zeros(2, 2) for end in ("up", "down")}
    save_file(pair, "lora.safetensors")


def noting(at: Boundary, place: str, gives: Any) -> Any:
    """A function of anything, of which it counts that it was called."""

    def call(*_: Any) -> Any:
        at.arrived[place] = True
        return gives

    return call


def described(at: Boundary) -> Any:
    """Notes the file, and the family of what it is held against."""

    def call(source: Any, targets: Any) -> None:
        at.arrived |= {"lora": source, "held against": None if targets is None else targets.family}
        stop()

    return call


TRACED = {"trace_shapes.config": UNetConfig.cifar10(), "trace_shapes.batch": 1, "trace_shapes.size": None}
PRESET = Command(
    verb=("inspect",),
    arguments={"model": "cifar10"},
    boundary=inspecting,
    arrives={"files": []},
    cases=(
        case("--trace", **{name.replace(".", "__"): value for name, value in TRACED.items()}),
        case("--ports", ports=True),
        case("--attention", show_attention__config=UNetConfig.cifar10(), show_attention__size=None),
        case(
            "--attention", "--size", "24x16", show_attention__config=UNetConfig.cifar10(), show_attention__size=(16, 24)
        ),
    ),
)
TRACE = Command(
    verb=("inspect",),
    about="traced",
    arguments={"model": "cifar10"},
    needed=("--trace",),
    boundary=inspecting,
    arrives={**TRACED, "files": []},
    cases=(
        case("--batch", "3", trace_shapes__batch=3),
        case("--size", "16x24", trace_shapes__size=(24, 16)),
        case("--ports", ports=True),
    ),
)
FILE = Command(
    verb=("inspect",),
    about="a file",
    arguments={"model": "model.safetensors"},
    boundary=inspecting,
    arrives={
        "report_on.source": "model.safetensors",
        "report_on.validate": False,
        "opening.config": None,
        "opening.prediction": None,
        "opening.zero_terminal_snr": None,
        "opening.ema": False,
        "opening.variant": None,
        "opening.prefer_plain": False,
        "opening.allow_pickle": False,
        "files": [],
    },
    cases=(
        case("--validate-weights", report_on__validate=True),
        case("--allow-pickle", opening__allow_pickle=True),
    ),
)
LORA = Command(
    verb=("inspect",),
    about="a LoRA",
    arguments={"model": "lora.safetensors"},
    boundary=inspecting,
    arrives={"lora": "lora.safetensors", "held against": None, "files": []},
    cases=(case("--model", "sdxl", **{"held against": "Stable Diffusion XL"}),),
)


def listing(at: Boundary) -> None:
    def inside(folder: Path, top: Path, found: str) -> list[Any]:
        at.arrived |= {"folder": folder, "top": top, "found": found}
        return []

    at.patch.setattr("undertow.cli.models._inside", inside)


LIST = Command(
    verb=("models",),
    arguments={"folder": "."},
    boundary=listing,
    arrives={"folder": Path(), "top": Path(), "found": "FOLDER", "files": []},
)

COMMANDS = (CONVERT, TO_GGUF, QUANTIZE, EXTRACT, PRESET, TRACE, FILE, LORA, LIST)
