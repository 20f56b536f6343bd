"""Files for tests: sparse ones with the names and shapes of full-size models, and damaged ones byte by byte."""

import json
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from undertow.checkpoints.keymap import BlockLayout, unet_renaming
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

Shapes = Mapping[str, tuple[int, ...]]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1}


def sparse_file(path: Path, shapes: Shapes, *, dtype: str = "F16", metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of zeros that takes no room on disk, however large its tensors are."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def raw_file(path: Path, header: bytes | dict[str, object], data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with this very header. length: what the first eight bytes claim, the header's own length by default."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@cache
def unet_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Names, which are diffusers', and shapes of a U-Net of any size, without memory."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in UNet(config).state_dict().items()}


def ldm_shapes(config: UNetConfig, prefix: str = "model.diffusion_model.") -> dict[str, tuple[int, ...]]:
    """The same with LDM's names."""
    renaming = unet_renaming(BlockLayout.of_config(config))
    return {f"{prefix}{renaming.to_foreign(name)}": shape for name, shape in unet_shapes(config).items()}


def ldm_tensors(unet: UNet, prefix: str = "model.diffusion_model.") -> dict[str, Tensor]:
    """The weights of a U-Net with LDM's names."""
    renaming = unet_renaming(BlockLayout.of_config(unet.config))
    return {f"{prefix}{renaming.to_foreign(name)}": tensor for name, tensor in unet.state_dict().items()}


def clip_shapes(prefix: str, width: int, *, layers: int = 2, root: str = "text_model.") -> dict[str, tuple[int, ...]]:
    """A shallow CLIP text encoder with transformers' names."""
    return {
        f"{prefix}{root}embeddings.token_embedding.weight": (49408, width),
        f"{prefix}{root}embeddings.position_embedding.weight": (77, width),
        **{f"{prefix}{root}encoder.layers.{i}.layer_norm1.weight": (width,) for i in range(layers)},
        f"{prefix}{root}final_layer_norm.weight": (width,),
    }


def openclip_shapes(prefix: str, width: int, *, layers: int = 2) -> dict[str, tuple[int, ...]]:
    """A shallow OpenCLIP text encoder with its own names."""
    return {
        f"{prefix}token_embedding.weight": (49408, width),
        f"{prefix}positional_embedding": (77, width),
        **{f"{prefix}transformer.resblocks.{i}.attn.in_proj_weight": (3 * width, width) for i in range(layers)},
        f"{prefix}ln_final.weight": (width,),
        f"{prefix}text_projection": (width, width),
    }


def vae_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """The few tensors by which a VAE in LDM's names is known."""
    return {
        f"{prefix}encoder.conv_in.weight": (128, 3, 3, 3),
        f"{prefix}encoder.mid.block_1.norm1.weight": (512,),
        f"{prefix}decoder.mid.block_1.norm1.weight": (512,),
        f"{prefix}decoder.conv_in.weight": (512, 4, 3, 3),
    }


def assert_same_weights(network: nn.Module, other: nn.Module) -> None:
    """The same names, and under each the same numbers, bit for bit."""
    ours, theirs = network.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different, different
