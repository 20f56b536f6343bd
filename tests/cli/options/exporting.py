"""Where the options of `undertow export` arrive."""

from pathlib import Path

import torch

from tests.cli.options.arrival import LOADED, Boundary, Command, case

SERVICE = "the loaded service"


def exporting(at: Boundary) -> None:
    at.stand_in("undertow.loading.load", SERVICE)
    at.stand_in("undertow.export.exporting.export_model", (), unnoted=("written",))


EXPORT = Command(
    verb=("export",),
    arguments={"model": "emoji"},
    needed=("--to", "onnx", "--out", "there"),
    boundary=exporting,
    arrives={
        **LOADED,
        "load.source": "emoji",
        "load.dtype": torch.float32,
        "export_model.service": SERVICE,
        "export_model.to": "onnx",
        "export_model.folder": Path("there"),
        "export_model.dtype": None,
        "export_model.size": None,
        "export_model.rows": 2,
        "export_model.dynamic": False,
        "export_model.controlnet": False,
        "export_model.reference_tokens": 0,
        "export_model.lora_rank": 0,
        "files": [],
    },
    cases=(
        case("--to", "openvino", export_model__to="openvino"),
        case("--to", "torch-export", export_model__to="torch-export"),
        case("--to", "web", export_model__to="web"),
        case("--out", "elsewhere", export_model__folder=Path("elsewhere")),
        case("--dtype", "f16", export_model__dtype=torch.float16),
        case("--dtype", "bf16", refused="ONNX Runtime has no convolution in bf16"),
        case("--size", "96x64", export_model__size=(64, 96)),
        case("--rows", "4", export_model__rows=4),
        case("--dynamic", export_model__dynamic=True),
        case("--controlnet", export_model__controlnet=True),
        case("--reference-tokens", "4", export_model__reference_tokens=4),
        case("--lora-rank", "8", export_model__lora_rank=8),
        case("--allow-pickle", load__allow_pickle=True),
    ),
)

COMMANDS = (EXPORT,)
