"""`undertow prune`: a text-to-image model with a smaller U-Net, of the parts that matter most."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.checkpoints.files.destination import require_elsewhere, require_new_folder
from undertow.cli.model_loading import Threads, find_device
from undertow.cli.model_option import complete_model, find_model
from undertow.cli.named_files import require_model
from undertow.cli.option_errors import naming_options, options_of
from undertow.cli.terminal import SafeConsole
from undertow.errors import InvalidInput
from undertow.extras import OF_TRAINING, require_packages
from undertow.known_names import require_device_name
from undertow.lookup import counted

if TYPE_CHECKING:
    from rich.console import Console

    from undertow.training.pruning.prune import Pruned
    from undertow.unet.unet import UNet


def prune(
    model: Annotated[
        str,
        typer.Argument(
            help="The text-to-image model whose U-Net is pruned, as for `generate`.",
            autocompletion=complete_model,
            callback=find_model,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="A new folder, for the model with the smaller U-Net.")],
    images: Annotated[
        Path,
        typer.Option(help="Folder of pictures with captions on which importance is measured, as for `train lora`."),
    ],
    width: Annotated[
        float | None,
        typer.Option(help="Share of the channels, heads and feed-forward width that stays.", show_default="all"),
    ] = None,
    blocks: Annotated[
        int, typer.Option(help="How many blocks leave: layers of a level, transformer blocks, the middle's attention.")
    ] = 0,
    batches: Annotated[int, typer.Option(help="Batches on which importance is measured.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Pictures in a batch.")] = 4,
    size: Annotated[int | None, typer.Option(help="Side of a picture, in pixels.", show_default="the model's")] = None,
    seed: Annotated[int, typer.Option(help="All that is random follows from it.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu")
    ] = None,
    threads: Threads = None,
) -> None:
    """Prune a text-to-image model: blocks, and the width of all levels, by what matters least to its predictions.

    OUT is a model folder of a plain smaller architecture, which undertow and diffusers draw with. It draws badly until
    it is trained again, by the command that is printed.
    """
    if width is None and blocks < 1:
        raise InvalidInput("--width", "not given", "a share of the channels that stay, or a number of --blocks")
    require_packages("train", OF_TRAINING)
    if device is not None:
        require_device_name("--device", device)
    require_elsewhere("OUT", out, [images, model])
    require_new_folder(out)
    require_model(model)
    from undertow.training.captions import find_captions

    find_captions(images)
    import torch

    from undertow.loading import load
    from undertow.training.base_model import native_size, require_trainable
    from undertow.training.captioned import load_captioned
    from undertow.training.distillation_export import write_with_unet
    from undertow.training.pruning.prune import PruningSettings, require_prunable
    from undertow.training.pruning.prune import prune as prune_model

    options = options_of(("width", "blocks", "batches", "batch_size"))
    with naming_options(options):
        settings = PruningSettings(width=width, blocks=blocks, batches=batches, batch_size=batch_size, seed=seed)
    if threads is not None:
        torch.set_num_threads(threads)
    console = SafeConsole()
    with console.status(f"loading {model}") as status:
        base = load(model, dtype=torch.float32, device=find_device(device)).model
        unet, _ = require_trainable(base)
        with naming_options(options):
            require_prunable(unet.config, settings)
        pictures = load_captioned(images, size=native_size(base) if size is None else size)
        found = prune_model(base, pictures, settings, on_stage=lambda title: status.update(f"measuring {title}"))
    write_with_unet(found.unet, base, out)
    _show(console, unet, found)
    console.print(f"pruned: {out}", soft_wrap=True, highlight=False, markup=False)
    command = f"undertow train distill --method features --student {out} --model {model} --images {images}"
    console.print(f"train it again: {command}", soft_wrap=True, highlight=False, markup=False)


def _show(console: "Console", before: "UNet", found: "Pruned") -> None:
    for title in found.removed:
        console.print("without", title, soft_wrap=True, highlight=False, markup=False)
    config = found.unet.config
    left, all_of_it = (sum(one.numel() for one in unet.parameters()) for unet in (found.unet, before))
    widths = " ".join(f"{old} → {new}" for old, new in zip(
        before.config.block_out_channels, config.block_out_channels, strict=True) if old != new)  # fmt: skip
    if widths:
        groups = f"{before.config.norm_groups} → {config.norm_groups}"
        console.print(f"channels {widths}, in groups of normalization {groups}", soft_wrap=True, highlight=False)
    share = f"{counted(left, 'weight')}, {left / all_of_it:.0%} of {all_of_it:,}"
    console.print(f"U-Net of {share}; its predictions are {found.error:.1%} apart (squared)", soft_wrap=True,
                  highlight=False)  # fmt: skip
