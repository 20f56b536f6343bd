"""What undertow does on a GPU, in one call of under eight minutes and without downloads.

    python -m benchmarks.gpu [--only SECTION ...] [--seconds 440] [--page docs/results/speed-gpu.md]
    python -m benchmarks.gpu --device cpu       # the same path with networks that take a CPU seconds

Sections: parity (every family in float16 and bfloat16 beside diffusers, both held to float32), speed (SD1.5 at 512
pixels and SDXL at 1024, one to eight rows, beside diffusers' better memory layout, eagerly and compiled), lora (a LoRA
of its own for each of eight rows), pictures (`emoji` beside float32 on the CPU, drawn together and one by one),
training (a hundred steps of the digits), memory (the forecast beside the memory that the device reserves, see
`benchmarks.cuda_memory`). Each prints Markdown; one that fails prints why, and the others go on; one that would begin
after --seconds is named and left out. The page is written again after every section.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import undertow
from benchmarks import cuda_memory
from benchmarks.lib.memory_cases import NARROW
from benchmarks.lib.peer_networks import (
    diffusers_network,
    in_type,
    ours_by,
    random_inputs,
    theirs_by,
    undertow_network,
)
from benchmarks.lib.timing import interleaved_medians
from benchmarks.lora import PLAIN, random_lora, undertow_runs
from undertow import Adapter, GenerationRequest, UNetConfig
from undertow.engine.result import GenerationResult
from undertow.training.data import Digits
from undertow.training.log import StepRecord
from undertow.training.pixel_models import train_pixel_model
from undertow.training.presets import preset
from undertow.unet.compiled import CompiledUNet, CompileMode, Graphs
from undertow.unet.config import Middle
from undertow.unet.presets import PRESETS

SECONDS = 440
FAMILIES = ("sd15", "sd15-inpaint", "instruct-pix2pix", "sd21", "sdxl", "sdxl-refiner", "ssd-1b", "vega", "cifar10")
HALVES = (torch.float16, torch.bfloat16)
ROWS = (1, 2, 4, 8)
COMPILED_ROWS = 2
LORA_ROWS, LORA_RANK = 8, 16
REQUESTS = (
    GenerationRequest(prompt="red apple on white background", seed=1, steps=8, guidance_scale=4),
    GenerationRequest(prompt="owl", seed=2, steps=10, sampler="euler_a", adapters=(Adapter("mosaic"),)),
    GenerationRequest(prompt="cat face on blue background", seed=3, steps=6, guidance_method="cfg+pag"),
    GenerationRequest(prompt="rocket", negative_prompt="moon", seed=4, steps=8, sampler="dpmpp_sde"),
)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    begun, device = time.monotonic(), torch.device(options.device)
    page = _Page(options.page, device)
    for name in options.only:
        with page.section(name):
            if time.monotonic() - begun > options.seconds:
                print(f"left out: {options.seconds:.0f} seconds are over")
                continue
            try:
                SECTIONS[name](device)
            except Exception:
                traceback.print_exc(file=sys.stdout)
        _wait(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"\n{time.monotonic() - begun:.0f} seconds in all", flush=True)


class _Page:
    """Prints sections, and keeps them as a page. path: of the page; `None` for none."""

    def __init__(self, path: Path | None, device: torch.device):
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, narrow networks"
        date = datetime.now(tz=UTC).date()
        self.path, self.text = path, f"# Speed on a GPU\n\n`python -m benchmarks.gpu`, {date}, {name}, torch "
        self.text += f"{torch.__version__}.\n"
        print(self.text, flush=True)

    def section(self, name: str) -> "_Section":
        return _Section(self, name)


class _Section:
    """What is printed within goes to the terminal and onto the page."""

    def __init__(self, page: _Page, name: str):
        self.page, self.name, self.said = page, name, _Twice(sys.stdout)
        self.redirected = redirect_stdout(self.said)

    def __enter__(self) -> None:
        self.redirected.__enter__()
        print(f"\n## {self.name}\n", flush=True)

    def __exit__(self, *error: object) -> None:
        self.redirected.__exit__(None, None, None)
        self.page.text += self.said.getvalue()
        if self.page.path is not None:
            self.page.path.write_text(self.page.text, encoding="utf-8")


class _Twice(StringIO):
    """Text that is kept, and written to another stream as it comes."""

    def __init__(self, other: object):
        super().__init__()
        self.other = other

    def write(self, text: str, /) -> int:
        self.other.write(text)  # pyright: ignore[reportAttributeAccessIssue]  a text stream
        return super().write(text)

    def flush(self) -> None:
        self.other.flush()  # pyright: ignore[reportAttributeAccessIssue]


@torch.inference_mode()
def parity(device: torch.device) -> None:
    """Distance of outputs from diffusers' in float32, relative to their norm."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print("| family | undertow float32 | undertow float16 | diffusers | undertow bfloat16 | diffusers |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, config in _families(device).items():
        theirs = diffusers_network(config, device)
        inputs = random_inputs(config, 2, 16 if device.type == "cpu" else 32, device)
        expected = theirs_by(theirs, inputs)()
        figures = [_apart(ours_by(undertow_network(config, theirs), inputs)(), expected)]
        for dtype in HALVES:
            half, rounded = in_type(theirs, dtype), inputs.to(dtype)
            figures.append(_apart(ours_by(undertow_network(config, half), rounded)(), expected))
            figures.append(_apart(theirs_by(half, rounded)(), expected))
        print("|".join(["", f" {name} ", *(f" {one:.1e} " for one in figures), ""]), flush=True)


