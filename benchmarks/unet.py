"""Times U-Nets of published sizes against diffusers' in the same run, interleaved.

Random weights, two rows, 77 tokens, one thread; float32, and bfloat16 where the processor has it, eager and compiled
(inductor, with the weights of both frozen into the graph). Both get channels-last memory; diffusers is also timed
without it where nothing is compiled, and its faster layout counts. Prints a Markdown table: medians, ratio, achieved
GFLOP/s, relative difference of outputs.

    python -m benchmarks.unet [--network sd15 sdxl] [--pixels 256 512] [--mode eager packed compile openvino]
        [--dtype float32 bfloat16] [--repeats 9] [--mkl]

packed: undertow's network with packed weights beside diffusers' eager one. openvino: the same beside OpenVINO's of
diffusers' network, with the same weights and precision (`make bench-openvino`); at SDXL's size that takes more than
24 GiB.

--mkl: undertow's float32 products by MKL as well, which shows what the choice of oneDNN on AMD processors contributes.

Each row of the table is a process of its own, so that compilers and allocators start alike.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib.peer_networks import (
    Inputs,
    contiguous,
    diffusers_network,
    ours_by,
    random_inputs,
    theirs_by,
    undertow_network,
)
from benchmarks.lib.timing import interleaved_medians, native_types
from undertow import UNet
from undertow.nn import matmul
from undertow.unet.compiled import CompiledUNet, Graphs
from undertow.unet.packed import PackedNetworks
from undertow.unet.presets import PRESETS

ROWS = 2
COLUMNS = (
    *("network", "pixels", "mode", "type"),
    *("undertow s", "peer s", "ratio", "undertow GFLOP/s", "peer GFLOP/s", "difference"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=["sd15", "sdxl"], default=["sd15"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[256], help="side of a picture, a multiple of 64")
    parser.add_argument(
        "--mode", nargs="+", choices=["eager", "packed", "compile", "openvino"], default=["eager", "compile"]
    )
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=native_types())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--mkl", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give 1 or more")
    for side in options.pixels:
        if side < 64 or side % 64:
            parser.error(f"--pixels {side}: give a multiple of 64")
    if "openvino" in options.mode and "sdxl" in options.network:
        parser.error(
            "--network sdxl --mode openvino: their weights take more than 24 GiB together; give --network sd15"
        )
    every = list(product(options.network, options.pixels, options.mode, options.dtype))
    if options.one:
        if options.mkl:
            matmul.onednn_is_faster = lambda: False
        print(compare(*every[0], options.repeats), flush=True)
        return
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, median of {options.repeats}\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    for network, side, mode, dtype in every:
        command = [sys.executable, "-m", "benchmarks.unet", "--one", "--network", network, "--pixels", str(side)]
        command += ["--mode", mode, "--dtype", dtype, "--repeats", str(options.repeats), *["--mkl"] * options.mkl]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


@torch.inference_mode()
def compare(network: str, side: int, mode: str, dtype_name: str, repeats: int) -> str:
    """One row of the table."""
    torch.set_num_threads(1)
    config, dtype, device = PRESETS[network](), getattr(torch, dtype_name), torch.device("cpu")
    given = random_inputs(config, ROWS, side // 8, device).to(dtype)
    theirs = diffusers_network(config, device, dtype).to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        theirs_by(theirs, given)()
    runs = {"undertow": ours_by(prepared(undertow_network(config, theirs, share=True), mode), given)}
    if mode == "openvino":
        runs["peer"] = openvino(theirs, given)
    elif mode == "compile":
        runs["peer"] = theirs_by(frozen(theirs), given)
    else:
        runs["peer"] = theirs_by(theirs, given)
        runs["contiguous"] = theirs_by(contiguous(theirs), given)
    return row((network, str(side), mode, dtype_name), counter.get_total_flops(), runs, repeats)


def row(titles: tuple[str, ...], flops: int, runs: dict[str, Callable[[], Tensor]], repeats: int) -> str:
    outputs = {name: run().float() for name, run in runs.items()}
    difference = ((outputs["undertow"] - outputs["peer"]).norm() / outputs["peer"].norm()).item()
    medians = interleaved_medians(runs, repeats)
    mine = medians.pop("undertow")
    best = min(medians.values())
    rates = (f"{flops / seconds / 1e9:.0f}" for seconds in (mine, best))
    figures = (*titles, f"{mine:.3f}", f"{best:.3f}", f"{mine / best:.2f}", *rates, f"{difference:.1e}")
    return f"| {' | '.join(figures)} |"


def prepared(unet: UNet, mode: str) -> UNet | CompiledUNet:
    """As undertow computes it in this mode."""
    match mode:
        case "eager":
            return unet
        case "compile":
            return CompiledUNet.of(unet, Graphs(freeze=True))
        case _:
            return CompiledUNet.of(unet, PackedNetworks())


def frozen(unet: nn.Module) -> Callable[..., tuple[Tensor]]:
    """diffusers' network compiled as `CompiledUNet` is with `freeze`: Dynamo must see the switch while it traces."""
    import torch._inductor.config as inductor

    compiled = torch.compile(unet, fullgraph=True, dynamic=False)

    def run(*inputs, **settings):
        with inductor.patch(freezing=True):
            return compiled(*inputs, **settings)

    return run


def openvino(unet: nn.Module, given: Inputs) -> Callable[[], Tensor]:
    """OpenVINO's network of the same weights, one thread; from float32, as it converts them itself."""
    import openvino as ov

    hint = "bf16" if given.latents.dtype == torch.bfloat16 else "f32"
    plain = given.to(torch.float32)
    assert plain.conditioning.context is not None
    inputs = (plain.latents, plain.timesteps, plain.conditioning.context)

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet.float()

        def forward(self, latents, timesteps, context):
            return self.unet(latents, timesteps, context, return_dict=False)[0]

    model = ov.convert_model(Call(), example_input=inputs, input=[list(one.shape) for one in inputs])
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    arrays = [one.numpy() for one in inputs]
    return lambda: torch.from_numpy(request.infer(arrays)[0])


if __name__ == "__main__":
    main()
