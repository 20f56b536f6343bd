"""From a class-conditional pixel model to pictures: what `undertow sample`, the demo, previews and evaluation share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from undertow.checkpoints.files.atomic import read_json
from undertow.checkpoints.files.model_folder import CONFIG
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.diffusion.denoiser import Clipped, Denoiser
from undertow.diffusion.grids import sigma_grid
from undertow.diffusion.guidance import ClassifierFree, GuidedDenoiser
from undertow.diffusion.paths import Path as NoisePath
from undertow.diffusion.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.errors import InvalidInput, UnknownCheckpoint
from undertow.sampling.catalogue import find_sampler, start_sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import drive
from undertow.training.pictures import to_uint8
from undertow.training.run_folder import CLASSES, SCHEDULER
from undertow.unet.conditioning import Conditioning, concatenate
from undertow.unet.config import ClassLabels
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True)
class ClassModel:
    """A network that draws pictures of a class, and the mathematics it was trained with."""

    unet: UNet
    scheduler: SchedulerConfig
    class_names: tuple[str, ...]

    @property
    def path(self) -> NoisePath:
        """The path from data to noise."""
        return self.scheduler.schedule.path

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", if the network has one."""
        match self.unet.config.added:
            case ClassLabels(count=count, null=True):
                return count
            case _:
                return None


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn. guidance: 1 is off, more follows the class more closely and varies less."""

    sampler: str
    schedule: str
    steps: int
    guidance: float = 1.0


def sampling_settings(
    path: NoisePath,
    *,
    sampler: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
) -> SamplingSettings:
    """Settings with what suits small pixel models on this path in the place of `None`."""
    match path:
        case VariancePreserving():
            defaults = SamplingSettings(sampler="ddim", schedule="normal", steps=50)
        case RectifiedFlow():
            defaults = SamplingSettings(sampler="flow_heun", schedule="normal", steps=20)
        case VarianceExploding():
            defaults = SamplingSettings(sampler="heun", schedule="karras", steps=18)
    return SamplingSettings(
        sampler=defaults.sampler if sampler is None else sampler,
        schedule=defaults.schedule if schedule is None else schedule,
        steps=defaults.steps if steps is None else steps,
        guidance=guidance,
    )


def load_class_model(
    folder: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = torch.float32
) -> ClassModel:
    """The model of a run folder, or of any folder in diffusers' pipeline layout with a class-conditional UNet2DModel.

    Errors: `UnknownCheckpoint`, `CorruptFile`, `KeyMismatch`, `ConfigError`.
    """
    folder = Path(folder)
    if not (folder / "unet" / CONFIG).is_file():
        training = (folder / "training").is_dir()
        remedy = "the run has not saved its first checkpoint" if training else "make one with 'undertow train digits'"
        raise UnknownCheckpoint(folder, "no trained model (unet/config.json) there", remedy)
    scheduler = SchedulerConfig.from_diffusers(read_json(folder / SCHEDULER))
    unet = load_unet_folder(folder / "unet", dtype=dtype, device=device)
    added = unet.config.added
    if not isinstance(added, ClassLabels):
        raise UnknownCheckpoint(folder / "unet", "its network has no class labels", "give a class-conditional model")
    return ClassModel(unet=unet, scheduler=scheduler, class_names=_class_names(folder / CLASSES, added.count))


def sample_classes(
    model: ClassModel,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    batch_size: int = 100,
    on_pictures: Callable[[int], None] | None = None,
) -> UInt8[Tensor, "count channels height width"]:
    """One picture per label and seed; a picture depends on its own seed, not on its neighbors.

    on_pictures: called with the number of pictures finished since the last call. Errors: `InvalidInput` for labels the
    model does not have, an unknown sampler or schedule, and guidance without a null class; before any work.
    """
    if len(labels) != len(seeds) or len(labels) == 0:
        raise InvalidInput("seeds", f"{len(seeds)} seeds", f"one per label, of which there are {len(labels)}")
    if unknown := [label for label in labels if not 0 <= label < len(model.class_names)]:
        raise InvalidInput("label", unknown[0], f"a class from 0 to {len(model.class_names) - 1}")
    if settings.guidance != 1 and model.null_label is None:
        raise InvalidInput("guidance", settings.guidance, "1, because this model was trained without a null class")
    find_sampler(settings.sampler, model.path)
    sigmas = sigma_grid(settings.schedule, model.scheduler.schedule, settings.steps)
    guidance = ClassifierFree(scale=settings.guidance)
    done: list[Tensor] = []
    for chosen in _slices(len(labels), batch_size):
        done.append(_sample_batch(model, labels[chosen], seeds[chosen], settings.sampler, sigmas, guidance))
        if on_pictures is not None:
            on_pictures(len(done[-1]))
    return torch.cat(done)


@torch.inference_mode()
def _sample_batch(
    model: ClassModel,
    labels: Sequence[int],
    seeds: Sequence[int],
    sampler: str,
    sigmas: Sequence[float],
    guidance: ClassifierFree,
) -> Tensor:
    unet, config, noise = model.unet, model.unet.config, NoiseSource(seeds)
    conditional = Conditioning(class_labels=torch.tensor(list(labels), device=unet.device))
    denoise = GuidedDenoiser(
        denoiser=Denoiser(
            network=unet,
            parameterization=model.scheduler.parameterization,
            schedule=model.scheduler.schedule,
            network_dtype=unet.dtype,
        ),
        guidance=guidance,
        conditional=conditional,
        unconditional=_without_labels(conditional, model.null_label),
        concatenate=concatenate,
    )
    clip = model.scheduler.clip
    start = noise.draw((config.in_channels, config.sample_size, config.sample_size)).to(unet.device)
    x = model.path.pure_noise(start, sigmas[0])
    steps = start_sampler(sampler, x, sigmas, path=model.path, noise=noise, schedule=model.scheduler.schedule)
    return to_uint8(drive(steps, denoise if clip is None else Clipped(denoise=denoise, limit=clip)).cpu())


def _without_labels(conditioning: Conditioning, null: int | None) -> Conditioning | None:
    if null is None or conditioning.class_labels is None:
        return None
    return replace(conditioning, class_labels=torch.full_like(conditioning.class_labels, null))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    """Names by label; numbers when the folder has none."""
    if not path.is_file():
        return tuple(map(str, range(count)))
    names = read_json(path).get("class_names")
    if not isinstance(names, list) or len(names) != count:
        raise UnknownCheckpoint(path, f"its class_names are {names!r}, not {count} names", "write one name per class")
    return tuple(map(str, names))