def _families(device: torch.device) -> dict[str, UNetConfig]:
    """What is compared; on a CPU the narrow ones."""
    if device.type == "cuda":
        return {name: PRESETS[name]() for name in FAMILIES}
    names = [subject.name.removeprefix("narrow ") for subject in NARROW if "narrow" in subject.name]
    return {name: _narrow(name) for name in names}


def _narrow(name: str) -> UNetConfig:
    """Of a family; its bottleneck is as deep as the level above it, since diffusers knows no other."""
    config = next(subject.unet for subject in NARROW if subject.name == f"narrow {name}")
    assert config is not None
    last = config.levels[-1].attention
    return config if last is None else replace(config, middle=Middle(attention=last))


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@torch.inference_mode()
def speed(device: torch.device) -> None:
    """Milliseconds of a forward, in turn, with the wait for the device; diffusers in its better memory layout."""
    print("| network | mode | type | rows | undertow ms | diffusers ms | ratio |\n|---|---|---|---|---|---|---|")
    tiny = device.type == "cpu"
    networks = {"sd15": 16, "sdxl": 16} if tiny else {"sd15": 64, "sdxl": 128}
    for name, cells in networks.items():
        config = _narrow(name) if tiny else PRESETS[name]()
        for dtype in HALVES[1:] if tiny else HALVES:
            theirs = in_type(diffusers_network(config, device), dtype)
            ours, last = undertow_network(config, theirs), in_type(theirs, dtype)
            last = last.to(memory_format=torch.channels_last)
            counts = (1, 2) if tiny else ROWS if dtype is torch.float16 else (COMPILED_ROWS,)
            for rows in counts:
                inputs = random_inputs(config, rows, cells, device).to(dtype)
                peers = {"contiguous": theirs_by(theirs, inputs), "channels last": theirs_by(last, inputs)}
                _compare(f"{name} | eager | {dtype} | {rows}", ours_by(ours, inputs), peers, device)
            if dtype is torch.float16:
                inputs = random_inputs(config, COMPILED_ROWS, cells, device).to(dtype)
                modes: tuple[CompileMode | None, ...] = (None, "max-autotune") if name == "sd15" else (None,)
                for mode in modes:
                    peers = {"compiled": theirs_by(torch.compile(last, fullgraph=True, mode=mode), inputs)}
                    mine = ours_by(CompiledUNet.of(ours, Graphs(mode=mode)), inputs)
                    title = "compile" if mode is None else f"compile, {mode}"
                    _compare(f"{name} | {title} | {dtype} | {COMPILED_ROWS}", mine, peers, device)


