"""The precision of activations during training; weights, gradients and optimizer states stay in float32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from undertow.processor import IMITATED, computes


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[object]:
    """Returns the autocast context of a precision on a device: none for "float32", and none for "bf16" where the device
    only emulates bfloat16."""
    if precision == "float32" or not computes(torch.bfloat16, device):
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def precision_notes(precision: str, device: torch.device | str) -> tuple[str, ...]:
    """Returns what the user should know before training in `precision` on this device."""
    if precision == "float32" or computes(torch.bfloat16, device):
        return ()
    return (f"bf16 trains in float32: {IMITATED[torch.bfloat16]}",)
