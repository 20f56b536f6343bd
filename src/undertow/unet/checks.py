"""Checks of a U-Net's inputs, before any computation: errors say what was given, what was expected and what to do."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from undertow.doors import shown
from undertow.errors import InvalidInput
from undertow.nn.attention import ImagePort, ImageTokens
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels, TextTime, UNetConfig
from undertow.unet.free_u_factors import check_free_u
from undertow.unet.perturbation import check_perturbed

CONDITIONS = tuple(field.name for field in fields(Conditioning))


def check_kinds(latents: object, timesteps: object, conditioning: object, ports: object, observed: object) -> None:
    """Checks that tensors are tensors and records are records, their fields too. Errors: `InvalidInput`."""
    if not isinstance(latents, Tensor):
        raise InvalidInput("latents", shown(latents), "a tensor [batch, channels, height, width]")
    if not isinstance(timesteps, (Tensor, int, float)):
        raise InvalidInput("timesteps", shown(timesteps), "a tensor of one number per row, or one number for all")
    for name, given, kind in (("conditioning", conditioning, Conditioning), ("ports", ports, Ports)):
        if not isinstance(given, kind):
            raise InvalidInput(name, shown(given), f"a {kind.__name__}")
    for name in CONDITIONS:
        value = getattr(conditioning, name)
        if value is not None and not isinstance(value, Tensor):
            raise InvalidInput(f"conditioning.{name}", shown(value), "a tensor")
    if not isinstance(observed, (tuple, list)):
        raise InvalidInput("observed", shown(observed), "names of self-attentions")


def each_row(timesteps: Tensor | float, latents: Tensor) -> Tensor:
    """The timestep of each row: one number is that of all."""
    if isinstance(timesteps, Tensor):
        return timesteps
    return torch.full((latents.shape[0],), float(timesteps), device=latents.device)


def check_inputs(
    config: UNetConfig,
    dtype: torch.dtype,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    ports: Ports,
) -> None:
    """Checks ranks, channels, types and widths, which are known without reading values. Errors: `InvalidInput`."""
    if latents.ndim != 4:
        raise InvalidInput("latents", _shape(latents), "rank 4 [batch, channels, height, width]", "add the batch axis")
    if latents.shape[1] != config.in_channels:
        raise InvalidInput(
            "latents",
            _shape(latents),
            f"{config.in_channels} channels at axis 1",
            _CHANNEL_HINTS.get(config.in_channels, "check which model this is, and the order of axes"),
        )
    if 0 in latents.shape:
        raise InvalidInput("latents", _shape(latents), "at least one row and one cell")
    _check_dtype("latents", latents, dtype)
    rows = latents.shape[0]
    if timesteps.ndim != 1 or timesteps.shape[0] != rows:
        raise InvalidInput(
            "timesteps", _shape(timesteps), f"one number per row, [{rows}]", "use torch.full((batch,), timestep)"
        )
    if timesteps.is_complex() or timesteps.dtype == torch.bool:
        raise InvalidInput("timesteps", timesteps.dtype, "floating point or integer numbers")
    _check_context(config, dtype, rows, conditioning)
    _check_added(config, dtype, rows, conditioning)
    _check_ports(config, rows, latents, ports)


def check_values(
    config: UNetConfig, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, ports: Ports
) -> None:
    """Checks that numbers are finite and that timesteps and labels are in range. Only tensors on the CPU are read: on
    another device each check would wait for it. Errors: `InvalidInput`."""
    for name, tensor in _numbers(latents, timesteps, conditioning, ports):
        if tensor is not None and tensor.device.type == "cpu" and tensor.numel() > 0:
            low, high = tensor.detach().aminmax()
            if not (torch.isfinite(low) and torch.isfinite(high)):
                bad = int((~torch.isfinite(tensor)).sum())
                raise InvalidInput(
                    name, f"non-finite in {bad} of {tensor.numel()} values", "finite numbers", "look at what made it"
                )
    if config.max_timestep is not None and timesteps.device.type == "cpu":
        _check_range("timesteps", timesteps, 0, config.max_timestep, "0 is nearly clean, the largest is pure noise")
    labels = conditioning.class_labels
    if isinstance(config.added, ClassLabels) and labels is not None and labels.device.type == "cpu":
        null = f" ({config.added.count} means no class)" if config.added.null else ""
        _check_range("class_labels", labels, 0, config.added.rows - 1, f"classes count from 0{null}")


def check_observed(config: UNetConfig, observed: Sequence[str]) -> None:
    """Errors: `InvalidInput` for a name that is not a self-attention."""
    sites = config.self_attentions()
    for site in observed:
        if site not in sites:
            raise InvalidInput(
                "observed", repr(site), f"one of the {len(sites)} names that `UNetConfig.self_attentions` lists"
            )


def _numbers(
    latents: Tensor, timesteps: Tensor, conditioning: Conditioning, ports: Ports
) -> Iterator[tuple[str, Tensor | None]]:
    """Every tensor that must be finite, with its name."""
    yield "latents", latents
    yield "timesteps", timesteps
    for name in ("context", "pooled", "time_ids", "guidance"):
        yield name, getattr(conditioning, name)
    if ports.weights is not None:
        yield "ports.weights.gains", ports.weights.gains
    if ports.residuals is not None:
        yield from ((f"ports.residuals.skips[{i}]", skip) for i, skip in enumerate(ports.residuals.skips))
        yield "ports.residuals.middle", ports.residuals.middle
        yield from ((f"ports.residuals.running[{i}]", one) for i, one in enumerate(ports.residuals.running))
    for name, tokens in _pictures({} if ports.image is None else ports.image):
        yield from ((f"{name}.{field}", getattr(tokens, field)) for field in ("keys", "values", "gain", "area"))
    if ports.free_u is not None:
        for name, factors in ports.free_u.items():
            yield f"ports.free_u[{name!r}].backbone", factors.backbone
            yield f"ports.free_u[{name!r}].skip", factors.skip


_CHANNEL_HINTS = {
    9: "an inpainting model takes latents, mask and masked latents joined at axis 1",
    8: "InstructPix2Pix takes latents and the source picture's latents joined at axis 1",
}


def _check_context(config: UNetConfig, dtype: torch.dtype, rows: int, conditioning: Conditioning) -> None:
    context, mask = conditioning.context, conditioning.context_mask
    if config.context_dim is None:
        if context is not None:
            raise InvalidInput("context", _shape(context), "nothing: this network has no cross-attention")
        for name, given in (("context_mask", mask), ("regions", conditioning.regions)):
            if given is not None:
                raise InvalidInput(name, _shape(given), "nothing: this network has no cross-attention")
        return
    if context is None:
        raise InvalidInput(
            "context", None, f"text embeddings [batch, tokens, {config.context_dim}]", "encode the prompt first"
        )
    if context.ndim != 3 or (context.shape[0], context.shape[2]) != (rows, config.context_dim):
        raise InvalidInput(
            "context", _shape(context), f"[{rows}, tokens, {config.context_dim}]", "use this model's text encoder"
        )
    if context.shape[1] == 0:
        raise InvalidInput("context", _shape(context), "at least one token", "encode the empty prompt")
    _check_dtype("context", context, dtype)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != context.shape[:2]):
        raise InvalidInput(
            "context_mask", f"{_shape(mask)} {mask.dtype}", f"bool {list(context.shape[:2])}", "True marks real tokens"
        )
    regions = conditioning.regions
    if regions is not None and (
        regions.dtype != torch.bool or regions.ndim != 4 or regions.shape[:2] != context.shape[:2]
    ):
        raise InvalidInput(
            "regions", f"{_shape(regions)} {regions.dtype}", f"bool {[*context.shape[:2]]} and rows and columns"
        )


def _check_added(config: UNetConfig, dtype: torch.dtype, rows: int, conditioning: Conditioning) -> None:
    pooled, ids, labels = conditioning.pooled, conditioning.time_ids, conditioning.class_labels
    match config.added:
        case TextTime(pooled_dim=dim, ids=count):
            _check_matrix("pooled", pooled, rows, dim, "the pooled output of the (last) text encoder")
            _check_matrix("time_ids", ids, rows, count, "original size, crop and target size (SDXL micro-conditioning)")
            if pooled is not None:
                _check_dtype("pooled", pooled, dtype)
        case ClassLabels():
            if labels is None:
                raise InvalidInput("class_labels", None, f"one class per row, [{rows}]", "this network is conditional")
            if labels.ndim != 1 or labels.shape[0] != rows or labels.is_floating_point():
                raise InvalidInput("class_labels", f"{_shape(labels)} {labels.dtype}", f"integers [{rows}]")
        case None:
            pass
    if not isinstance(config.added, TextTime) and (pooled is not None or ids is not None):
        raise InvalidInput("pooled or time_ids", "given", "nothing: this network has no text_time embedding")
    if not isinstance(config.added, ClassLabels) and labels is not None:
        raise InvalidInput("class_labels", _shape(labels), "nothing: this network has no class embedding")
    guidance = conditioning.guidance
    if guidance is not None and config.guidance_dim is None:
        raise InvalidInput("guidance", "given", "nothing: only distilled models take guidance as an input")
    if guidance is not None and guidance.shape != (rows,):
        raise InvalidInput("guidance", _shape(guidance), f"one number per row, [{rows}]")


def _check_ports(config: UNetConfig, rows: int, latents: Tensor, ports: Ports) -> None:
    if ports.feed_forward_chunks < 1:
        raise InvalidInput("ports.feed_forward_chunks", ports.feed_forward_chunks, "at least 1")
    if ports.weights is not None and ports.weights.slots.shape[0] != rows:
        raise InvalidInput("ports.weights.slots", _shape(ports.weights.slots), f"[{rows}, entries per row]")
    if ports.residuals is not None:
        _check_residuals(config, rows, latents, ports.residuals)
    if ports.image is not None:
        _check_image(config, rows, latents, ports.image)
    if ports.self_attention is not None:
        check_perturbed(config, rows, ports.self_attention)
    if ports.free_u is not None:
        check_free_u(config, rows, ports.free_u)


def _check_residuals(config: UNetConfig, rows: int, latents: Tensor, residuals: Residuals) -> None:
    skips = [(rows, *shape) for shape in config.skip_shapes(latents.shape[2], latents.shape[3])]
    given = [tuple(residual.shape) for residual in residuals.skips]
    if given and given != skips:
        wrong = [f"[{i}] {g} instead of {e}" for i, (g, e) in enumerate(zip(given, skips, strict=False)) if g != e]
        raise InvalidInput(
            "ports.residuals.skips",
            f"{len(given)} tensors" + "".join(f", {place}" for place in wrong[:3]),
            f"{len(skips)} tensors of the shapes of `UNetConfig.skip_shapes`, for {rows} rows",
            "use a ControlNet of this family, run at this size",
        )
    middle = residuals.middle
    expected = (rows, config.levels[-1].channels, *skips[-1][2:])
    if middle is not None and tuple(middle.shape) != expected:
        raise InvalidInput(
            "ports.residuals.middle",
            _shape(middle),
            str(list(expected)),
            "use a ControlNet of this family, run at this size",
        )
    running = [None if one is None else tuple(one.shape) for one in residuals.running]
    if running and (len(running) != len(skips) or any(g not in (None, e) for g, e in zip(running, skips, strict=True))):
        raise InvalidInput(
            "ports.residuals.running",
            running,
            f"{len(skips)} places, each None or of the shape of `UNetConfig.skip_shapes`, for {rows} rows",
            "use a T2I-Adapter of this family, run at this size",
        )
    named = [(f"{name}[{i}]", one) for name in ("skips", "running") for i, one in enumerate(getattr(residuals, name))]
    for name, tensor in (*named, ("middle", middle)):
        if tensor is not None:
            _check_dtype(f"ports.residuals.{name}", tensor, latents.dtype)


def _pictures(image: ImagePort) -> Iterator[tuple[str, ImageTokens]]:
    """Every entry of the image port, with its name in error messages."""
    for site, entries in image.items():
        yield from ((f"ports.image[{site!r}][{index}]", tokens) for index, tokens in enumerate(entries))


def _check_image(config: UNetConfig, rows: int, latents: Tensor, image: ImagePort) -> None:
    sites, grids = config.cross_attentions(), config.attention_grids(latents.shape[2], latents.shape[3])
    if unknown := sorted(image.keys() - sites.keys()):
        raise InvalidInput(
            f"ports.image[{unknown[0]!r}]",
            "given",
            f"one of the {len(sites)} names that `UNetConfig.cross_attentions` lists",
        )
    for site, entries in image.items():
        for name, tokens in _pictures({site: entries}):
            if tokens.keys.ndim != 3 or (tokens.keys.shape[0], tokens.keys.shape[2]) != (rows, sites[site]):
                raise InvalidInput(f"{name}.keys", _shape(tokens.keys), f"[{rows}, tokens, {sites[site]}]")
            if tokens.values.shape != tokens.keys.shape:
                raise InvalidInput(f"{name}.values", _shape(tokens.values), f"{_shape(tokens.keys)}, as the keys")
            if tokens.gain.shape != (rows,):
                raise InvalidInput(f"{name}.gain", _shape(tokens.gain), f"one number per row, [{rows}]")
            if tokens.mask is not None and tokens.mask.shape != tokens.keys.shape[:2]:
                raise InvalidInput(f"{name}.mask", _shape(tokens.mask), f"{list(tokens.keys.shape[:2])}, as the keys")
            queries = grids[site][0] * grids[site][1]
            if tokens.area is not None and tokens.area.shape != (rows, queries):
                raise InvalidInput(f"{name}.area", _shape(tokens.area), f"one number per cell, [{rows}, {queries}]")
            _check_dtype(f"{name}.keys", tokens.keys, latents.dtype)
            _check_dtype(f"{name}.values", tokens.values, latents.dtype)


def _check_matrix(name: str, tensor: Tensor | None, rows: int, width: int, meaning: str) -> None:
    if tensor is None or tensor.ndim != 2 or tuple(tensor.shape) != (rows, width):
        raise InvalidInput(name, None if tensor is None else _shape(tensor), f"[{rows}, {width}]", f"give {meaning}")


def _check_range(name: str, tensor: Tensor, low: float, high: float, meaning: str) -> None:
    smallest, largest = (value.item() for value in tensor.aminmax())
    if not (low <= smallest and largest <= high):
        raise InvalidInput(name, f"{smallest:g} to {largest:g}", f"numbers from {low:g} to {high:g}", meaning)


def _check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise InvalidInput(name, tensor.dtype, f"the network's type {dtype}", f"use {name}.to({dtype})")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
