"""A model's networks as files of another format, each compared with what PyTorch computes before it is kept."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undertow.adapters.lora.kind import LoraKind
from undertow.checkpoints.files.atomic import atomic_folder
from undertow.checkpoints.files.destination import require_elsewhere, require_new_folder
from undertow.doors import checked
from undertow.errors import InvalidInput
from undertow.export.check import TOLERANCES, largest_difference
from undertow.export.formats import find_format, require_type
from undertow.export.parts import Choices, Part, Types, parts_of
from undertow.export.web import pack, page_parts, require_page, write_page
from undertow.known_names import PRECISIONS
from undertow.service import UNetService

TYPES = {name: getattr(torch, dtype) for name, dtype in PRECISIONS.items()}

MODULES = {"onnx": "onnx", "web": "onnx", "openvino": "openvino", "torch-export": "torch_export"}
"""Of this room, with the functions `write` and `read`, by format."""

LISTED = "export.json"
"""What is in the folder: for each file its inputs and outputs, in their order."""


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """A file that was written. bytes: of it and of what lies beside it. difference: the largest to what PyTorch
    computes, as a share of the largest number; `tolerance` was allowed."""

    name: str
    file: Path
    bytes: int
    difference: float
    tolerance: float


Written = Callable[[ExportedPart], None]


def unwritten(part: ExportedPart) -> None:
    """Nobody asked to be told."""
    del part


@checked
def export_model(
    service: UNetService,
    to: str,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    size: tuple[int, int] | None = None,
    rows: int = 2,
    dynamic: bool = False,
    controlnet: bool = False,
    reference_tokens: int = 0,
    lora_rank: int = 0,
    written: Written = unwritten,
) -> tuple[ExportedPart, ...]:
    """Writes a model's U-Net, text encoders and autoencoder into a new folder, for other programs to run.

    to: "onnx", "openvino", "torch-export", or "web", a page that draws in a browser (`export.web`). dtype: of the
    weights; `None` for float32, and float16 in a browser. size: height and width in pixels; `None` for the model's own.
    rows: of a forward of the U-Net, two for a picture with guidance. dynamic: other rows, sizes and lengths of prompts
    are possible when the files are run. controlnet: the U-Net has inputs for a ControlNet's residuals.
    reference_tokens: and for the keys and values of this many tokens of reference pictures (IP-Adapter). lora_rank: and
    for a LoRA of this rank. written: called with each file.

    Every file is run and compared with PyTorch; nothing is kept of a model with a file that differs by more than the
    type explains. `export.json` lists inputs and outputs. Errors: `InvalidInput` for what the format, the model or the
    place does not allow, and for a model that has adapters merged into its weights; `MissingDependency`.
    """
    form = find_format(to)
    stored = _type(to, dtype)
    folder = Path(folder)
    require_elsewhere("folder", folder, [service.model.path])
    require_new_folder(folder)
    _require_pristine(service)
    choices = Choices(
        size=size,
        rows=rows,
        dynamic=dynamic,
        controlnet=controlnet,
        reference_tokens=reference_tokens,
        lora_rank=lora_rank,
    )
    upcast = service.unet.config.upcast_attention
    if upcast and stored == torch.float16 and not form.stores:
        expected = "f32 for a model whose attention overflows in float16 (upcast_attention)"
        raise InvalidInput("dtype", "f16", expected, "an exported graph has one type")
    if to == "web":
        require_page(service.model, choices)
        parts = page_parts(service.model, choices)
    else:
        types = Types(dtype=torch.float32 if form.stores else stored, stored=stored)
        parts = parts_of(service.model, choices, types)
    folder.parent.mkdir(parents=True, exist_ok=True)
    found: list[ExportedPart] = []
    with atomic_folder(folder) as draft:
        for part in parts:
            made = _write_part(part, to, draft / (part.name + form.suffix), folder)
            found.append(made)
            written(made)
        if to == "web":
            write_page(service.model, parts, draft)
        else:
            listing = {"format": to, "dtype": str(stored), "parts": [described(one) for one in parts]}
            (draft / LISTED).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
    return tuple(found)


def _write_part(part: Part, to: str, file: Path, folder: Path) -> ExportedPart:
    """Writes one file and compares it. folder: where it will be. Errors: `InvalidInput`."""
    module: Any = import_module(f"{__package__}.{MODULES[to]}")
    readable = file if to != "web" else file.with_suffix(".onnx")
    module.write(part, readable)
    difference = largest_difference(part, module.read(readable, len(part.outputs)))
    if to == "web":
        pack(readable, file)
        readable.unlink()
    size = sum(one.stat().st_size for one in file.parent.glob(f"{file.stem}.*"))
    return ExportedPart(
        name=part.name,
        file=folder / file.name,
        bytes=size,
        difference=difference,
        tolerance=TOLERANCES[part.stored],
    )


def described(part: Part) -> dict[str, Any]:
    """A part for `export.json`: free sizes by their names."""

    def shape(name: str, tensor: Tensor) -> list[int | str]:
        return [part.free.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)]

    inputs = [
        {"name": name, "shape": shape(name, tensor), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in part.inputs.items()
    ]
    return {"name": part.name, "inputs": inputs, "outputs": list(part.outputs)}


def _require_pristine(service: UNetService) -> None:
    titles = service.adapters.kind(LoraKind).merged.titles
    if titles:
        raise InvalidInput(
            "service",
            f"a model with {', '.join(titles)} merged into its weights",
            "the model's own weights",
            "call service.adapters.unmerge() first, or export with lora_rank= and give the LoRA as inputs",
        )


def _type(to: str, dtype: torch.dtype | None) -> torch.dtype:
    names = {known: name for name, known in TYPES.items()}
    return TYPES[require_type(to, None if dtype is None else names.get(dtype, str(dtype)))]
