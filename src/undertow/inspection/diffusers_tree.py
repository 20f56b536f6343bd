"""diffusers' U-Net over the same folder, as the other side of a comparison. diffusers is imported here alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undertow.errors import InvalidInput, UnknownCheckpoint
from undertow.extras import optional_package
from undertow.inspection.departure_runs import Call
from undertow.unet.conditioning import Conditioning, Ports


@dataclass(frozen=True, kw_only=True, eq=False)
class DiffusersTree:
    """A network whose modules have diffusers' names. name: what it is called in verdicts."""

    network: nn.Module
    name: str = "diffusers"

    def predict(self, call: Call) -> Tensor:
        """What it makes of the inputs of one of our forwards. Errors: `InvalidInput` for adapters and guidance that
        change the network, which it has not."""
        if call.ports != Ports():
            raise InvalidInput("adapters", "given", "none beside diffusers", "compare without adapters and FreeU")
        weight = next(self.network.parameters())
        conditioning = call.conditioning.to(device=weight.device, dtype=weight.dtype)
        return self.network(
            call.latents.to(weight),
            call.timestep.to(weight.device),
            return_dict=False,
            **diffusers_arguments(conditioning),
        )[0]


def load_diffusers_unet(folder: str | Path, dtype: torch.dtype | None = None) -> DiffusersTree:
    """diffusers' U-Net of a pipeline folder, on the CPU. Errors: `MissingDependency`; `UnknownCheckpoint` where there
    is no such folder, and for a single file."""
    with optional_package("diffusers", "diff"):
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: PLC0415  not a dependency
    place = Path(folder).expanduser()
    if not (place / "unet" / "config.json").is_file():
        raise UnknownCheckpoint(place, "no unet/config.json in it", "name a diffusers pipeline folder")
    types = {} if dtype is None else {"torch_dtype": dtype}
    network = UNet2DConditionModel.from_pretrained(place / "unet", local_files_only=True, **types)
    return DiffusersTree(network=network.eval())


def diffusers_arguments(given: Conditioning) -> dict[str, Any]:
    """diffusers' names of our fields. Errors: `InvalidInput` for fields that it has no name for."""
    if given.regions is not None or given.guidance is not None:
        raise InvalidInput("conditioning", "with regions or embedded guidance", "neither beside diffusers")
    named: dict[str, Any] = {"encoder_hidden_states": given.context}
    if given.context_mask is not None:
        named["encoder_attention_mask"] = given.context_mask
    if given.class_labels is not None:
        named["class_labels"] = given.class_labels
    if given.pooled is not None:
        named["added_cond_kwargs"] = {"text_embeds": given.pooled, "time_ids": given.time_ids}
    return named
