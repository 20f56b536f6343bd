"""Refuses inputs that a U-Net cannot use, before any work, with value, expectation and remedy."""

import torch
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.config import ClassLabels, TextTime, UNetConfig


def check_inputs(
    config: UNetConfig,
    dtype: torch.dtype,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    ports: Ports,
) -> None:
    """Ranks, channels, types and widths: what shapes tell, at no cost. Errors: `InvalidInput`."""
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


def check_values(config: UNetConfig, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> None:
    """Finite latents and context, timesteps and labels in range. Reads values, so only of tensors on the CPU: on
    another device each check would wait for it. Errors: `InvalidInput`."""
    for name, tensor in (("latents", latents), ("context", conditioning.context), ("pooled", conditioning.pooled)):
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


_CHANNEL_HINTS = {
    9: "an inpainting model takes latents, mask and masked latents joined at axis 1",
    8: "InstructPix2Pix takes latents and the source picture's latents joined at axis 1",
}


def _check_context(config: UNetConfig, dtype: torch.dtype, rows: int, conditioning: Conditioning) -> None:
    context, mask = conditioning.context, conditioning.context_mask
    if config.context_dim is None:
        if context is not None:
            raise InvalidInput("context", _shape(context), "nothing: this network has no cross-attention")
        return
    if context is None:
        raise InvalidInput(
            "context", None, f"text embeddings [batch, tokens, {config.context_dim}]", "encode the prompt first"
        )
    if context.ndim != 3 or context.shape[0] != rows or context.shape[2] != config.context_dim:
        raise InvalidInput(
            "context", _shape(context), f"[{rows}, tokens, {config.context_dim}]", "use this model's text encoder"
        )
    _check_dtype("context", context, dtype)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != context.shape[:2]):
        raise InvalidInput(
            "context_mask", f"{_shape(mask)} {mask.dtype}", f"bool {list(context.shape[:2])}", "True marks real tokens"
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
    if ports.weights is not None and ports.weights.slots.shape[0] != rows:
        raise InvalidInput("ports.weights.slots", _shape(ports.weights.slots), f"[{rows}, entries per row]")
    if ports.residuals is not None and ports.residuals.skips:
        expected = config.skip_shapes(latents.shape[2], latents.shape[3])
        given = [tuple(residual.shape[1:]) for residual in ports.residuals.skips]
        if given != expected:
            raise InvalidInput(
                "ports.residuals.skips",
                f"{len(given)} tensors {given}",
                f"{len(expected)} tensors {expected} (channels, height, width)",
                "use a ControlNet of this family, run at this size",
            )
    if ports.image is not None:
        for site, tokens in ports.image.items():
            if tokens.keys.shape[0] != rows or tokens.keys.shape != tokens.values.shape:
                raise InvalidInput(
                    f"ports.image[{site!r}]",
                    f"keys {_shape(tokens.keys)}, values {_shape(tokens.values)}",
                    f"two tensors of the same shape with {rows} rows",
                )


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
