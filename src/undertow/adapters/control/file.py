"""Reading ControlNets from model folders of diffusers'."""

from dataclasses import dataclass
from pathlib import Path

from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.diffusers_config import control_config_from_diffusers
from undertow.adapters.source import open_source
from undertow.checkpoints.contents import make_part
from undertow.checkpoints.health import Health
from undertow.checkpoints.loading import LoadOptions, build_on_meta, load_network
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlFile:
    """A control network in memory. content_hash: SHA-256 of what was read; equal files are equal adapters. title: what
    it is, in words. size_bytes: of its weights in memory."""

    path: Path
    content_hash: str
    network: ControlNet
    size_bytes: int
    title: str


def read_control(source: str | Path, base: UNet) -> ControlFile:
    """The control network at `source` for one U-Net, in its type and on its device, in evaluation mode.

    Errors: `UnknownCheckpoint`, `CorruptFile`, `KeyMismatch`, `DamagedWeights`, `ConfigError`.
    """
    health = Health()
    with open_source(source) as opened:
        config = control_config_from_diffusers(opened.config)
        part = make_part("controlnet", "", "diffusers", opened.names)
        options = LoadOptions(dtype=base.dtype, device=base.device)
        network = build_on_meta(lambda: ControlNet(config))
        network = load_network(network, opened.weights, part, options, health)
        health.require(opened.path)
        return ControlFile(
            path=opened.path,
            content_hash=opened.content_hash(),
            network=network,
            size_bytes=sum(parameter.nbytes for parameter in network.parameters()),
            title="ControlNet",
        )
