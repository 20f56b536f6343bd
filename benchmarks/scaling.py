"""What a forward of the SD1.5-size U-Net costs, against pixels, rows, adapters, tokens and threads.

    python -m benchmarks.scaling [--repeats 3] [--dtype bfloat16] [--page docs/results/scaling.md] [--machine NAME]

Random weights; the points of one axis are timed in turn, and the table has their medians. The exponent p is that of
the power law t ~ x^p through all points of an axis (least squares of the logarithms): 1 is proportional, 0 costs
nothing. Beside the page a JSON file keeps what a fleet is simulated from (benchmarks.fleet): a step, what LoRA add,
decoding, and a LoRA from its file into a slot.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.lib.networks import random_weights
from benchmarks.lib.timing import interleaved_medians, native_types
from benchmarks.lora import SITES, random_lora
from recipes.emoji.sections import replace_section
from undertow import AdapterCapacity, UNet, UNetConfig
from undertow.adapters.lora.bank import Bank
from undertow.adapters.lora.lora_file import read_lora
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates
from undertow.unet.conditioning import Conditioning, Ports
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig

CELL, TOKENS, RANK = 8, 77, 16
SIDE, SIDES = 256, (128, 192, 256, 384, 512)
ADAPTED_ROWS = 8

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """name: of what grows. unit: of its values."""

    name: str
    unit: str
    seconds: dict[float, float]

    @property
    def exponent(self) -> float:
        values = {value: seconds for value, seconds in self.seconds.items() if value > 0}
        return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=native_types()[-1])
    parser.add_argument("--page", type=Path, help="replace its section `measured`, and draw the plot beside it")
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        axes, costs = measured(getattr(torch, options.dtype), options.repeats)
    table = "\n".join(lines(axes))
    print(table, costs, sep="\n\n")
    if options.page is not None:
        command = f"`python -m benchmarks.scaling --repeats {options.repeats} --dtype {options.dtype}`"
        head = f"{command}, {datetime.now(UTC):%Y-%m-%d}, {options.machine}, torch {torch.__version__}"
        plot(axes, options.page.with_suffix(".png"))
        kept = {"machine": options.machine, "dtype": options.dtype, **costs}
        options.page.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        page = replace_section(options.page.read_text(encoding="utf-8"), "measured", f"{head}\n\n{table}")
        options.page.write_text(page, encoding="utf-8")


def measured(dtype: torch.dtype, repeats: int) -> tuple[list[Axis], dict[str, float]]:
    """The axes, and the costs of a fleet. One thread but where threads are what grows."""
    unet = random_weights(UNet, UNetConfig.sd15()).to(dtype)
    assert isinstance(unet, UNet)
    axes = []

    def axis(name: str, unit: str, runs: dict[float, Run]) -> dict[float, float]:
        found = interleaved_medians({str(value): run for value, run in runs.items()}, repeats)
        axes.append(Axis(name=name, unit=unit, seconds={value: found[str(value)] for value in runs}))
        print(name, {value: round(seconds, 3) for value, seconds in axes[-1].seconds.items()}, flush=True)
        return axes[-1].seconds

    pixels = axis("pixels", "pixels of 2 rows", {side**2: call(unet, side=side) for side in SIDES})
    axis("rows", f"rows, {SIDE} px", {rows: call(unet, rows=rows) for rows in (1, 2, 4, 8)})
    axis(
        "tokens", f"tokens of 2 rows, {SIDE} px", {tokens: call(unet, tokens=tokens) for tokens in (77, 154, 308, 616)}
    )
    most = os.cpu_count() or 1
    threads = [count for count in (1, 2, 4, 8, 16) if count <= most]
    if len(threads) > 1:
        axis("threads", f"threads, 2 rows, {SIDE} px", {count: in_threads(call(unet), count) for count in threads})
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{index}.safetensors") for index in range(ADAPTED_ROWS + 1)]
        for file in files:
            save_file(random_lora(unet, RANK), file)
        targets = Targets.of(unet)
        sites = tuple(f"*.{site}" for site in SITES)
        bank = Bank(unet, AdapterCapacity(slots=ADAPTED_ROWS, rank=RANK, per_row=1, sites=sites))
        each = [lora(file, targets) for file in files]
        rows = axis("adapters", f"unlike LoRA in {ADAPTED_ROWS} rows, {SIDE // 2} px", dict(adapted(unet, bank, each)))
        swap = interleaved_medians({"swap": lambda: bank.assign_slots([[lora(files[-1], targets)]])}, repeats)["swap"]
    del unet
    decode = interleaved_medians({"decode": decoding(dtype)}, repeats)["decode"]
    step = pixels[SIDES[-1] ** 2]
    costs = {"step_s": step, "adapted": rows[ADAPTED_ROWS] / rows[0] - 1, "decode_s": decode, "swap_s": swap}
    return axes, {name: round(value, 4) for name, value in costs.items()}


def call(unet: UNet, *, side: int = SIDE, rows: int = 2, tokens: int = TOKENS, ports: Ports | None = None) -> Run:
    assert unet.config.context_dim is not None
    latents = torch.randn(rows, 4, side // CELL, side // CELL, dtype=unet.dtype)
    context = torch.randn(rows, tokens, unet.config.context_dim, dtype=unet.dtype)
    conditioning, timesteps = Conditioning(context=context), torch.full((rows,), 500.0)
    return lambda: unet(latents, timesteps, conditioning, ports)


def in_threads(run: Run, count: int) -> Run:
    def counted() -> None:
        torch.set_num_threads(count)
        run()
        torch.set_num_threads(1)

    return counted


def lora(file: Path, targets: Targets) -> ScaledUpdates:
    """A LoRA as it is read from a file, different from every other."""
    updates = read_lora(file, targets).updates["unet"]
    return ScaledUpdates(layers=LayerUpdates(key=object(), title=file.stem, updates=updates, factors={}), gain=1.0)


def adapted(unet: UNet, bank: Bank, each: Sequence[ScaledUpdates]) -> Iterator[tuple[float, Run]]:
    """Each row with one of so many LoRA; 0 is none at all."""
    side = SIDE // 2
    yield 0, call(unet, side=side, rows=ADAPTED_ROWS)
    for count in (1, 2, 4, 8):
        rows = [[each[row * count // ADAPTED_ROWS]] for row in range(ADAPTED_ROWS)]
        yield count, call(unet, side=side, rows=ADAPTED_ROWS, ports=Ports(weights=bank.assign_slots(rows)))


def decoding(dtype: torch.dtype) -> Run:
    """A picture of the largest size, by Stable Diffusion's autoencoder."""
    vae = random_weights(AutoencoderKL, VAEConfig.sd()).to(dtype)
    assert isinstance(vae, AutoencoderKL)
    latents = torch.randn(1, 4, SIDES[-1] // CELL, SIDES[-1] // CELL, dtype=dtype)
    return lambda: vae.decode(latents)


def lines(axes: list[Axis]) -> Iterator[str]:
    yield "| what grows | seconds | exponent |"
    yield "|---|---|---|"
    for axis in axes:
        points = ", ".join(f"{value:,.0f}: {seconds:.3f}" for value, seconds in axis.seconds.items())
        yield f"| {axis.unit} | {points} | {axis.exponent:.2f} |"


def plot(axes: list[Axis], path: Path) -> None:
    figure, panels = plt.subplots(1, len(axes), figsize=(3.2 * len(axes), 3.2), sharey=True, layout="constrained")
    for panel, axis in zip(panels, axes, strict=True):
        points = {value: seconds for value, seconds in axis.seconds.items() if value > 0}
        panel.loglog(list(points), list(points.values()), marker="o")
        panel.set_xticks(list(points), [f"{value:,.0f}" for value in points], rotation=45)
        panel.minorticks_off()
        panel.set_title(f"{axis.name}: exponent {axis.exponent:.2f}")
        panel.set_xlabel(axis.unit)
    panels[0].set_ylabel("seconds of a forward")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_yticks([0.25, 0.5, 1, 2, 4])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
