"""Times the SD1.5-size U-Net forward against diffusers' in the same run, interleaved.

Random weights, 256 pixels (32x32 latents), two rows, 77 tokens, one thread; float32, and bfloat16 where the processor
has it, eager and compiled (inductor, with the weights of both frozen into the graph). Both get channels-last memory;
diffusers is also timed without it in eager mode and its faster layout counts. Prints a Markdown table: medians, ratio,
achieved GFLOP/s, largest relative difference of outputs.

    python benchmarks/unet.py [--mode eager packed compile openvino] [--dtype float32 bfloat16] [--repeats 9] [--mkl]

packed: undertow's network with packed weights beside diffusers' eager one. openvino: the same beside OpenVINO's of
diffusers' network, with the same weights and precision (`make bench-openvino`).

--mkl: undertow's float32 products by MKL as well, which shows what the choice of oneDNN on AMD processors contributes.

Each (mode, type) runs in a process of its own, so that compilers and allocators start alike.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable

import torch
from lib.timing import interleaved_medians, native_types
from torch.utils.flop_counter import FlopCounterMode

from undertow.nn import matmul

ROWS, CELLS, TOKENS = 2, 32, 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mode", nargs="+", choices=["eager", "packed", "compile", "openvino"], default=["eager", "compile"]
    )
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=native_types())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--mkl", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.mkl:
            matmul.onednn_is_faster = lambda: False
        print(compare(options.mode[0], getattr(torch, options.dtype[0]), options.repeats), flush=True)
        return
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, median of {options.repeats}\n")
    print("| mode | type | undertow s | peer s | ratio | undertow GFLOP/s | peer GFLOP/s | difference |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for mode in options.mode:
        for dtype in options.dtype:
            command = [sys.executable, __file__, "--one", "--mode", mode, "--dtype", dtype]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            command += ["--repeats", str(options.repeats), *["--mkl"] * options.mkl]
            subprocess.run(command, check=True, env=environment)


@torch.inference_mode()
def compare(mode: str, dtype: torch.dtype, repeats: int) -> str:
    """One row of the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    latents = torch.randn(ROWS, 4, CELLS, CELLS, dtype=dtype)
    timesteps = torch.tensor([10.0, 500.0])
    context = torch.randn(ROWS, TOKENS, 768, dtype=dtype)
    theirs = build_diffusers(dtype)
    flops = count_flops(theirs, latents, timesteps, context)
    ours = build_undertow(dtype, theirs.state_dict())
    runs = {"undertow": runner(ours, mode, latents, timesteps, context)}
    if mode == "openvino":
        runs["peer"] = openvino(theirs, latents, timesteps, context)
        return row(mode, dtype, flops, runs, repeats)
    if mode in ("eager", "packed"):
        runs["diffusers, contiguous"] = runner(theirs, mode, latents, timesteps, context)
        copy = build_diffusers(dtype)
        copy.load_state_dict(theirs.state_dict())
        theirs = copy
    theirs = theirs.to(memory_format=torch.channels_last)
    latents = latents.contiguous(memory_format=torch.channels_last)
    runs["peer"] = runner(theirs, mode, latents, timesteps, context)
    return row(mode, dtype, flops, runs, repeats)


def row(mode: str, dtype: torch.dtype, flops: int, runs: dict[str, Callable[[], torch.Tensor]], repeats: int) -> str:
    outputs = {name: run().float() for name, run in runs.items()}
    difference = ((outputs["undertow"] - outputs["peer"]).norm() / outputs["peer"].norm()).item()
    medians = interleaved_medians(runs, repeats)
    best = min(value for name, value in medians.items() if name != "undertow")
    mine = medians["undertow"]
    rates = " | ".join(f"{flops / seconds / 1e9:.0f}" for seconds in (mine, best))
    name = str(dtype).removeprefix("torch.")
    return f"| {mode} | {name} | {mine:.3f} | {best:.3f} | {mine / best:.2f} | {rates} | {difference:.1e} |"


def build_diffusers(dtype: torch.dtype):
    from diffusers import UNet2DConditionModel

    from undertow import UNetConfig
    from undertow.unet.diffusers_config import config_to_diffusers

    torch.set_default_dtype(dtype)
    unet = UNet2DConditionModel.from_config(config_to_diffusers(UNetConfig.sd15())).eval()
    torch.set_default_dtype(torch.float32)
    for parameter in unet.parameters():
        parameter.data.normal_(std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return unet


def build_undertow(dtype: torch.dtype, weights: dict[str, torch.Tensor]):
    from undertow import UNet, UNetConfig

    with torch.device("meta"):
        unet = UNet(UNetConfig.sd15())
    unet.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    assert unet.dtype == dtype
    return unet.eval().to(memory_format=torch.channels_last)


def runner(unet, mode: str, latents, timesteps, context) -> Callable[[], torch.Tensor]:
    from undertow import Conditioning, UNet
    from undertow.unet.compiled import CompiledUNet, Graphs
    from undertow.unet.packed import PackedNetworks

    if isinstance(unet, UNet):
        graphs = {"compile": lambda: Graphs(freeze=True), "packed": PackedNetworks, "openvino": PackedNetworks}
        unet = CompiledUNet.of(unet, graphs[mode]()) if mode in graphs else unet
        conditioning = Conditioning(context=context)
        return lambda: unet(latents, timesteps, conditioning)
    forward = frozen(unet) if mode == "compile" else unet
    return lambda: forward(latents, timesteps, context, return_dict=False)[0]


def frozen(unet) -> Callable[..., tuple[torch.Tensor]]:
    """diffusers' network compiled as `CompiledUNet` is with `freeze`: Dynamo must see the switch while it traces."""
    import torch._inductor.config as inductor

    compiled = torch.compile(unet, fullgraph=True, dynamic=False)

    def run(*inputs, **settings):
        with inductor.patch(freezing=True):
            return compiled(*inputs, **settings)

    return run


def openvino(unet, latents, timesteps, context) -> Callable[[], torch.Tensor]:
    """OpenVINO's network of the same weights, one thread; from float32, as it converts them itself."""
    import openvino as ov

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet.float()

        def forward(self, latents, timesteps, context):
            return self.unet(latents, timesteps, context, return_dict=False)[0]

    hint = "bf16" if latents.dtype == torch.bfloat16 else "f32"
    inputs = (latents.float(), timesteps, context.float())
    model = ov.convert_model(Call(), example_input=inputs, input=[list(one.shape) for one in inputs])
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    arrays = [one.numpy() for one in inputs]
    return lambda: torch.from_numpy(request.infer(arrays)[0])


def count_flops(unet, latents, timesteps, context) -> int:
    """Multiplications and additions of one forward."""
    with FlopCounterMode(display=False) as counter:
        unet(latents, timesteps, context)
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
