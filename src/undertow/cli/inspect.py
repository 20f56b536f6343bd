"""`undertow inspect`: what a network is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from undertow.cli.adapters import explain
from undertow.cli.inspect_embedding import find_inversions, show_inversions
from undertow.cli.inspect_picture import is_picture, show_picture
from undertow.cli.model_option import DEFAULT_MODEL
from undertow.cli.models import WEIGHTS
from undertow.cli.notes import note_idle
from undertow.cli.sizes import parse_size
from undertow.cli.suggested import distilled_words
from undertow.cli.terminal import SafeConsole
from undertow.errors import UnknownCheckpoint
from undertow.lookup import did_you_mean
from undertow.pictures.files import ENDINGS

if TYPE_CHECKING:
    from undertow.unet.config import UNetConfig

FILE_ENDINGS = (*WEIGHTS, *ENDINGS)
"""Of names that mean a file on this machine, not a model on the Hub."""

FOLDER_ENDINGS = (*WEIGHTS, ".json")
"""Of files that every folder of a model, a pipeline or an adapter has some of."""


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset (sd15, sdxl, cifar10, ...), an embedded model, a .safetensors or .gguf file, a folder "
            "or a Hub id; also a LoRA's file or folder, the name of an adapter that came with the model, or a picture."
        ),
    ],
    trace: Annotated[bool, typer.Option("--trace", help="Show every stage's input and output shape.")] = False,
    ports: Annotated[bool, typer.Option("--ports", help="Show every module where an adapter can act.")] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Show which attention kernel runs where on this machine, and why.")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="Number of rows to trace with.", show_default="1", min=1)] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Latent size of --trace and --attention, WIDTHxHEIGHT; the model's own by default."),
    ] = None,
    validate_weights: Annotated[
        bool, typer.Option("--validate-weights", help="Check every value of a checkpoint for NaN, infinity and zeros.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read the tensors of a pickle, in a separate process.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option("--model", help="For a LoRA: the model to compare it with, given like MODEL."),
    ] = None,
) -> None:
    """Show a U-Net's architecture, what a checkpoint or a LoRA is and contains, or how a picture was made; with --trace
    all shapes inside, with --ports where adapters can act, with --attention which kernels run."""
    console = SafeConsole()
    cells = _cells(size)
    bundled = _bundled(model, base)
    if bundled is None:
        _require_there(model, base)
    about_network = {"--trace": trace, "--ports": ports, "--batch": batch is not None, "--size": size is not None}
    about_file = {"--validate-weights": validate_weights, "--allow-pickle": allow_pickle}
    inversions = find_inversions(model) if base is None else ()  # some are hidden in pictures
    if inversions:
        show_inversions(console, inversions)
        note_idle({**about_network, **about_file}, "on a textual inversion")
        return
    if is_picture(model):
        show_picture(console, model)
        note_idle({**about_network, **about_file}, "on a picture")
        return
    if bundled is not None:
        if not _is_adapter(bundled, None):  # control maps and image prompts: what they are shows in a model
            explain([bundled], DEFAULT_MODEL if base is None else base)
            note_idle({**about_network, **about_file}, "on an adapter that is shown in its model")
            return
        model = bundled
    if _is_adapter(model, base):
        from undertow.cli.inspect_adapter import show_adapter

        show_adapter(console, model, base, validate=validate_weights)
        note_idle({**about_network, "--allow-pickle": allow_pickle}, "on a LoRA")
        return
    if _is_checkpoint(model):
        from undertow.cli.inspect_file import show_checkpoint

        config = show_checkpoint(console, model, validate=validate_weights, allow_pickle=allow_pickle)
        if config is None:
            note_idle(about_network, "without a U-Net")
            return
    else:
        config = _config(model)
        console.print(_summary(model, config))
        note_idle(about_file, "on a preset or a model that ships")
    if trace:
        console.print(_trace(config, 1 if batch is None else batch, cells))
    else:
        note_idle({"--batch": batch is not None, "--size": size is not None}, "without --trace")
    if ports:
        console.print(_ports(config))
    if attention:
        from undertow.cli.inspect_attention import show_attention

        show_attention(console, config, _cells(size))


def _bundled(name: str, base: str | None) -> str | None:
    """The path of the adapter that is called so and came with a model: with `base`, or with the embedded one."""
    from undertow.adapters.files.bundled import BundledAdapters
    from undertow.embedded import embedded_models

    embedded = embedded_models()
    for model in (base, DEFAULT_MODEL):
        folder = Path() if model is None else embedded.get(model, Path(model))
        adapters = BundledAdapters(folder if folder.is_dir() else folder.parent)
        if name in adapters.names() and not Path(name).exists():
            return str(adapters.locate(name))
    return None


def _is_adapter(model: str, base: str | None) -> bool:
    """Whether the argument is a LoRA: whoever names a model beside it says so, else its file does."""
    from undertow.cli.inspect_adapter import is_adapter

    return base is not None or is_adapter(model)


def _is_checkpoint(model: str) -> bool:
    """Whether the argument is a file, a pipeline, an autoencoder or a Hub id rather than a preset or the folder of a
    U-Net."""
    from undertow.checkpoints.files.place import is_hub_id
    from undertow.embedded import embedded_models
    from undertow.unet.presets import PRESETS

    if model in PRESETS or model in embedded_models():
        return False
    path = Path(model).expanduser()
    if path.is_dir():
        from undertow.checkpoints.identify.part_folder import is_autoencoder

        return (path / "model_index.json").is_file() or is_autoencoder(path)
    return path.is_file() or (not path.exists() and is_hub_id(model))


def _require_there(model: str, base: str | None) -> None:
    """Whether there is anything to look at, before torch is imported. Errors: `UnknownCheckpoint` for a file that is
    not there, for one that holds no model, and for a name that there is not."""
    from undertow.adapters.files.bundled import BundledAdapters
    from undertow.checkpoints.files.place import is_hub_id, require_regular
    from undertow.checkpoints.files.sniff import require_safetensors, sniff
    from undertow.embedded import embedded_models, meant_by
    from undertow.unet.presets import PRESETS

    require_regular(model)
    known = [*PRESETS, *embedded_models()]
    path = Path(model).expanduser()
    if path.is_file() and not is_picture(model) and sniff(path) not in ("pickle", "gguf"):
        require_safetensors(path)
    if path.is_dir() and not any(entry.suffix in FOLDER_ENDINGS for entry in path.iterdir()):
        raise UnknownCheckpoint(model, "no model in this folder", "name one in it, or a file of weights")
    if model in known or path.exists():
        return
    if path.suffix.lower() in FILE_ENDINGS or len(path.parts) > 1:
        if path.suffix.lower() in FILE_ENDINGS or not is_hub_id(model):
            remedy = f"{meant_by(model)}give the path of one that is there"
            raise UnknownCheckpoint(model, "no such file or folder", remedy)
        return
    known += BundledAdapters(embedded_models().get(DEFAULT_MODEL if base is None else base)).names()
    remedy = f"{did_you_mean(model, known)}known names: {', '.join(known)}"
    raise UnknownCheckpoint(model, "no such file or folder, and no such name", remedy)


def _config(model: str) -> "UNetConfig":
    from undertow.checkpoints.identify.pipeline_folder import read_config
    from undertow.embedded import embedded_models
    from undertow.unet.presets import PRESETS

    return PRESETS[model]() if model in PRESETS else read_config(embedded_models().get(model, Path(model)))


def _summary(name: str, config: "UNetConfig") -> Table:
    import torch

    from undertow.memory.subjects import named_model
    from undertow.unet.unet import UNet

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in UNet(config).parameters())
    table = Table(title=name, show_header=False, title_justify="left", box=None)
    rows = {
        "kind": config.model_type,
        "parameters": f"{count:,}",
        "weights": " · ".join(f"{count * size / 1e6:,.1f} MB {kind}" for kind, size in (("float32", 4), ("half", 2))),
        "channels": f"{config.in_channels} in, {config.out_channels} out",
        "levels": " → ".join(map(str, config.block_out_channels)),
        "attention": ", ".join(str(level.attention) if level.attention else "none" for level in config.levels),
        "middle": str(config.middle.attention or "no attention"),
        "text": "none" if config.context_dim is None else f"{config.context_dim} wide",
        "added": str(config.added or "nothing"),
        "trained at": f"{config.sample_size}x{config.sample_size} cells",
        "was": distilled_words(named_model(name).suggested),
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    return table


def _ports(config: "UNetConfig") -> Table:
    import torch

    from undertow.adapters.state import injection_points
    from undertow.unet.unet import UNet

    table = Table(title="where adapters can act", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("port", "name", "weight"):
        table.add_column(column, no_wrap=True)
    with torch.device("meta"):
        unet = UNet(config)
    for point in injection_points(unet):
        table.add_row(point.port, point.name, "x".join(map(str, point.shape)))
    return table


def _trace(config: "UNetConfig", batch: int, size: tuple[int, int] | None) -> Table:
    from undertow.inspection.trace import trace_shapes

    table = Table(title=f"one forward of {batch}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("stage", "input", "output", "skip"):
        table.add_column(column, no_wrap=True)
    stages = trace_shapes(config, batch=batch, size=size)
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        ends_block = following is not None and _block(stage.name) != _block(following.name)
        table.add_row(stage.name, _text(stage.input), _text(stage.output), stage.skip, end_section=ends_block)
    return table


def _block(name: str) -> str:
    """The level that a layer belongs to; layers outside the levels are one block each side of them."""
    return name.rsplit(".", 2)[0] if "." in name else "outside"


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _cells(size: str | None) -> tuple[int, int] | None:
    """Height and width of latents. Errors: `InvalidInput`."""
    return None if size is None else parse_size(size, "cells, such as 32x32")
