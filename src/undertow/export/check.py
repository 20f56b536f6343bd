"""What an exported file computes, beside what PyTorch computes."""

import torch
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.export.inputs import Tensors
from undertow.export.parts import Part
from undertow.export.running import Run

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference allowed, as a share of the largest number: a few hundred roundings of each type."""


def largest_difference(part: Part, run: Run) -> float:
    """Over all outputs and all examples, as a share of the largest number of the output. Errors: `InvalidInput` for
    one over the tolerance."""
    found = max(_difference(part, run, inputs) for inputs in (part.inputs, part.other) if inputs is not None)
    tolerance = TOLERANCES[part.stored]
    if not found <= tolerance:
        raise InvalidInput(
            f"the exported {part.name}",
            f"off by {found:.1e} of its largest value",
            f"at most {tolerance:.0e}",
            "nothing was written; please report it with the model and the versions of the packages",
        )
    return found


@torch.inference_mode()
def _difference(part: Part, run: Run, inputs: Tensors) -> float:
    own = next(part.reference.parameters())
    given = [_like(tensor, part.dtype, own) for tensor in inputs.values()]
    answer = part.reference(*given)
    expected = [answer] if isinstance(answer, Tensor) else list(answer)
    found = run(list(inputs.values()))
    pairs = zip(expected, found, strict=True)
    return max(_relative(one.cpu().float(), other.float()) for one, other in pairs)


def _like(tensor: Tensor, dtype: torch.dtype, own: Tensor) -> Tensor:
    """An input where the model's own network is, and in its type where it has that of the weights."""
    is_of_weights = tensor.is_floating_point() and tensor.dtype == dtype and tensor.ndim > 1
    return tensor.to(own.device, own.dtype if is_of_weights else tensor.dtype)


def _relative(expected: Tensor, found: Tensor) -> float:
    """NaN where a number is not finite."""
    largest = expected.abs().max().item()
    return (expected - found).abs().max().item() / (largest if largest > 0 else 1.0)
