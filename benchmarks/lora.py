"""LoRA in slots and merged, beside diffusers with PEFT, on the same U-Net and files in one run.

    python -m benchmarks.lora [--channels 320] [--side 256] [--rows 4] [--rank 16] [--repeats 3]

SD1.5's architecture with random weights, float32, one thread; --channels 32 is a quick try. Every row has a LoRA of its
own on all attention and feed-forward layers. PEFT computes one set of adapters for a whole batch, so unlike rows go one
after the other there. Swaps are from files that are in memory: into a slot, into the weights and out again, and by
PEFT's `set_adapters` and hot swap.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.lib.timing import interleaved_medians
from undertow import AdapterCapacity, UNet, UNetConfig
from undertow.adapters.lora.bank import Bank
from undertow.adapters.lora.lora_file import read_lora
from undertow.adapters.lora.merge import MergedWeights
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.diffusers_config import config_to_diffusers

Runs = dict[str, Callable[[], object]]

SITES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
PUBLISHED_CHANNELS = 320
CELL = 8
PLAIN = {"undertow": "undertow: no LoRA", "diffusers": "diffusers: no LoRA"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=PUBLISHED_CHANNELS, help="of the first level")
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = UNetConfig.sd15()
    levels = (replace(one, channels=one.channels * options.channels // PUBLISHED_CHANNELS) for one in config.levels)
    config = replace(config, levels=tuple(levels))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        unet, peer = networks(config)
        paths = [Path(folder) / f"{row}.safetensors" for row in range(options.rows)]
        for path in paths:
            save_file(random_lora(unet, options.rank), path)
        cells = options.side // CELL
        latents, timesteps = torch.randn(options.rows, 4, cells, cells), torch.full((options.rows,), 500.0)
        context = torch.randn(options.rows, 77, config.context_dim or 0)
        runs = undertow_runs(unet, paths, options.rank, (latents, timesteps, Conditioning(context=context)))
        runs |= diffusers_runs(peer, paths, (latents, timesteps, context))
        seconds = interleaved_medians(runs, options.repeats)
    print(f"{options.rows} rows at {options.side} pixels, rank {options.rank}, torch {torch.__version__}, one thread\n")
    print("| | seconds | of the plain batch | of diffusers' |")
    print("|---|---|---|---|")
    for name, value in seconds.items():
        library, _, work = name.partition(":")
        own, other = seconds.get(PLAIN.get(library, "")), seconds.get(f"diffusers:{work}")
        ratio = "" if own is None else f"{value / own:.3f}"
        beside = "" if other is None or library != "undertow" else f"{value / other:.3f}"
        print(f"| {name} | {value:.4f} | {ratio} | {beside} |")


def networks(config: UNetConfig) -> tuple[UNet, diffusers.UNet2DConditionModel]:
    """The same random weights in both libraries."""
    peer = diffusers.UNet2DConditionModel.from_config(config_to_diffusers(config)).eval()
    unet = UNet(config).eval().to(memory_format=torch.channels_last)
    unet.load_state_dict(peer.state_dict())
    return unet, peer


def random_lora(unet: UNet, rank: int) -> dict[str, Tensor]:
    """A file as PEFT writes it."""
    tensors: dict[str, Tensor] = {}
    for name, layer in unet.named_modules():
        if name.endswith(SITES):
            outputs, inputs = layer.get_parameter("weight").shape[:2]
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(rank, inputs) * inputs**-0.5
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(outputs, rank) * 0.1 * rank**-0.5
    return tensors


def undertow_runs(unet: UNet, paths: list[Path], rank: int, call: tuple[Tensor, Tensor, Conditioning]) -> Runs:
    """In an order in which every run finds the weights that it needs."""
    targets = Targets.of(unet)
    each = [
        LayerUpdates(key=index, title=str(index), updates=read_lora(path, targets).updates["unet"], factors={})
        for index, path in enumerate(paths)
    ]
    rows = [[ScaledUpdates(layers=one, gain=1.0)] for one in each]
    # One slot more than rows, for what is swapped in.
    capacity = AdapterCapacity(slots=len(rows) + 1, rank=rank, per_row=1, sites=tuple(f"*.{site}" for site in SITES))
    bank, merged = Bank(unet, capacity), MergedWeights(unet)

    def swap() -> None:
        bank.assign_slots([[ScaledUpdates(layers=replace(each[0], key=object()), gain=1.0)]])

    return {
        PLAIN["undertow"]: lambda: unet(*call),
        "undertow: a LoRA for each row": lambda: unet(*call, Ports(weights=bank.assign_slots(rows))),
        "swap, undertow: into a slot": swap,
        "swap, undertow: into the weights": lambda: merged.set_active(rows[0]),
        "undertow: one LoRA for all rows": lambda: unet(*call),  # merged
        "swap, undertow: back to the base weights": lambda: merged.set_active(()),
    }


def diffusers_runs(
    peer: diffusers.UNet2DConditionModel, paths: list[Path], call: tuple[Tensor, Tensor, Tensor]
) -> Runs:
    """The plain U-Net shares its weights with the one that PEFT's layers are put into."""
    plain = diffusers.UNet2DConditionModel.from_config(peer.config).eval()
    plain.load_state_dict(peer.state_dict(), assign=True)
    states = [load_file(path) for path in paths]
    for index, state in enumerate(states):
        peer.load_lora_adapter(dict(state), adapter_name=f"row{index}", prefix="unet")

    def one_for_all() -> None:
        peer.set_adapters("row0")
        peer(*call)

    def one_after_the_other() -> None:
        for row in range(len(paths)):
            peer.set_adapters(f"row{row}")
            peer(*(part[row : row + 1] for part in call))

    return {
        PLAIN["diffusers"]: lambda: plain(*call),
        "diffusers: a LoRA for each row": one_after_the_other,
        "diffusers: one LoRA for all rows": one_for_all,
        "swap, diffusers: set_adapters": lambda: peer.set_adapters("row1"),
        "swap, diffusers: hot swap": lambda: peer.load_lora_adapter(
            dict(states[1]), adapter_name="row0", prefix="unet", hotswap=True
        ),
    }


if __name__ == "__main__":
    main()
