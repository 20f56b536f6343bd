"""Adapter files with random weights for the emoji model, of the kinds that do not ship with it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from undertow.unet.unet import UNet

RANK = 4
SITES = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1")


def write_files(folder: Path, unet: UNet) -> None:
    """Everything that is not there yet."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(5)
    made: dict[str, dict[str, Tensor]] = {name: {} for name in ("lora", "loha", "lokr", "dora", "full", "rank-2")}
    for stem, weight in layers(unet):
        outputs, inputs, *kernel = weight.shape
        ones = [1] * len(kernel)

        def drawn(*shape: int, scale: float = 0.1) -> Tensor:
            return scale * torch.randn(*shape, generator=random)

        pair = {"lora_down.weight": drawn(RANK, inputs, *kernel), "lora_up.weight": drawn(outputs, RANK, *ones)}
        made["lora"] |= {f"{stem}.{name}": tensor for name, tensor in pair.items()} | {
            f"{stem}.alpha": torch.tensor(2.0)
        }
        norms = weight.flatten(1).norm(dim=1).reshape(-1, 1, *ones)
        made["dora"] |= {f"{stem}.{name}": tensor.clone() for name, tensor in pair.items()}
        made["dora"][f"{stem}.dora_scale"] = norms * (1 + drawn(outputs, 1, *ones))
        made["full"][f"{stem}.diff"] = drawn(*weight.shape, scale=0.01)
        made["rank-2"] |= {
            f"{stem}.lora_down.weight": drawn(2, inputs, *kernel),
            f"{stem}.lora_up.weight": drawn(outputs, 2, *ones),
        }
        if kernel:
            continue
        for half in ("hada_w1", "hada_w2"):
            made["loha"] |= {f"{stem}.{half}_a": drawn(outputs, RANK), f"{stem}.{half}_b": drawn(RANK, inputs)}
        made["lokr"] |= {f"{stem}.lokr_w1": drawn(2, 2), f"{stem}.lokr_w2": drawn(outputs // 2, inputs // 2)}
    for name, tensors in made.items():
        save_file(tensors, folder / f"{name}.safetensors")


def layers(unet: UNet) -> Iterator[tuple[str, Tensor]]:
    """Kohya's name of each adapted layer, and its weight."""
    for name, weight in unet.named_parameters():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module.endswith(SITES):
            yield "lora_unet_" + module.replace(".", "_"), weight.detach()
