"""Times decoding by Stable Diffusion's autoencoder against diffusers', interleaved, one thread.

    python -m benchmarks.vae [--sides 256 512] [--dtype float32 bfloat16] [--repeats 5]

The published architecture with the same random weights in both; diffusers in its better memory layout. undertow
decodes as its engine does, from weights as it loads them, and looks for NaN on the way. Prints a Markdown table:
medians, ratio, and the difference of the pictures relative to their norm.
"""

import argparse
import platform
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor

from benchmarks.lib.networks import random_weights
from benchmarks.lib.timing import interleaved_medians, native_types
from undertow.nn.memory_order import order_of
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig
from undertow.vae.precision import decode_safely

FACTOR = 8


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512], help="of the picture, in pixels")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=native_types())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, median of {options.repeats}\n")
    print("| pixels | type | undertow s | diffusers s | ratio | difference |")
    print("|---|---|---|---|---|---|", flush=True)
    for dtype in (getattr(torch, name) for name in options.dtype):
        ours, peers = networks(dtype)
        for side in options.sides:
            latents = torch.randn(1, 4, side // FACTOR, side // FACTOR, dtype=dtype)
            print(row(side, ours, peers, latents, options.repeats), flush=True)


def networks(dtype: torch.dtype) -> tuple[AutoencoderKL, dict[str, diffusers.AutoencoderKL]]:
    """The same weights in undertow, and in diffusers by memory layout."""
    order = order_of(dtype, torch.device("cpu"))
    ours = random_weights(AutoencoderKL, VAEConfig.sd()).to(dtype).to(memory_format=order)
    assert isinstance(ours, AutoencoderKL)
    peers = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        peer = diffusers.AutoencoderKL(**CONFIG).eval().to(dtype)
        peer.load_state_dict(ours.state_dict())
        peers[name] = peer.to(memory_format=layout)
    return ours, peers


CONFIG = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
"""Of stable-diffusion-v1-5/vae."""


def row(
    side: int, ours: AutoencoderKL, peers: dict[str, diffusers.AutoencoderKL], latents: Tensor, repeats: int
) -> str:
    """One row of the table."""
    runs: dict[str, Callable[[], Tensor]] = {"undertow": lambda: decode_safely(ours, latents).pixels}
    for name, peer in peers.items():
        runs[name] = lambda peer=peer: peer.decode(latents, return_dict=False)[0]
    expected = runs["contiguous"]().float()
    difference = float((runs["undertow"]().float() - expected).norm() / expected.norm())
    medians = interleaved_medians(runs, repeats)
    mine = medians.pop("undertow")
    best, kind = min(medians.values()), str(latents.dtype).removeprefix("torch.")
    return f"| {side} | {kind} | {mine:.3f} | {best:.3f} | {mine / best:.2f} | {difference:.1e} |"


if __name__ == "__main__":
    main()
