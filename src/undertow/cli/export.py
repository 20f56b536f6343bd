"""`undertow export`: a model's networks as files that other programs run."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.checkpoints.files.destination import require_elsewhere, require_new_folder
from undertow.checkpoints.files.place import local_path
from undertow.cli.model_loading import Precision
from undertow.cli.model_option import complete_model, find_model
from undertow.cli.sizes import parse_size
from undertow.cli.terminal import SafeConsole
from undertow.embedded import located
from undertow.export.formats import find_format, require_type

if TYPE_CHECKING:
    from undertow.export.exporting import ExportedPart


class To(StrEnum):
    """The formats that can be written."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch-export"
    WEB = "web"


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A .safetensors file, a pipeline folder, a Hub id, or a name that `undertow models` lists.",
            autocompletion=complete_model,
            callback=find_model,
        ),
    ],
    to: Annotated[To, typer.Option("--to", help="The format, or a page that draws in a browser.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    dtype: Annotated[
        Precision | None, typer.Option(help="Type of the weights.", show_default="f32, for a page f16")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels.", show_default="the size the model was trained at")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Of a forward of the U-Net: guidance needs two a picture.")] = 2,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Leave rows, sizes and lengths of prompts open, for whoever runs it.")
    ] = False,
    controlnet: Annotated[
        bool, typer.Option("--controlnet", help="Give the U-Net inputs for the residuals of a ControlNet.")
    ] = False,
    reference_tokens: Annotated[
        int, typer.Option(min=0, help="Give it inputs for this many tokens of reference pictures (IP-Adapter).")
    ] = 0,
    lora_rank: Annotated[int, typer.Option(min=0, help="Give it inputs for a LoRA of this rank.")] = 0,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read the tensors of a pickle, in a separate process.")
    ] = False,
) -> None:
    """Write a model's networks for ONNX Runtime, OpenVINO, PyTorch or a browser, and compare each with PyTorch."""
    find_format(to.value)
    require_type(to.value, None if dtype is None else dtype.value)
    pixels = None if size is None else parse_size(size)
    require_new_folder(out)
    place = local_path(str(located(model)))
    require_elsewhere("--out", out, [] if place is None else [place])
    import torch

    from undertow.export.exporting import TYPES, export_model
    from undertow.loading import load

    console = SafeConsole(highlight=False)

    def tell(part: "ExportedPart") -> None:
        console.print(_line(part), markup=False, soft_wrap=True)

    service = load(model, dtype=torch.float32, allow_pickle=allow_pickle)
    export_model(
        service,
        to.value,
        out,
        dtype=None if dtype is None else TYPES[dtype.value],
        size=pixels,
        rows=rows,
        dynamic=dynamic,
        controlnet=controlnet,
        reference_tokens=reference_tokens,
        lora_rank=lora_rank,
        written=tell,
    )
    console.print(f"wrote {out}", markup=False, soft_wrap=True)


def _line(part: "ExportedPart") -> str:
    return (
        f"{part.name}: {part.bytes / 1e6:.1f} MB, off by {part.difference:.1e} of its largest value "
        f"({part.tolerance:.0e} allowed)"
    )
