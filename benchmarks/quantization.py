"""What int8 weights save and cost: memory, seconds, predictions and pictures, beside float32 and bfloat16.

    python -m benchmarks.quantization [--parts layers emoji sd15 sdxl] [--prompts 200] [--repeats 5]
        [--page docs/results/compression.md --machine "..."]

One thread. layers: single products, beside torchao's. emoji: the embedded model. sd15, sdxl: U-Nets of these sizes with
random weights, each precision in a process of its own, at 256 pixels. Each part is kept in out/quantization, so that
they can be measured one by one; --page writes the section `quantized` of what there is.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import undertow
from benchmarks.lib.allocations import peak_bytes
from benchmarks.lib.quantized_networks import inputs, random_unet
from benchmarks.lib.timing import interleaved_medians
from recipes.emoji.evaluate import kinds
from recipes.emoji.recognize import recognize
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.scenes import Scene
from recipes.emoji.sections import replace_section, section
from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.read.loading import build_on_meta
from undertow.checkpoints.write.convert import convert
from undertow.embedded import located
from undertow.engine.limits import BatchLimits
from undertow.engine.request import GenerationRequest
from undertow.extras import is_installed
from undertow.inspection.noisy_picture import NoisyPicture
from undertow.inspection.sensitivity import measure_error, measure_sensitivity, most_sensitive
from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.machine import this_machine
from undertow.memory.work import Subject, Work
from undertow.nn.quantized import QuantizedLinear
from undertow.quantization import Quantization, QuantizedWeights, Scheme, as_quantization
from undertow.shortage import size_in_words
from undertow.unet.unet import UNet

KEPT = Path("out/quantization")
PARTS = ("layers", "emoji", "sd15", "sdxl")
SIDE = 32
"""Cells of a picture of 256 pixels."""

SHAPES = ((2, 1280, 320), (128, 192, 192), (154, 768, 320), (2048, 320, 320), (512, 1280, 1280), (512, 1280, 10240))
"""Rows, inputs and outputs of products of the emoji model, SD 1.5 and SDXL."""

SCHEMES: tuple[Scheme, ...] = ("int8-weights", "int8-dynamic")
PRECISIONS: Mapping[str, tuple[str, Scheme | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    **{f"{scheme}, float32": ("float32", scheme) for scheme in SCHEMES},
    **{f"{scheme}, bfloat16": ("bfloat16", scheme) for scheme in SCHEMES},
}
"""By what the table calls them: the type of all that is not quantized, and the scheme."""

SENSITIVE = 8
STEPS = 20
PROMPT = "a red apple on a white background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=200, help="of each kind: one emoji, and two")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, help="replace its section `quantized`")
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        name, precision, place = options.one
        one_network(name, precision, options.repeats, Path(place))
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        rows = measure(part, options.prompts, options.repeats)
        own = f"--parts {part}" + (f" --prompts {options.prompts}" if part == "emoji" else "")
        about = {
            "command": f"OMP_NUM_THREADS=1 python -m benchmarks.quantization {own} --repeats {options.repeats}",
            "machine": options.machine,
            "date": date.today().isoformat(),
        }
        write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", KEPT / f"{part}.json")
    text = page_section({part: KEPT / f"{part}.json" for part in PARTS if (KEPT / f"{part}.json").is_file()})
    print(text)
    if options.page is not None:
        page = options.page.read_text(encoding="utf-8")
        changed = replace_section(page, "quantized", text)
        write_text(
            changed if section("quantized", text) in changed else f"{page}\n{section('quantized', text)}\n",
            options.page,
        )


def measure(part: str, prompts: int, repeats: int) -> list[dict[str, Any]]:
    match part:
        case "layers":
            return products(repeats)
        case "emoji":
            return emoji(prompts, repeats)
        case _:
            return networks(part, repeats)


# Single products


@torch.inference_mode()
def products(repeats: int) -> list[dict[str, Any]]:
    """Seconds of products: plain, with our layers, and with torchao's where it is installed (pip install torchao)."""
    rows: list[dict[str, Any]] = []
    for cells, inputs_, outputs in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            layer = nn.Linear(inputs_, outputs).to(dtype)
            x = torch.randn(cells, inputs_).to(dtype)
            times = max(1, int(2e8 / (cells * inputs_ * outputs)))
            runs = {name: _repeated(run, x, times) for name, run in _layers(layer).items()}
            seconds = interleaved_medians(runs, 2 * repeats)
            found = {name: 1e3 * one / times for name, one in seconds.items()}
            rows.append({"shape": [cells, inputs_, outputs], "dtype": str(dtype).removeprefix("torch."), "ms": found})
            print(rows[-1], flush=True)
    return rows


