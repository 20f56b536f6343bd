"""PyTorch's own format: a graph of ATen operations with its weights, for `torch.export.load` and AOTInductor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram

from undertow.errors import InvalidInput
from undertow.export.inputs import INFERRED
from undertow.export.parts import Part
from undertow.export.running import Run

NUMBERS, MOST = ("rows", "tokens"), 2**16
"""Free axes that are not sides of a map, and the largest size of any."""


def exported(part: Part) -> ExportedProgram:
    """The graph of a part. Errors: `InvalidInput` where its sizes cannot be free."""
    # Traced as if gradients were wanted: our own ways to compute a product, for inference, are no format's.
    with torch.inference_mode(False), torch.enable_grad():
        inputs = tuple(tensor.clone() for tensor in part.inputs.values())
        try:
            program = torch.export.export(part.module, inputs, dynamic_shapes=_dynamic(part), strict=False)
        except (UserError, ValueError) as err:
            if part.other is None:
                raise
            why = f"PyTorch finds that some are fixed: {str(err).splitlines()[0]}"
            raise InvalidInput(
                "dynamic", True, f"a network whose sizes are free, which {part.name} is not", why
            ) from err
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # tells of files on this machine
    return program


def write(part: Part, file: Path) -> None:
    """Writes the graph with its weights."""
    torch.export.save(exported(part), file)


def read(file: Path, outputs: int) -> Run:
    """The file as a function."""
    module = torch.export.load(file).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found: Any = module(*inputs)
        return list(found) if outputs > 1 or isinstance(found, tuple) else [found]

    return run


def _dynamic(part: Part) -> Any:
    if part.other is None:
        return None
    named = {name for axes in part.free.values() for name in axes.values() if name != INFERRED}
    names = {name: _dimension(part, name) for name in named}
    axes = [
        {axis: Dim.AUTO if name == INFERRED else names[name] for axis, name in part.free[of].items()}
        for of in part.inputs
    ]
    return {"tensors": tuple(axes)}


def _dimension(part: Part, name: str) -> Any:
    if name in NUMBERS:
        return Dim(name, min=1, max=MOST)
    cells = Dim(name if part.scale == 1 else f"{name}_cells", min=part.least, max=MOST)
    return cells if part.scale == 1 else part.scale * cells
