"""An opened checkpoint: what it is and where each of its parts is, before any weight is read."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from undertow.checkpoints.files.model_file import open_model_file
from undertow.checkpoints.files.pickled import as_safetensors, is_pickle
from undertow.checkpoints.files.weights import WeightFile, Weights
from undertow.checkpoints.identify.ema import ema_names
from undertow.checkpoints.identify.few_steps import suggested_fields
from undertow.checkpoints.identify.identification import Identification, identify_contents, readable_contents
from undertow.checkpoints.identify.noise_schedule import schedule_of
from undertow.checkpoints.identify.vae_architecture import vae_config_of
from undertow.checkpoints.keymap import TensorMapping
from undertow.checkpoints.keymap.contents import Contents, Part
from undertow.checkpoints.keymap.prefixes import Component, TextKind
from undertow.diffusion.schedules import Schedule
from undertow.schedulers.model_sampler import ModelSampler
from undertow.unet.config import UNetConfig
from undertow.vae.config import VAEConfig


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How to interpret a checkpoint.

    config: the U-Net's architecture, when it cannot be derived from the tensors. prediction, zero_terminal_snr:
    override what is found. ema: use the averaged (EMA) weights. variant: which variant of a folder's weights files;
    without it float16 comes first, or the plain one with `prefer_plain`. allow_pickle: read pickles in a separate
    process.
    """

    config: UNetConfig | None = None
    prediction: str | None = None
    zero_terminal_snr: bool | None = None
    ema: bool = False
    variant: str | None = None
    prefer_plain: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True)
class PartSource:
    """Where one component's tensors are. names: tensors to read instead (EMA weights), by the part's names."""

    weights: Weights
    part: Part
    names: Mapping[str, str] | None = None
    folder: Path | None = None
    """The component's own folder, in a pipeline folder."""

    @property
    def mappings(self) -> dict[str, TensorMapping]:
        """What each tensor that is read fills, by its name in the file."""
        names = self.names
        return {(name if names is None else names[name]): mapping for name, mapping in self.part.mappings.items()}

    @property
    def label(self) -> str:
        """The prefix of its tensors' names in messages, because a pipeline's text encoders have the same names."""
        return "" if self.folder is None else f"{self.folder.name}/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything known about a checkpoint without reading weights. sampler: that of its scheduler_config.json, or why
    it is none of ours. tokenizers: their folders, by text encoder."""

    path: Path
    identification: Identification
    schedule: Schedule
    sampler: ModelSampler | str | None = None
    parts: Mapping[Component, PartSource]
    vae_config: VAEConfig | None = None
    tokenizers: Mapping[TextKind, Path] = field(default_factory=dict)
    contents: Contents | None = None
    """The names in a single file; `None` for a folder."""

    @property
    def suggested(self) -> dict[str, float]:
        """Fields of a request that it is best drawn with; nothing where the defaults are right."""
        config = self.identification.config
        scheduler = self.sampler.scheduler if isinstance(self.sampler, ModelSampler) else None
        return {} if config is None else suggested_fields(config, scheduler)


@contextmanager
def open_file(path: Path, options: OpenOptions) -> Generator[Checkpoint]:
    """Opens a single safetensors or GGUF file. A pickle, if allowed, is converted to a temporary safetensors file.

    Errors: `UnsafeFile`, `UnsupportedModel`, `UnknownCheckpoint`, `CorruptFile`, `MissingComponent`.
    """
    if options.allow_pickle and is_pickle(path):
        with as_safetensors(path) as converted:
            yield describe_file(Weights(path, [WeightFile(converted)]), path, options)
    else:
        yield describe_file(open_model_file(path), path, options)


def describe_file(weights: Weights, path: Path, options: OpenOptions) -> Checkpoint:
    """The checkpoint in the tensors of a single file."""
    contents = readable_contents(weights)
    identification = identify_contents(
        weights,
        contents,
        config=options.config,
        prediction=options.prediction,
        zero_terminal_snr=options.zero_terminal_snr,
        sidecar_of=path,
    )
    parts: dict[Component, PartSource] = {
        component: PartSource(weights=weights, part=part) for component, part in contents.parts.items()
    }
    if options.ema and "unet" in parts:
        part = contents.parts["unet"]
        parts["unet"] = PartSource(weights=weights, part=part, names=ema_names(weights, contents, part))
    return Checkpoint(
        path=path,
        identification=identification,
        schedule=schedule_of(weights, contents, identification),
        parts=parts,
        vae_config=vae_config_of(weights, contents, identification.family),
        contents=contents,
    )
