"""Whether an IP-Adapter's tensors are those of this model: by numbers, names and widths, before any value is read."""

from collections.abc import Mapping
from pathlib import Path

from undertow.adapters.image_prompt.names import Names, Shape, missing_half
from undertow.adapters.image_prompt.projection import (
    HEAD_DIM,
    BaseProjection,
    FullProjection,
    PlusProjection,
    Projection,
)
from undertow.adapters.image_prompt.sites import site_numbers
from undertow.checkpoints.identify.families import FAMILIES
from undertow.checkpoints.read.loading import build_on_meta
from undertow.errors import AdapterMismatch, KeyMismatch, UnknownCheckpoint
from undertow.unet.config import UNetConfig

LEAVES = ("to_k_ip", "to_v_ip")

FULL_TOKENS = 257
"""Hidden states of ViT-H/14 at 224 pixels: what Full Face reads. Shapes do not tell it."""


def require_fit(path: Path, names: Names, config: UNetConfig) -> None:
    """Passes an adapter with two matrices for every cross-attention of `config`, none left over, of its widths.

    Errors: `AdapterMismatch` names the family that it fits, or what is missing, left over and of another width;
    `UnknownCheckpoint` for half a file.
    """
    if not names.pairs:
        raise missing_half(path, "image_proj", "ip_adapter")
    if not names.projection:
        raise missing_half(path, "ip_adapter", "image_proj")
    found = {key: names.shapes[name] for key, name in names.pairs.items()}
    expected = _expected(config, found)
    if found == expected:
        return
    other = next((family for family in FAMILIES if _expected(family.config(), found) == found), None)
    counts = f"{len(names.layers())} cross-attentions, {_text(found)}"
    ours = f"{len(config.cross_attentions())} cross-attentions, {_text(expected)}"
    remedy = "use it with a model of its family, or an adapter made for this one"
    missing = [_written(key) for key in expected if key not in found]
    surplus = [_written(key) for key in found if key not in expected]
    reshaped = [
        f"{_written(key)} {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if other is not None:
        problem = f"made for {other.title} ({counts}), and this model has {ours}"
    else:
        kinds = (("missing", missing), ("of no cross-attention here", surplus), ("of another width", reshaped))
        problem = f"it does not fit this model ({counts}; the model has {ours}): " + "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})"
            for kind, keys in kinds
            if keys
        )
    raise AdapterMismatch(
        path,
        problem,
        remedy,
        made_for=None if other is None else other.title,
        unmatched=[*missing, *surplus],
        reshaped=reshaped,
    )


def projection_of(path: Path, names: Names, config: UNetConfig, header: Mapping[str, str]) -> Projection:
    """The projection that the file's tensors are of, without memory.

    Errors: `AdapterMismatch` for tokens of another width than the text, `KeyMismatch` for missing, unexpected and
    reshaped tensors, `UnknownCheckpoint` for a projection of no known kind.
    """
    shapes = names.projection_shapes()
    try:
        projection = build_on_meta(lambda: _describe(path, shapes, header))
    except (KeyError, IndexError, ValueError, ArithmeticError, RuntimeError) as err:
        raise UnknownCheckpoint(path, f"its image_proj is not whole ({err})", "download it again") from err
    expected = {name: tuple(tensor.shape) for name, tensor in projection.state_dict().items()}
    if expected != shapes:
        raise KeyMismatch(
            path,
            [f"image_proj.{name}" for name in sorted(expected.keys() - shapes.keys())],
            [f"image_proj.{name}" for name in sorted(shapes.keys() - expected.keys())],
            [
                f"image_proj.{name} {list(shapes[name])} instead of {list(shape)}"
                for name, shape in expected.items()
                if name in shapes and shapes[name] != shape
            ],
        )
    if projection.context_dim != config.context_dim:
        raise AdapterMismatch(
            path,
            f"its tokens are {projection.context_dim} wide, and this model reads text {config.context_dim} wide",
            "use an adapter made for this model",
        )
    return projection


def _describe(path: Path, shapes: Mapping[str, Shape], header: Mapping[str, str]) -> Projection:
    if "latents" in shapes:
        layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
        return PlusProjection(
            shapes["proj_in.weight"][1],
            shapes["proj_out.weight"][0],
            shapes["latents"][1],
            width=shapes["latents"][2],
            depth=len(layers),
            heads=max(1, shapes["layers.0.0.to_q.weight"][0] // HEAD_DIM) if layers else 1,
        )
    if "proj.3.weight" in shapes:
        said = header.get("tokens_per_image", "")
        tokens = int(said) if said.isdecimal() else FULL_TOKENS
        return FullProjection(shapes["proj.0.weight"][1], shapes["proj.2.weight"][0], tokens)
    if "proj.weight" in shapes:
        context = shapes["norm.weight"][0]
        return BaseProjection(shapes["proj.weight"][1], context, shapes["proj.weight"][0] // context)
    some = ", ".join(f"image_proj.{name}" for name in list(shapes)[:3])
    raise UnknownCheckpoint(path, f"a projection of no known kind ({some})", "give a base, Plus or Full IP-Adapter")


def _expected(config: UNetConfig, found: Mapping[tuple[int | str, str], Shape]) -> dict[tuple[int | str, str], Shape]:
    """Shape of each matrix, keyed as the file keys them: by number, or by the cross-attention's name."""
    by_name = any(isinstance(layer, str) for layer, _ in found)
    widths, context = config.cross_attentions(), config.context_dim
    return {
        (site if by_name else number, leaf): (widths[site], 0 if context is None else context)
        for number, site in site_numbers(config).items()
        for leaf in LEAVES
    }


def _text(shapes: Mapping[tuple[int | str, str], Shape]) -> str:
    widths = sorted({shape[-1] for shape in shapes.values() if shape})
    return f"text {' and '.join(map(str, widths))} wide" if widths else "no text"


def _written(key: tuple[int | str, str]) -> str:
    layer, leaf = key
    return f"{layer}.{leaf}" if isinstance(layer, str) else f"ip_adapter.{layer}.{leaf}"
