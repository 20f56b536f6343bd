"""IP-Adapter files as their authors write them, with random weights: names and shapes by hand, not from our modules."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from undertow.unet.config import UNetConfig

FEATURES = 48
"""Width of what the minis' encoders see."""

PATCHES = 9
TOKENS = {"base": 4, "plus": 6, "full": PATCHES}
VARIANTS = tuple(TOKENS)

Nested = dict[str, dict[str, Tensor]]


def normal(*shape: int, seed: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(seed.encode()) * 7919 + len(seed))
    return torch.randn(*shape, generator=generator)


def matrix(rows: int, columns: int, seed: str) -> Tensor:
    return normal(rows, columns, seed=seed) * columns**-0.5


def projection(variant: str, context: int, *, feature_dim: int = FEATURES, seed: str = "") -> dict[str, Tensor]:
    """The tensors of `image_proj`."""
    match variant:
        case "base":
            shapes = {"proj.weight": (4 * context, feature_dim), "proj.bias": (4 * context,), **norm("norm", context)}
        case "full":
            shapes = {
                "proj.0.weight": (feature_dim, feature_dim),
                "proj.0.bias": (feature_dim,),
                "proj.2.weight": (context, feature_dim),
                "proj.2.bias": (context,),
                **norm("proj.3", context),
            }
        case _:
            width, inner = 40, 128
            shapes = {
                "latents": (1, TOKENS["plus"], width),
                "proj_in.weight": (width, feature_dim),
                "proj_in.bias": (width,),
                "proj_out.weight": (context, width),
                "proj_out.bias": (context,),
                **norm("norm_out", context),
            }
            for layer in range(4):
                shapes |= {
                    **norm(f"layers.{layer}.0.norm1", width),
                    **norm(f"layers.{layer}.0.norm2", width),
                    f"layers.{layer}.0.to_q.weight": (inner, width),
                    f"layers.{layer}.0.to_kv.weight": (2 * inner, width),
                    f"layers.{layer}.0.to_out.weight": (width, inner),
                    **norm(f"layers.{layer}.1.0", width),
                    f"layers.{layer}.1.1.weight": (4 * width, width),
                    f"layers.{layer}.1.3.weight": (width, 4 * width),
                }
    return {name: filled(name, shape, seed) for name, shape in shapes.items()}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def filled(name: str, shape: tuple[int, ...], seed: str) -> Tensor:
    if len(shape) > 1:
        return normal(*shape, seed=name + seed) * (shape[-1] ** -0.5 if len(shape) == 2 else 1.0)
    return normal(*shape, seed=name + seed) * 0.2 + (1.0 if name.endswith("weight") else 0.0)


def widths_in_file_order(config: UNetConfig) -> list[int]:
    """Width of every cross-attention in the order down, up, middle, from the levels' depths."""
    down = [level.channels for level in config.levels for depth in level.encoder_depths() for _ in range(depth)]
    up = [level.channels for level in config.levels[::-1] for depth in level.decoder_depths() for _ in range(depth)]
    middle = [config.levels[-1].channels for depth in config.middle.depths() for _ in range(depth)]
    return down + up + middle


def authors(config: UNetConfig, variant: str = "base", *, feature_dim: int = FEATURES, seed: str = "") -> Nested:
    """A whole adapter, in the two dictionaries of the authors' pickles."""
    context = config.context_dim or 1
    pairs = {
        f"{2 * place + 1}.{leaf}.weight": matrix(width, context, f"{place}{leaf}{seed}")
        for place, width in enumerate(widths_in_file_order(config))
        for leaf in ("to_k_ip", "to_v_ip")
    }
    return {"image_proj": projection(variant, context, feature_dim=feature_dim, seed=seed), "ip_adapter": pairs}


def flat(nested: Nested) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part, tensors in nested.items() for name, tensor in tensors.items()}


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=header)
    return path
