"""The options that are shared by all verbs that train an adapter of a text-to-image model."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console

from undertow.cli.model_loading import Threads, find_device
from undertow.cli.model_option import DEFAULT_MODEL, Model
from undertow.cli.named_files import require_model
from undertow.cli.option_errors import naming_options, options_of
from undertow.cli.training_progress import ShownTraining, shown_training
from undertow.errors import InvalidInput
from undertow.extras import OF_TRAINING, require_packages
from undertow.known_names import require_device_name
from undertow.pictures.names import require_folder

if TYPE_CHECKING:
    from undertow.checkpoints.read.model import LoadedModel
    from undertow.training.captioned import CaptionedPictures
    from undertow.training.fit import FitSettings


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The shared options as given on the command line. Every verb sets its own defaults for `out` and `learning_rate`,
    see `training_verb`."""

    images: Annotated[
        Path,
        typer.Option(
            help="Folder of pictures, their captions in metadata.jsonl, in NAME.txt or NAME.caption, or in the files' "
            "names."
        ),
    ]
    model: Model = DEFAULT_MODEL
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there goes on.")]
    steps: Annotated[int, typer.Option(help="Optimizer steps in all; with more, a finished run goes on.")] = 1000
    batch_size: Annotated[int, typer.Option(help="Pictures per step.")] = 4
    learning_rate: Annotated[float, typer.Option(help="At its peak.")]
    optimizer: Annotated[str, typer.Option(help="adamw, or muon, which trains whole networks in fewer steps.")] = (
        "adamw"
    )
    timesteps: Annotated[str, typer.Option(help="Levels of noise: uniform, or logit_normal.")] = "uniform"
    min_snr_gamma: Annotated[
        float | None, typer.Option(help="Weights of levels: min-SNR's gamma, usually 5.", show_default="constant")
    ] = None
    size: Annotated[int | None, typer.Option(help="Side of a picture, in pixels.", show_default="the model's")] = None
    title: Annotated[str | None, typer.Option(help="Name of what is written.", show_default="that of --out")] = None
    seed: Annotated[int, typer.Option(help="All that is random follows from it.")] = 0
    precision: Annotated[
        str, typer.Option(help="Type of activations: float32, or bf16 where the processor has it.")
    ] = "float32"
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, slower: recompute activations backward.")
    ] = False
    recompute: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint the gradients of this block alone, e.g. up_blocks.3; repeatable."),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="cuda if there is one, else cpu")
    ] = None
    threads: Threads = None
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250
    no_sample: Annotated[bool, typer.Option("--no-sample", help="Do not draw the first caption at the end.")] = False

    @property
    def name(self) -> str:
        """The name of the file or folder that is written."""
        return self.out.resolve().name if self.title is None else self.title

    def require(self, *sources: str | Path) -> None:
        """Checks all that is known without torch, so that a mistake is answered at once. sources: files and folders
        that are read besides the pictures and the model.

        Errors: `InvalidInput` for an `out` among what is read or that takes no files, `UnknownCheckpoint` for what is
        not there, `DataError`, `CheckpointError`, also for a folder in which another training runs,
        `MissingDependency`.
        """
        from undertow.checkpoints.files.destination import require_elsewhere
        from undertow.training.captions import find_captions
        from undertow.training.run_lock import require_no_training

        require_packages("train", OF_TRAINING)
        if self.precision not in ("float32", "bf16"):
            raise InvalidInput("--precision", repr(self.precision), "float32 or bf16")
        if self.optimizer not in ("adamw", "muon"):
            raise InvalidInput("--optimizer", repr(self.optimizer), "adamw or muon")
        if self.device is not None:
            require_device_name("--device", self.device)
        require_elsewhere("--out", self.out, [self.images, self.model, *sources])
        require_folder(self.out, "--out")
        require_no_training(self.out)
        self._require_nothing_there()
        find_captions(self.images)
        for source in (self.model, *sources):
            require_model(source)

    def _require_nothing_there(self) -> None:
        """Errors: `InvalidInput` for a file or folder that this run would replace and no run has written."""
        if (self.out / "checkpoints").is_dir():
            return
        sample = () if self.no_sample else (self.out / f"{self.name}.png",)
        for place in (self.out / self.name, self.out / f"{self.name}.safetensors", *sample):
            if place.exists():
                remedy = "name another folder, or another name with --title"
                raise InvalidInput("--out", repr(str(self.out)), f"a folder without {place.name}", remedy)

    def settings(self) -> dict[str, Any]:
        """The fields that all settings of trainings share."""
        return {
            "fit": self._fit_settings(),
            "timesteps": self.timesteps,
            "min_snr_gamma": self.min_snr_gamma,
            "gradient_checkpointing": tuple(self.recompute) if self.recompute else self.gradient_checkpointing,
        }

    def load(self, console: Console) -> "tuple[LoadedModel, CaptionedPictures]":
        """Loads the base model and the training pictures, and prints where captions are from and what is slow on this
        device. Errors: `InvalidInput` for models that cannot be trained, `DataError`, `CheckpointError`."""
        import torch

        from undertow.loading import load
        from undertow.training.base_model import native_size, require_trainable
        from undertow.training.captioned import caption_notes, load_captioned
        from undertow.training.precision import precision_notes

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = find_device(self.device)
        for note in precision_notes(self.precision, device):
            console.print("note:", note, soft_wrap=True)
        with console.status(f"loading {self.model}"):
            base = load(self.model, dtype=torch.float32, device=device).model
            require_trainable(base)
            pictures = load_captioned(self.images, size=native_size(base) if self.size is None else self.size)
        for note in caption_notes(base, pictures):
            console.print("note:", note, soft_wrap=True, highlight=False, markup=False)
        return base, pictures

    def shown(self, console: Console) -> "AbstractContextManager[ShownTraining]":
        """A progress bar, and Ctrl-C that saves."""
        return shown_training(console, self.steps, self.out / "checkpoints", "the same command")

    def _fit_settings(self) -> "FitSettings":
        from undertow.training.fit import FitSettings

        return FitSettings(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            warmup_steps=min(100, self.steps // 10),
            ema_decay=0.99,
            precision=self.precision,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )


HINTS = get_type_hints(TrainingOptions, include_extras=True)
FIELDS = {
    "dropped": "--dropout-captions",
    "dropped_images, dropped_captions, dropped_both": "--dropout-images, --dropout-captions and --dropout-both",
    "weighting.gamma": "--min-snr-gamma",
}
"""Options of fields that have another name in their record."""
FIRST = 3
"""How many shared options come before a verb's own options in its help: images, model and out."""


def training_verb(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator for verbs whose first parameter is a `TrainingOptions`. In the signature that typer reads,
    this parameter is replaced by the fields of the record, with the given defaults. What
    a record of settings refuses names the option."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=HINTS[field.name],
                default=defaults.get(
                    field.name, inspect.Parameter.empty if field.default is MISSING else field.default
                ),
            )
            for field in fields(TrainingOptions)
        ]
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(verb).parameters.values())[1:]
        ]

        signature = inspect.Signature([*shared[:FIRST], *own, *shared[FIRST:]])
        options = FIELDS | options_of(signature.parameters)

        @wraps(verb)
        def command(**given: Any) -> None:
            with naming_options(options):
                verb(TrainingOptions(**{option.name: given.pop(option.name) for option in shared}), **given)

        command.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        return command

    return decorate