def _compare(
    title: str, mine: Callable[[], Tensor], peers: dict[str, Callable[[], Tensor]], device: torch.device
) -> None:
    medians = _medians({"undertow": mine, **peers}, device)
    own, best = medians.pop("undertow"), min(medians.values())
    title = title.replace("torch.", "")
    print(f"| {title} | {1000 * own:.2f} | {1000 * best:.2f} | {own / best:.2f} |", flush=True)


def _medians(runs: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    def waiting(run: Callable[[], object]) -> Callable[[], None]:
        def whole() -> None:
            run()
            _wait(device)

        return whole

    return interleaved_medians({name: waiting(run) for name, run in runs.items()}, 3 if device.type == "cpu" else 15)


@torch.inference_mode()
def lora(device: torch.device) -> None:
    """Seconds of a batch in which every row has a LoRA of its own, beside the plain batch."""
    config = _narrow("sd15") if device.type == "cpu" else PRESETS["sd15"]()
    rows, cells = (2, 16) if device.type == "cpu" else (LORA_ROWS, 64)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    unet = undertow_network(config, diffusers_network(config, device))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{row}.safetensors" for row in range(rows)]
        for path in paths:
            save_file(random_lora(unet, LORA_RANK), path)
        unet = unet.to(dtype)
        given = random_inputs(config, rows, cells, device).to(dtype)
        runs = undertow_runs(unet, paths, LORA_RANK, (given.latents, given.timesteps, given.conditioning))
        chosen = {name: runs[name] for name in (PLAIN["undertow"], "undertow: a LoRA for each row")}
        plain, mixed = _medians(chosen, device).values()
    print(f"{rows} rows at {8 * cells} pixels, {str(dtype).removeprefix('torch.')}, rank {LORA_RANK}: plain")
    print(f"{1000 * plain:.2f} ms, a LoRA for each row {1000 * mixed:.2f} ms, {100 * (mixed / plain - 1):+.1f} %")


def pictures(device: torch.device) -> None:
    """Largest and mean difference of 8-bit levels from float32 on the CPU, and of drawing together from one by one."""
    expected = [_levels(result) for result in undertow.load("emoji", dtype=torch.float32).generate_many(REQUESTS)]
    print("| type | request | largest difference from the CPU's | mean | from drawing together, largest |")
    print("|---|---|---|---|---|")
    for dtype in (torch.float32,) if device.type == "cpu" else (torch.float32, *HALVES):
        service = undertow.load("emoji", dtype=dtype, device=device)
        together = [_levels(result) for result in service.generate_many(REQUESTS)]
        for request, mine, reference in zip(REQUESTS, together, expected, strict=True):
            apart = np.abs(_levels(service.run(request)) - mine).max()
            difference = np.abs(mine - reference)
            kind = str(dtype).removeprefix("torch.")
            print(f"| {kind} | {request.prompt} | {difference.max()} | {difference.mean():.2f} | {apart} |", flush=True)


def _levels(result: GenerationResult) -> np.ndarray:
    return np.asarray(result.images[0]).astype(int)


def training(device: torch.device) -> None:
    """Seconds of a hundred steps from start to end, and the last loss."""
    data, steps = Digits(), 2 if device.type == "cpu" else 100
    config = replace(preset(data, data.open(), "flow"), steps=steps, sample_every=steps, checkpoint_every=steps)
    records: list[StepRecord] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        train_pixel_model(config, Path(folder) / "run", cpu=device.type == "cpu", on_record=records.append)
    print(f"{time.perf_counter() - started:.1f} s for {steps} steps; {records[-1]}", flush=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


SECTIONS: dict[str, Callable[[torch.device], None]] = {
    "parity": parity,
    "speed": speed,
    "lora": lora,
    "pictures": pictures,
    "training": training,
    "memory": cuda_memory.calibration,
}


if __name__ == "__main__":
    main()
