"""The type in which activations are computed while training; weights, gradients and the optimizer stay in float32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from undertow.processor import IMITATED, computes


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager[object]:
    """Where a forward runs in `precision`: "float32", or "bf16", which is float32 too where the device only imitates
    bfloat16."""
    if precision == "float32" or not computes(torch.bfloat16, device):
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def precision_notes(precision: str, device: torch.device | str) -> tuple[str, ...]:
    """What to say before training in `precision`: nothing, where it is what is computed in."""
    if precision == "float32" or computes(torch.bfloat16, device):
        return ()
    return (f"bf16 trains in float32: {IMITATED[torch.bfloat16]}",)
