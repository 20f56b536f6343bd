"""A family's U-Net in undertow and in diffusers, on one device, with the same random weights and inputs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from undertow import Conditioning, UNet, UNetConfig
from undertow.inspection.diffusers_tree import diffusers_arguments
from undertow.unet.config import ClassLabels, TextTime
from undertow.unet.diffusers_config import config_to_diffusers

TOKENS = 77


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Of one forward: one timestep a row, and everything that the network is conditioned on."""

    latents: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    def to(self, dtype: torch.dtype) -> "Inputs":
        conditioning = self.conditioning.to(dtype=dtype)
        return Inputs(latents=self.latents.to(dtype), timesteps=self.timesteps, conditioning=conditioning)


def random_inputs(config: UNetConfig, rows: int, cells: int, device: torch.device) -> Inputs:
    """Float32, the same for the same arguments."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    added = config.added
    sizes = [float(8 * cells)] * 6
    text_time = added if isinstance(added, TextTime) else None
    labels = torch.arange(rows, device=device) % added.rows if isinstance(added, ClassLabels) else None
    return Inputs(
        latents=normal(rows, config.in_channels, cells, cells),
        timesteps=torch.linspace(10, 900, rows, device=device),
        conditioning=Conditioning(
            context=None if config.context_dim is None else normal(rows, TOKENS, config.context_dim),
            pooled=None if text_time is None else normal(rows, text_time.pooled_dim),
            time_ids=None if text_time is None else torch.tensor([sizes[: text_time.ids]] * rows, device=device),
            class_labels=labels,
        ),
    )


def diffusers_network(config: UNetConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """diffusers' network, with weights of an ordinary size."""
    kind = UNet2DModel if config.context_dim is None else UNet2DConditionModel
    diffusers.utils.logging.set_verbosity_error()  # of layers that should stay float32: there are none
    torch.manual_seed(0)
    with torch.device("meta"):
        network = kind.from_config(config_to_diffusers(config))
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return network


def undertow_network(config: UNetConfig, theirs: nn.Module, share: bool = False) -> UNet:
    """Ours in channels-last memory, with copies of their weights, or with theirs where they lie so."""
    with torch.device("meta"):
        network = UNet(config)
    weights = {name: tensor if share else tensor.clone() for name, tensor in theirs.state_dict().items()}
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def contiguous(theirs: nn.Module) -> nn.Module:
    """diffusers' network with its channels first; what lies so already is shared."""
    with torch.device("meta"):
        network = type(theirs).from_config(theirs.config)
    network.load_state_dict({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, assign=True)
    return network.eval().requires_grad_(False)


def in_type(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another type."""
    return copy.deepcopy(network).to(dtype)


def ours_by(network: Callable[..., Tensor], given: Inputs) -> Callable[[], Tensor]:
    return lambda: network(given.latents, given.timesteps, given.conditioning)


def theirs_by(network: Callable[..., tuple[Tensor]], given: Inputs) -> Callable[[], Tensor]:
    """The same in diffusers' words."""
    named = {name: value for name, value in diffusers_arguments(given.conditioning).items() if value is not None}
    return lambda: network(given.latents, given.timesteps, return_dict=False, **named)[0]
