"""ControlNet and IP-Adapter beside diffusers, on the same U-Net and weights in one run.

    python benchmarks/control.py [--channels 320] [--side 256] [--rows 2] [--repeats 5] [--precision float32]

SD1.5's architecture with random weights, one thread, one step of guidance: two rows. A step with a ControlNet is its
forward and the U-Net's with what it adds. undertow embeds the hint and makes keys and values of the picture once for a
request, diffusers at every step; that is part of what is compared, and shown apart.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import diffusers
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from lib.timing import interleaved_medians
from torch import Tensor, nn

from undertow import UNet, UNetConfig
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.encoders.image import ImageFeatures
from undertow.nn.attention import ImageTokens
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.diffusers_config import config_to_diffusers

Runs = dict[str, Callable[[], object]]

PUBLISHED_CHANNELS = 320
CELL = 8
FEATURES = 1024
"""Width of the pooled vector of ViT-H/14, which SD1.5's IP-Adapters read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=PUBLISHED_CHANNELS, help="of the first level")
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, options.precision)
    config = UNetConfig.sd15()
    levels = (replace(one, channels=one.channels * options.channels // PUBLISHED_CHANNELS) for one in config.levels)
    config = replace(config, levels=tuple(levels))
    cells = options.side // CELL
    latents, timesteps = torch.randn(options.rows, 4, cells, cells, dtype=dtype), torch.full((options.rows,), 500.0)
    context = torch.randn(options.rows, 77, config.context_dim or 0, dtype=dtype)
    hint = torch.rand(options.rows, 3, options.side, options.side, dtype=dtype)
    features = torch.randn(options.rows, 1, FEATURES, dtype=dtype)
    with torch.no_grad():
        unet, peer = networks(config, dtype)
        runs = undertow_runs(unet, (latents, timesteps, Conditioning(context=context)), hint, features)
        runs |= diffusers_runs(unet, peer, (latents, timesteps, context), hint, features)
        seconds = interleaved_medians(runs, options.repeats)
    print(
        f"{options.rows} rows at {options.side} pixels, {options.channels} channels, {options.precision}, "
        f"torch {torch.__version__}, one thread, medians of {options.repeats}\n"
    )
    print("| | seconds | of the plain step | of diffusers' |")
    print("|---|---|---|---|")
    for name, value in seconds.items():
        library, _, work = name.partition(": ")
        plain, other = seconds[f"{library}: plain"], seconds.get(f"diffusers: {work}")
        beside = f"{value / other:.3f}" if library == "undertow" and other is not None else ""
        print(f"| {name} | {value:.4f} | {value / plain:.3f} | {beside} |")


def networks(config: UNetConfig, dtype: torch.dtype) -> tuple[UNet, diffusers.UNet2DConditionModel]:
    """The same random weights in both libraries."""
    peer = diffusers.UNet2DConditionModel.from_config(config_to_diffusers(config)).eval().to(dtype)
    unet = UNet(config).eval().to(dtype=dtype, memory_format=torch.channels_last)
    unet.load_state_dict(peer.state_dict())
    return unet, peer


def undertow_runs(unet: UNet, call: tuple[Tensor, Tensor, Conditioning], hint: Tensor, features: Tensor) -> Runs:
    """What belongs to a request is done before."""
    latents, timesteps, conditioning = call
    control = ControlNet.from_unet(unet).eval().to(memory_format=torch.channels_last)
    prompt = ImagePrompt.new(unet, FEATURES).eval().to(latents.dtype)
    embedded, gain = control.embed_hint(hint), torch.ones(len(latents))

    def prompted() -> dict[str, tuple[ImageTokens, ...]]:
        tokens = prompt.tokens(ImageFeatures(pooled=features[:, 0]))
        pairs = prompt.keys_values(tokens)
        return {site: (ImageTokens(keys=keys, values=values, gain=gain),) for site, (keys, values) in pairs.items()}

    image = prompted()

    def controlled(image: dict[str, tuple[ImageTokens, ...]] | None = None) -> Tensor:
        residuals = control(latents, timesteps, conditioning, embedded)
        return unet(*call, Ports(residuals=residuals, image=image))

    return {
        "undertow: plain": lambda: unet(*call),
        "undertow: ControlNet": controlled,
        "undertow: IP-Adapter": lambda: unet(*call, Ports(image=image)),
        "undertow: ControlNet and IP-Adapter": lambda: controlled(image),
        "undertow: once for a request, the hint": lambda: control.embed_hint(hint),
        "undertow: once for a request, keys and values": prompted,
    }


def diffusers_runs(
    unet: UNet,
    peer: diffusers.UNet2DConditionModel,
    call: tuple[Tensor, Tensor, Tensor],
    hint: Tensor,
    features: Tensor,
) -> Runs:
    """The U-Net with an IP-Adapter shares its weights with the plain one."""
    control = diffusers.ControlNetModel.from_unet(peer).eval()
    control.load_state_dict(ControlNet.from_unet(unet).state_dict())
    prompted = diffusers.UNet2DConditionModel.from_config(peer.config).eval()
    prompted.load_state_dict(peer.state_dict(), assign=True)
    add_image_prompt(prompted, call[0].dtype)
    added = {"image_embeds": [features]}

    def controlled(network: diffusers.UNet2DConditionModel, **more: object) -> Tensor:
        skips, middle = control(*call, controlnet_cond=hint, return_dict=False)
        return network(
            *call, down_block_additional_residuals=skips, mid_block_additional_residual=middle, **more
        ).sample

    return {
        "diffusers: plain": lambda: peer(*call),
        "diffusers: ControlNet": lambda: controlled(peer),
        "diffusers: IP-Adapter": lambda: prompted(*call, added_cond_kwargs=added),
        "diffusers: ControlNet and IP-Adapter": lambda: controlled(prompted, added_cond_kwargs=added),
    }


def add_image_prompt(network: diffusers.UNet2DConditionModel, dtype: torch.dtype) -> None:
    """diffusers' own processors on every cross-attention, with random weights."""
    context = network.config.cross_attention_dim
    processors: dict[str, object] = {}
    for name, old in network.attn_processors.items():
        site = name.removesuffix(".processor")
        width = network.get_submodule(site).get_submodule("to_q").get_parameter("weight").shape[0]
        own = IPAdapterAttnProcessor2_0(width, context, num_tokens=(4,)).to(dtype)
        processors[name] = own if name.endswith("attn2.processor") else old
    network.set_attn_processor(processors)
    projection = ImageProjection(FEATURES, context, num_image_text_embeds=4)
    network.encoder_hid_proj = MultiIPAdapterImageProjection(nn.ModuleList([projection])).to(dtype)
    network.register_to_config(encoder_hid_dim_type="ip_image_proj")


if __name__ == "__main__":
    main()
