"""How a service is set up: `[serve]` in undertow.toml, and over it what was typed."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from undertow.cli.config_file import config_file
from undertow.cli.model_loading import Precision, Quantized
from undertow.errors import InvalidInput
from undertow.serving.settings import ServerSettings

Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the database and the pictures.", show_default="undertow-data", rich_help_panel="Service"
    ),
]
Database = Annotated[
    str | None,
    typer.Option(help="URL of a database; postgresql+psycopg://...", show_default="SQLite in the data folder"),
]

Devices = Annotated[
    list[str] | None, typer.Option("--device", help="A worker for each; repeatable.", show_default="cpu")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        help="Processor threads of a worker on a CPU; with another number pictures have other bytes.",
        show_default="OMP_NUM_THREADS, or all cores but one, shared among the workers",
    ),
]
Computed = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="Type that all models compute in; in another one pictures have other bytes.",
        show_default="that of their files, where the device has it",
    ),
]


class Backend(StrEnum):
    """As `known_names.BackendName`: what computes for others is chosen by a person, who can say later what it was."""

    eager = "eager"
    packed = "packed"
    background = "background"
    compile = "compile"
    openvino = "openvino"


Backends = Annotated[
    Backend | None,
    typer.Option(
        "--backend",
        help="What computes the U-Nets: PyTorch, eagerly or with packed weights; graphs, made in the background for "
        "jobs in the mode fast, or waited for (compile); openvino. `undertow bench backends` times them.",
        show_default="eager",
    ),
]
Quantizing = Annotated[
    Quantized | None,
    typer.Option(
        "--quantize",
        help="Weights of linear layers, while models are loaded; none gives back plain ones.",
        show_default="as their files",
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="Memory of a worker: 6GB, 512MiB.", show_default="what is free when it starts")
]
JobsAtOnce = Annotated[
    int | None,
    typer.Option(min=1, help="Jobs that a worker draws together.", show_default="what was measured to be worth it"),
]
Telemetry = Annotated[
    bool | None, typer.Option("--telemetry/--no-telemetry", help="Send traces by OpenTelemetry, where OTEL_* says.")
]


def read_settings(typed: Mapping[str, Any], models: Sequence[str] = ()) -> ServerSettings:
    """The settings of a service. typed: by field, `None` for what was not. models: as they were named. Errors:
    `InvalidInput`."""
    from undertow.cli.config import read_config  # its records need pydantic, which is slow to import

    config = read_config()
    settings: dict[str, Any] = dict(config.serve) | {name: value for name, value in typed.items() if value is not None}
    if models:
        settings["models"] = dict(map(_named, models))
    elif "models" not in settings and config.model is not None:
        settings["models"] = dict([_named(config.model)])
    if "models" in settings and isinstance(settings["models"], Mapping):
        settings["models"] = {name: config.find(str(source)) for name, source in settings["models"].items()}
    for name in ("data", "adapters"):
        if name in settings:
            settings[name] = _expanded(settings[name])
    try:
        return ServerSettings.from_json(settings)
    except InvalidInput as err:
        name = err.argument.partition(".")[0]
        if name not in config.serve or typed.get(name) is not None or (name == "models" and models):
            raise
        raise InvalidInput(
            f"{err.argument} in [serve] of {config_file()}", err.value, err.expected, err.remedy
        ) from err


def _named(model: str) -> tuple[str, str]:
    """A model as NAME=SOURCE, or as its source, whose last part is its name then. Errors: `InvalidInput`."""
    name, equals, source = model.partition("=")
    if not equals:
        name, source = Path(model).name.removesuffix(".safetensors"), model
    if not name or not source or not name.isprintable():
        raise InvalidInput("MODEL", repr(model), "a model, or NAME=MODEL", "`undertow models` lists them")
    return name, source


def _expanded(given: Any) -> Any:
    """With the home folder in place of ~."""
    if isinstance(given, list | tuple):
        return [_expanded(one) for one in given]
    return str(Path(given).expanduser()) if isinstance(given, str | Path) else given