def _repeated(run: Callable[[Tensor], Tensor], x: Tensor, times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            run(x)

    return repeated


def _layers(layer: nn.Linear) -> dict[str, Callable[[Tensor], Tensor]]:
    found: dict[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: F.linear(x, layer.weight, layer.bias)}
    found |= {scheme: QuantizedLinear.of(layer, scheme) for scheme in SCHEMES}
    if is_installed("torchao"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchao: Any = import_module("torchao.quantization")
        configs = {
            "int8-weights": torchao.Int8WeightOnlyConfig(),
            "int8-dynamic": torchao.Int8DynamicActivationInt8WeightConfig(),
        }
        for scheme, config in configs.items():
            copied = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
            copied.load_state_dict(layer.state_dict())
            theirs = nn.Sequential(copied)
            torchao.quantize_(theirs, config)
            found[f"torchao {scheme}"] = theirs
    return found


# The embedded model


def emoji(prompts: int, repeats: int) -> list[dict[str, Any]]:
    """Every way to load `emoji`: bytes in memory and on disk, seconds of a picture, and what its pictures show."""
    glyphs = Glyphs(FONT)
    glyphs.require()
    one, _, two = kinds(prompts)
    plain = undertow.load("emoji", dtype=torch.float32)
    probe = NoisyPicture.draw(plain.model, plain.adapters, GenerationRequest(prompt=PROMPT, steps=STEPS, seed=1))
    ways: dict[str, tuple[torch.dtype, Quantization | None]] = {
        "float32": (torch.float32, None),
        "bfloat16": (torch.bfloat16, None),
    }
    for scheme in SCHEMES:
        every = Quantization(rules=(("*", scheme),))
        kept = every.keeping(most_sensitive(measure_sensitivity(probe, scheme), SENSITIVE))
        ways[f"{scheme}, float32"] = (torch.float32, every)
        ways[f"{scheme}, float32, {SENSITIVE} layers kept"] = (torch.float32, kept)
        ways[f"{scheme}, bfloat16"] = (torch.bfloat16, every)
    services = {name: undertow.load("emoji", dtype=dtype, quantize=rules) for name, (dtype, rules) in ways.items()}
    seconds = interleaved_medians(
        {
            name: lambda service=service: service.generate(PROMPT, steps=STEPS, seed=1)
            for name, service in services.items()
        },
        repeats,
    )
    rows: list[dict[str, Any]] = []
    for name, service in services.items():
        dtype, rules = ways[name]
        right = [share_right(service, kind.scenes, glyphs) for kind in (one, two)]
        rows.append(
            {
                "name": name,
                "memory_bytes": _bytes_in_memory(service),
                "disk_bytes": _bytes_on_disk(rules, dtype),
                "seconds": seconds[name],
                "error": _error(probe, service, rules if dtype == torch.float32 else None),
                "right": right,
            }
        )
        print(rows[-1], flush=True)
    return rows


def _error(probe: NoisyPicture, service: undertow.UNetService, rules: Quantization | None) -> float:
    """Of predictions on real latents, against float32."""
    if rules is not None:
        return measure_error(probe, rules)
    other = NoisyPicture(
        model=service.model,
        manager=service.adapters,
        request=probe.request,
        latents=probe.latents.to(service.unet.dtype),
        timesteps=probe.timesteps,
    )
    found, expected = (_predicted(one) for one in (other, probe))
    return float((found - expected).norm() / expected.norm())


@torch.inference_mode()
def _predicted(probe: NoisyPicture) -> Tensor:
    from undertow.engine.forward import forward

    return torch.cat([one.prediction for one in forward(probe.rows(()), probe.manager)]).double()


def share_right(service: undertow.UNetService, scenes: Sequence[Scene], glyphs: Glyphs) -> float:
    """Of pictures in which the right emoji were recognized."""
    requests = [
        GenerationRequest(prompt=scene.caption, steps=STEPS, seed=seed, sampler="dpmpp_2m", schedule="karras")
        for seed, scene in enumerate(scenes)
    ]
    results = service.generate_many(requests, limits=BatchLimits(rows=16))
    pictures = torch.stack([_pixels(one.images[0]) for one in results])
    return float(recognize(pictures, scenes, glyphs).right.float().mean())


def _pixels(image: Image.Image) -> Tensor:
    numbers = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return numbers.view(image.height, image.width, 3).permute(2, 0, 1)


def _bytes_in_memory(service: undertow.UNetService) -> int:
    model = service.model
    every = [model.require_unet(), model.require_vae(), *model.require_text().encoders]
    return sum(weight.nbytes for network in every for weight in network.parameters())


def _bytes_on_disk(rules: Quantization | None, dtype: torch.dtype) -> int:
    """Of the model written in this type."""
    with tempfile.TemporaryDirectory() as place:
        written = convert(located("emoji"), Path(place) / "model", "diffusers", dtype=dtype, quantization=rules)
        return sum(file.stat().st_size for file in written.rglob("*.safetensors"))


# U-Nets with random weights


def networks(name: str, repeats: int) -> list[dict[str, Any]]:
    """Every precision in a process of its own."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for precision in PRECISIONS:
            command = [sys.executable, "-m", "benchmarks.quantization", "--repeats", str(repeats)]
            subprocess.run([*command, "--one", name, precision, place], check=True, env=os.environ)
            rows.append(json.loads((Path(place) / "row.json").read_text(encoding="utf-8")))
            print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def one_network(name: str, precision: str, repeats: int, place: Path) -> None:
    """Weights, the forecast of a forward and what it took, its seconds, and how far it is from float32's."""
    dtype_name, scheme = PRECISIONS[precision]
    dtype: torch.dtype = getattr(torch, dtype_name)
    config = family(name).unet
    assert config is not None
    shapes = {key: tuple(one.shape) for key, one in build_on_meta(lambda: UNet(config)).state_dict().items()}
    rules = None if scheme is None else as_quantization(scheme)
    layers = {} if rules is None else rules.layers("unet", shapes)
    unet = random_unet(config, dtype, layers)
    unet_inputs = inputs(config, SIDE, dtype)
    weights = sum(one.nbytes for one in unet.parameters())
    output = unet(*unet_inputs)
    assert isinstance(output, Tensor)
    if precision == "float32":
        torch.save(output, place / "float32.pt")
    expected = torch.load(place / "float32.pt", weights_only=True).double()
    peak = peak_bytes(lambda: unet(*unet_inputs)) + _input_bytes(unet_inputs)
    seconds = interleaved_medians({"forward": lambda: unet(*unet_inputs)}, repeats)["forward"]
    quantized = (QuantizedWeights.of("unet", layers, shapes),) if layers else ()
    subject = Subject(name=name, unet=config, vae=family(name).vae, quantized=quantized)
    work = Work(size=(8 * SIDE, 8 * SIDE), dtype=dtype_name, steps=1, keep=("unet",))
    stage = forecast(subject, work, this_machine()).stage("denoise")
    row = {
        "name": precision,
        "weight_bytes": weights,
        "forecast_bytes": stage.peak_bytes,
        "measured_bytes": weights + peak,
        "seconds": seconds,
        "error": float((output.double() - expected).norm() / expected.norm()),
        "layers": len(layers),
        "share": sum(shapes[f"{one}.weight"][0] * shapes[f"{one}.weight"][1] for one in layers)
        / sum(torch.Size(shape).numel() for shape in shapes.values()),
    }
    write_text(json.dumps(row), place / "row.json")


def _input_bytes(given: tuple[Tensor, Tensor, Any]) -> int:
    latents, timesteps, conditioning = given
    every = (latents, timesteps, conditioning.context, conditioning.pooled, conditioning.time_ids)
    return sum(one.nbytes for one in every if one is not None)


# The page


def page_section(parts: Mapping[str, Path]) -> str:
    """The section of what was measured."""
    found = {part: json.loads(file.read_text(encoding="utf-8")) for part, file in parts.items()}
    lines = [INTRODUCTION]
    for part, text in (
        ("emoji", emoji_table),
        ("sd15", network_table),
        ("sdxl", network_table),
        ("layers", layer_table),
    ):
        if part in found:
            about = found[part]
            lines += [f"### {TITLES[part]}", f"`{about['command']}`, {about['date']}, {about['machine']}"]
            lines.append(text(about["rows"]))
    return "\n\n".join(lines)


TITLES = {
    "emoji": "The embedded model",
    "sd15": "The size of Stable Diffusion 1.5",
    "sdxl": "The size of SDXL",
    "layers": "Single products",
}

INTRODUCTION = """\
## Quantized

int8 weights in all linear layers, with a scale for each output; convolutions stay as they are. `int8-weights` makes
plain weights of them for each product; `int8-dynamic` rounds inputs to int8 too, with a scale for each token. "error"
is `‖prediction - float32's‖ / ‖float32's‖`."""


def emoji_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"The size that it was trained at, {STEPS} steps, guidance; error on latents of a picture of its own at three "
        "levels of noise.",
        "",
        "| weights | in memory | on disk | s a picture | error | one emoji right | two right |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, two = row["right"]
        lines.append(
            f"| {row['name']} | {size_in_words(row['memory_bytes'])} | {size_in_words(row['disk_bytes'])} "
            f"| {row['seconds']:.2f} | {row['error']:.2%} | {one:.1%} | {two:.1%} |"
        )
    return "\n".join(lines)


def network_table(rows: Sequence[Mapping[str, Any]]) -> str:
    share = next(row["share"] for row in rows if row["layers"])
    lines = [
        f"Random weights without outliers, of which {share:.0%} are in linear layers; 256x256 pixels, two rows, "
        "77 tokens, the U-Net alone; error on random latents. Peaks are of weights and activations.",
        "",
        "| weights | bytes | peak forecast | peak measured | s a forward | error |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {size_in_words(row['weight_bytes'])} | {row['forecast_bytes'] / 1e6:,.0f} MB "
            f"| {row['measured_bytes'] / 1e6:,.0f} MB | {row['seconds']:.2f} | {row['error']:.2%} |"
        )
    return "\n".join(lines)


def layer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    lines = [
        "Milliseconds of one product with a bias.",
        "",
        f"| rows, inputs, outputs | type | {' | '.join(columns)} |",
        f"|{'---|' * (2 + len(columns))}",
    ]
    for row in rows:
        figures = " | ".join(f"{row['ms'][name]:.3g}" if name in row["ms"] else "" for name in columns)
        lines.append(f"| {', '.join(map(str, row['shape']))} | {row['dtype']} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
