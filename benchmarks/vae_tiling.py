"""Tiled decoding beside diffusers': largest difference from the whole decode, peak memory and time for growing sizes.

Both decode the same structured latents with the same random weights (a quarter of the published widths unless --full),
in float32 and one thread, each run in a process of its own. Peak: allocator bytes from torch.profiler, weights not
counted. undertow gets budgets as parts of what its whole decode needs; diffusers gets tiles of 256 pixels. Prints a
Markdown table and writes docs/images/vae_tiling.png.

    python benchmarks/vae_tiling.py [--sizes 256 512 1024] [--full] [--picture docs/images/vae_tiling.png]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

TILE = 256
"""Pixels of a side of diffusers' tiles: a quarter of it overlaps and is blended."""

Row = dict[str, Any]

MODES = ("whole", "1/2", "1/4", "1/8", "diffusers whole", "diffusers tiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024], help="pixels of a side")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--full", action="store_true", help="the published widths: 16 times the work")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/vae_tiling.png"))
    parser.add_argument("--one", nargs=3, metavar=("MODE", "SIZE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    widths = (128, 256, 512, 512) if options.full else (32, 64, 128, 128)
    if options.one:
        mode, size, file = options.one
        print(json.dumps(measure(mode, int(size), widths, file)))
        return
    print(f"widths {widths}, float32, torch {torch.__version__}, 1 thread\n")
    print("| pixels | decode | largest difference | in 1/255 | peak MiB | predicted MiB | seconds | of whole |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for size in options.sizes for row in compare(size, options.modes, options.full, folder)]
        if tuple(options.modes) == MODES:
            draw(rows, options.sizes[min(1, len(options.sizes) - 1)], folder, options.picture)


def compare(size: int, modes: list[str], full: bool, folder: str) -> list[Row]:
    """Runs every mode and prints its line."""
    rows = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for mode in modes:
        file = f"{folder}/{mode.replace('/', '-')} {size}.pt"
        command = [sys.executable, __file__, *(["--full"] if full else []), "--one", mode, str(size), file]
        output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
        row = json.loads(output.splitlines()[-1]) | {"mode": mode, "size": size}
        whole = torch.load(f"{folder}/whole {size}.pt")
        row["difference"] = (torch.load(file) - whole).abs().max().item()
        rows.append(row)
        base = next((r for r in rows if r["mode"] == "diffusers whole"), rows[0]) if "diffusers" in mode else rows[0]
        predicted = f"{row['predicted'] / 2**20:.0f}" if row["predicted"] else ""
        print(
            f"| {size} | {mode if 'diffusers' in mode else 'undertow ' + mode} | {row['difference']:.1e} "
            f"| {row['difference'] * 127.5:.3f} | {row['peak'] / 2**20:.0f} | {predicted} "
            f"| {row['seconds']:.1f} | {row['seconds'] / base['seconds']:.2f} |",
            flush=True,
        )
    return rows


@torch.no_grad()
def measure(mode: str, size: int, widths: tuple[int, ...], file: str) -> Row:
    """One decode: time without and allocations with the profiler."""
    torch.set_num_threads(1)
    latents = structured_latents(size // 8)
    decode, predicted = decoder(mode, size, widths, latents)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        pixels = decode()
    total = peak = 0
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    for event in results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    start = time.process_time()
    decode()
    torch.save(pixels, file)
    return {"peak": peak, "predicted": predicted, "seconds": time.process_time() - start}


def decoder(mode: str, size: int, widths: tuple[int, ...], latents: Tensor) -> tuple[Callable[[], Tensor], int | None]:
    from undertow.vae.autoencoder import AutoencoderKL
    from undertow.vae.config import VAEConfig
    from undertow.vae.diffusers_config import vae_config_to_diffusers
    from undertow.vae.plan import plan_tiles, smallest_budget
    from undertow.vae.precision import decode_safely
    from undertow.vae.program import decode_program

    config = VAEConfig(level_channels=widths, sample_size=TILE)
    ours = AutoencoderKL(config).eval()
    randomize(ours)
    if mode.startswith("diffusers"):
        from diffusers import AutoencoderKL as Peer

        theirs = Peer.from_config(vae_config_to_diffusers(config)).eval()
        theirs.load_state_dict(ours.state_dict())
        if mode == "diffusers tiled":
            theirs.enable_tiling()
        return lambda: theirs.decode(latents, return_dict=False)[0], None
    program = decode_program(ours, (size // 8, size // 8))
    budget = None
    if mode != "whole":
        part = plan_tiles(program).peak_bytes // int(mode.removeprefix("1/"))
        budget = max(part, smallest_budget(program))
    predicted = plan_tiles(program, budget).peak_bytes
    return lambda: decode_safely(ours, latents, budget_bytes=budget).pixels, predicted


def randomize(network: torch.nn.Module) -> None:
    """Fills every parameter; default initialization would leave nothing to see."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        norm = isinstance(module, torch.nn.GroupNorm)
        for name, parameter in module.named_parameters(recurse=False):
            normal = torch.randn(parameter.shape, generator=generator)
            if norm and name == "weight":
                parameter.data = 1 + 0.2 * normal
            elif parameter.ndim == 1:
                parameter.data = 0.1 * normal
            else:
                parameter.data = normal * parameter[0].numel() ** -0.5


def structured_latents(cells: int) -> Tensor:
    """A slope, a disc and a little noise: parts of a picture differ, as a sky differs from a face."""
    line = torch.linspace(-1, 1, cells)
    rows, columns = line[:, None].expand(cells, cells), line[None, :].expand(cells, cells)
    disc = ((rows - 0.2).square() + (columns + 0.1).square() < 0.3).float()
    base = torch.stack((rows + columns, 2 * disc - 1, rows - columns, disc * columns * 2))
    noise = torch.randn(4, cells, cells, generator=torch.Generator().manual_seed(1))
    return (1.5 * base + 0.15 * noise)[None]


def draw(rows: list[Row], size: int, folder: str, path: Path) -> None:
    """The pictures, what tiles change in them, and memory over size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    def picture(mode: str) -> Tensor:
        return torch.load(f"{folder}/{mode.replace('/', '-')} {size}.pt")[0].permute(1, 2, 0)

    whole = picture("whole")
    low, high = (whole.quantile(part) if whole.numel() < 2**24 else whole.min() for part in (0.01, 0.99))
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.6), layout="constrained")
    for axis, mode, title in (
        (axes[0, 0], "whole", "decoded whole"),
        (axes[0, 1], "1/4", "undertow, tiled, a quarter of the memory"),
        (axes[0, 2], "diffusers tiled", f"diffusers, tiles of {TILE} pixels"),
    ):
        axis.imshow(((picture(mode) - low) / (high - low)).clamp(0, 1))
        axis.set_title(title)
    for axis, mode in ((axes[1, 1], "1/4"), (axes[1, 2], "diffusers tiled")):
        difference = (picture(mode) - whole).abs().amax(-1) * 127.5
        shown = axis.imshow(difference, vmin=0, vmax=40, cmap="magma")
        axis.set_title(f"difference from whole: at most {float(difference.max()):.2g}/255")
        figure.colorbar(shown, ax=axis, label="1/255", shrink=0.8)
    for axis in (*axes[0], *axes[1, 1:]):
        axis.set_axis_off()
    for mode in MODES:
        points = [(row["size"], row["peak"] / 2**20) for row in rows if row["mode"] == mode]
        label = mode if "diffusers" in mode else f"undertow {mode}"
        axes[1, 0].plot(*zip(*points, strict=True), "o--" if "diffusers" in mode else "o-", label=label)
    axes[1, 0].set(xlabel="pixels of a side", ylabel="peak MiB", yscale="log", xscale="log", title="memory")
    axes[1, 0].set_xticks([row["size"] for row in rows], [str(row["size"]) for row in rows])
    axes[1, 0].minorticks_off()
    axes[1, 0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
