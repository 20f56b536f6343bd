"""`undertow train image-prompt`: pictures as prompts of a text-to-image model, from pictures with captions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from undertow.adapters.adapter import Adapter
from undertow.cli.model_loading import find_device
from undertow.cli.terminal import SafeConsole
from undertow.cli.trained import as_picture, draw_sample, print_command
from undertow.cli.training_options import TrainingOptions, training_verb
from undertow.errors import InvalidInput

if TYPE_CHECKING:
    from undertow.checkpoints.read.model import LoadedModel
    from undertow.encoders.image import ImageEncoder

VariantName = Literal["base", "plus", "full"]


@training_verb(out=Path("runs/image-prompt"), learning_rate=1e-4)
def train_image_prompt(
    options: TrainingOptions,
    encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of a CLIP vision model with projection.", show_default="the model's image_encoder"),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="Folder of references with the pictures' names.", show_default="the pictures themselves"),
    ] = None,
    variant: Annotated[
        VariantName, typer.Option(help="What is read of a picture: one vector (base), or its parts (plus, full).")
    ] = "base",
    tokens: Annotated[int, typer.Option(help="Tokens of each reference picture, for base and plus.")] = 4,
    dropout_images: Annotated[float, typer.Option(help="Share of examples without their picture.")] = 0.05,
    dropout_captions: Annotated[float, typer.Option(help="Share of examples without their caption.")] = 0.05,
    dropout_both: Annotated[float, typer.Option(help="Share of examples without either, for guidance.")] = 0.05,
) -> None:
    """Train an image prompt (IP-Adapter): draw what a reference picture shows, with or without words.

    The file loads in diffusers and undertow. A run that was interrupted goes on with the same command, and
    a finished one with more --steps.
    """
    if references is not None and not references.is_dir():
        raise InvalidInput("--references", str(references), "a folder of pictures", "there is no such folder")
    options.require(*(folder for folder in (encoder, references) if folder is not None))
    from undertow.adapters.image_prompt.image_prompt_file import write_image_prompt
    from undertow.training.image_prompt import ImagePromptSettings
    from undertow.training.image_prompt import train_image_prompt as train
    from undertow.training.paired_images import load_paired_images

    settings = ImagePromptSettings(
        **options.settings(),
        variant=variant,
        tokens=tokens,
        dropped_images=dropout_images,
        dropped_captions=dropout_captions,
        dropped_both=dropout_both,
    )
    console = SafeConsole()
    base, pictures = options.load(console)
    vision = _encoder(base, encoder, find_device(options.device))
    side = vision.config.image_size
    shown = None if references is None else load_paired_images(references, options.images, size=side)
    with options.shown(console) as watched:
        prompt = train(base, vision, pictures, settings, options.out, references=shown, **vars(watched))
    path = options.out / f"{options.name}.safetensors"
    write_image_prompt(prompt, path)
    console.print(f"trained: {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True, highlight=False)
    if not options.no_sample:
        reference = as_picture((pictures.pixels if shown is None else shown)[0])
        adapter = Adapter(str(path), image=reference, encoder=encoder)
        draw_sample(console, base, pictures, adapter, path.with_suffix(".png"))
    print_command(console, pictures.captions[0], options.model, "--adapter", f"{path}=PICTURE.png")


def _encoder(model: "LoadedModel", folder: Path | None, device: str | None) -> "ImageEncoder":
    """The one named, or the one in the model's folder. Errors: `InvalidInput` when there is none; as the loader."""
    import torch

    from undertow.adapters.image_prompt.encoder import load_image_encoder
    from undertow.adapters.image_prompt.projection import PUBLISHED_AT

    if folder is None and not (model.path / "image_encoder").is_dir():
        remedy = f"for example {next(iter(PUBLISHED_AT.values()))}, on the Hub"
        raise InvalidInput("--encoder", None, "a folder, because the model has no image_encoder", remedy)
    return load_image_encoder(model.path if folder is None else folder, dtype=torch.float32, device=device)
