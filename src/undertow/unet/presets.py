"""The published architectures by name."""

from collections.abc import Callable

from undertow.unet.config import UNetConfig

PRESETS: dict[str, Callable[[], UNetConfig]] = {
    "sd15": UNetConfig.sd15,
    "sd15-inpaint": UNetConfig.sd15_inpaint,
    "instruct-pix2pix": UNetConfig.instruct_pix2pix,
    "lcm-sd15": UNetConfig.lcm_sd15,
    "sd21": UNetConfig.sd21,
    "sd2-inpaint": UNetConfig.sd2_inpaint,
    "sdxl": UNetConfig.sdxl,
    "sdxl-inpaint": UNetConfig.sdxl_inpaint,
    "sdxl-refiner": UNetConfig.sdxl_refiner,
    "lcm-sdxl": UNetConfig.lcm_sdxl,
    "ssd-1b": UNetConfig.ssd_1b,
    "vega": UNetConfig.vega,
    "cifar10": UNetConfig.cifar10,
}
