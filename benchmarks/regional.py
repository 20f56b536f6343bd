"""What compiling the repeated blocks of a U-Net costs and gives, beside compiling all of it in one graph.

    python -m benchmarks.regional [--networks emoji sd15] [--dtype float32 bfloat16] [--repeats 9]

blocks: every residual block and every transformer block is a graph of its own, made once for all blocks of a shape, as
diffusers' `compile_repeated_blocks` does; what lies between is computed eagerly. whole: one graph, as
`backend="compile"` makes. Random weights at SD1.5's size, 256 pixels; two rows, one thread. Each line of the table is a
process of its own that begins with an empty cache: seconds of the first call, then those of an eager forward and of a
compiled one, in turn, medians.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch._dynamo import config as dynamo

import undertow
from benchmarks.lib.peer_networks import diffusers_network, ours_by, random_inputs, undertow_network
from benchmarks.lib.timing import interleaved_medians, native_types
from undertow import UNet
from undertow.nn.resnet import ResBlock
from undertow.nn.transformer import TransformerBlock
from undertow.unet.compiled import GRAPHS, CompiledUNet
from undertow.unet.presets import PRESETS

ROWS = 2
CELLS = {"emoji": 16, "sd15": 32}
WAYS = ("whole", "blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CELLS, default=["emoji", "sd15"])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=native_types())
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give 1 or more")
    every = list(product(options.networks, options.dtype, options.ways))
    if options.one:
        print(measure(*every[0], options.repeats), flush=True)
        return
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, median of {options.repeats}\n")
    print("| network | type | graphs of | first call s | eager ms | compiled ms | ratio | difference |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for network, dtype, way in every:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "benchmarks.regional", "--one", "--networks", network]
            command += ["--dtype", dtype, "--ways", way, "--repeats", str(options.repeats)]
            alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
            subprocess.run(command, check=True, env=os.environ | alone)


@torch.inference_mode()
def measure(network: str, dtype_name: str, way: str, repeats: int) -> str:
    """One line of the table."""
    torch.set_num_threads(1)
    dtype = getattr(torch, dtype_name)
    eager, blocks = built(network, dtype), built(network, dtype)
    given = random_inputs(eager.config, ROWS, CELLS[network], torch.device("cpu")).to(dtype)
    compiled: Callable[..., Tensor] = CompiledUNet.of(blocks) if way == "whole" else by_blocks(blocks)
    runs = {"eager": ours_by(eager, given), "compiled": ours_by(compiled, given)}
    expected = runs["eager"]()
    start = time.perf_counter()
    with dynamo.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
        found = runs["compiled"]()
        first = time.perf_counter() - start
        medians = interleaved_medians(runs, repeats)
    apart = float((found.float() - expected.float()).norm() / expected.float().norm())
    plain, fast = medians["eager"], medians["compiled"]
    figures = (f"{first:.0f}", f"{1000 * plain:.1f}", f"{1000 * fast:.1f}", f"{fast / plain:.2f}", f"{apart:.1e}")
    return f"| {' | '.join((network, dtype_name, way, *figures))} |"


def built(network: str, dtype: torch.dtype) -> UNet:
    """The network in channels-last memory."""
    if network == "emoji":
        return undertow.load("emoji", dtype=dtype).model.require_unet()
    config = PRESETS[network]()
    return undertow_network(config, diffusers_network(config, torch.device("cpu"), dtype), share=True)


def by_blocks(unet: UNet) -> UNet:
    """The same network, its blocks compiled."""
    for block in unet.modules():
        if isinstance(block, ResBlock | TransformerBlock):
            block.compile(fullgraph=True, dynamic=False)
    return unet


if __name__ == "__main__":
    main()
