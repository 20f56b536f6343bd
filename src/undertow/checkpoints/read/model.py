"""A whole model from one source: U-Net, VAE, text encoders, and the mathematics they were trained with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions
from undertow.checkpoints.identify.families import FamilyName
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.keymap.prefixes import TITLES, TextKind
from undertow.checkpoints.read.loading import LoadOptions, build_on_meta, common_dtype, load_network
from undertow.checkpoints.read.text_loading import ENCODERS, read_text, require_text_width
from undertow.checkpoints.read.unet_loading import held, read_unet, require_dtype
from undertow.diffusion.parameterizations import PARAMETERIZATIONS, Parameterization
from undertow.diffusion.schedules import Schedule
from undertow.encoders import TextStack
from undertow.errors import MissingComponent, UnsupportedModel
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.latent_space import SD, SDXL, LatentSpace


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was found and decided. notes: decisions and oddities in words, in the order they came up."""

    identification: Identification
    health: Health
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The parts of a checkpoint, ready to run. Absent parts are `None`; the `require_...` methods miss them by name."""

    path: Path
    schedule: Schedule
    parameterization: Parameterization
    latent_space: LatentSpace | None
    family: FamilyName
    report: LoadReport
    unet: UNet | None = None
    vae: AutoencoderKL | None = None
    text: TextStack | None = None
    missing_text: tuple[TextKind, ...] = field(default=())

    def require_unet(self) -> UNet:
        """The U-Net. Errors: `MissingComponent`."""
        if self.unet is None:
            raise MissingComponent(self.path, "U-Net", "give a file or folder that has one")
        return self.unet

    def require_vae(self) -> AutoencoderKL:
        """The VAE. Errors: `MissingComponent`."""
        if self.vae is None:
            raise MissingComponent(self.path, "VAE", "load it from another file or folder with `vae=`")
        return self.vae

    def require_text(self, clip_skip: int | None = None) -> TextStack:
        """The text encoders, undamaged where they are read at this clip skip (the family's own when `None`).

        Errors: `MissingComponent`, `DamagedWeights`.
        """
        if self.text is None:
            missing = " and no ".join(TITLES[kind] for kind in self.missing_text) or "text encoder"
            raise MissingComponent(self.path, missing, "load it from another file or folder with `text=`")
        for reading in self.text.readings:
            self.report.health.require(self.path, max(reading.skip, 1 if clip_skip is None else clip_skip))
        return self.text


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    ema: bool = False,
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
    config: UNetConfig | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    mmap: bool = False,
    channels_last: bool = False,
    validate: bool = True,
    allow_pickle: bool = False,
    attention: str = "auto",
) -> LoadedModel:
    """A model from a single file, a diffusers folder or a Hub id; parts that it does not have are absent.

    dtype, vae_dtype: of the parameters; `None` keeps the file's, for the VAE `dtype`'s. vae, text: other sources for
    these parts. See `OpenOptions` and `LoadOptions` for the rest. Memory at the peak is the model and one tensor.
    Errors: every kind of `CheckpointError`, `ConfigError`, `InvalidInput`, `MissingDependency`.
    """
    require_dtype("dtype", dtype)
    require_dtype("vae_dtype", vae_dtype)
    options = LoadOptions(
        dtype=dtype, device=device, mmap=mmap, channels_last=channels_last, validate=validate, attention=attention
    )
    vae_options = options if vae_dtype is None else replace(options, dtype=vae_dtype)
    opening = OpenOptions(
        config=config,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        ema=ema,
        variant=variant,
        prefer_plain=dtype == torch.float32,
        allow_pickle=allow_pickle,
    )
    parts_only = replace(opening, config=None, prediction=None, ema=False)
    with open_checkpoint(source, opening) as checkpoint:
        model = _read(checkpoint, options, vae_options, skip_vae=vae is not None, skip_text=text is not None)
    if vae is not None:
        with open_checkpoint(vae, parts_only) as other:
            model = _with_vae(model, other, vae_options)
    if text is not None:
        with open_checkpoint(text, parts_only) as other:
            stack, missing = read_text(other, ENCODERS[model.family], options, model.report.health)
            model.report.health.require(other.path)
            require_text_width(other.path, model.report.identification.config, stack)
            model = replace(model, text=stack, missing_text=missing)
    return replace(model, report=replace(model.report, notes=(*model.report.notes, *_damage(model.report.health))))


def _read(
    checkpoint: Checkpoint, options: LoadOptions, vae_options: LoadOptions, *, skip_vae: bool, skip_text: bool
) -> LoadedModel:
    found, health = checkpoint.identification, Health()
    parameterization = PARAMETERIZATIONS.get(found.prediction.value)
    if parameterization is None or parameterization.path != checkpoint.schedule.path:
        raise UnsupportedModel(
            checkpoint.path,
            f"{found.title} trained with EDM preconditioning ({found.prediction.evidence})",
            "its U-Net alone loads with undertow.load_unet",
        )
    if not checkpoint.parts.keys() - {"controlnet"}:
        raise UnsupportedModel(checkpoint.path, "a ControlNet", "load it beside a base model as an adapter")
    unet = read_unet(checkpoint, options, health) if "unet" in checkpoint.parts else None
    vae = read_vae(checkpoint, vae_options, health) if "vae" in checkpoint.parts and not skip_vae else None
    kinds = ENCODERS[found.family]
    stack, missing = (None, kinds) if skip_text else read_text(checkpoint, kinds, options, health)
    health.require(checkpoint.path)
    require_text_width(checkpoint.path, found.config, stack)
    return LoadedModel(
        path=checkpoint.path,
        schedule=checkpoint.schedule,
        parameterization=parameterization,
        latent_space=_latent_space(found.family, vae),
        family=found.family,
        report=LoadReport(identification=found, health=health, notes=_notes(checkpoint, options)),
        unet=unet,
        vae=vae,
        text=stack,
        missing_text=missing,
    )


def read_vae(checkpoint: Checkpoint, options: LoadOptions, health: Health) -> AutoencoderKL:
    """The VAE of an opened checkpoint. Errors: `MissingComponent`, `KeyMismatch`, `CorruptFile`."""
    config, source = checkpoint.vae_config, checkpoint.parts.get("vae")
    if config is None or source is None:
        raise MissingComponent(checkpoint.path, "VAE", f"it holds {held(checkpoint)}")
    return load_network(
        build_on_meta(lambda: AutoencoderKL(config)),
        source.weights,
        source.part,
        options,
        health,
        source.names,
        source.label,
    )


def _with_vae(model: LoadedModel, other: Checkpoint, options: LoadOptions) -> LoadedModel:
    """The model with the VAE of another checkpoint, which for a file of one keeps the model's own latent space."""
    vae_config = other.vae_config
    if vae_config is not None and other.contents is not None and model.latent_space is not None:
        other = replace(other, vae_config=replace(vae_config, latent_space=model.latent_space))
    vae = read_vae(other, options, model.report.health)
    model.report.health.require(other.path)
    return replace(model, vae=vae, latent_space=vae.config.latent_space)


def _latent_space(family: FamilyName, vae: AutoencoderKL | None) -> LatentSpace | None:
    if vae is not None:
        return vae.config.latent_space
    spaces: Mapping[FamilyName, LatentSpace] = {"sd1": SD, "sd2": SD, "sdxl": SDXL, "sdxl_refiner": SDXL}
    return spaces.get(family)


def _notes(checkpoint: Checkpoint, options: LoadOptions) -> tuple[str, ...]:
    notes: list[str] = []
    found = checkpoint.identification
    if found.prediction.confidence != "certain":
        notes.append(f"prediction {found.prediction.value}: {found.prediction.confidence}, {found.prediction.evidence}")
    for component, source in checkpoint.parts.items():
        stored = {source.weights.tensors[name].dtype for name in source.part.mappings}
        floats = {dtype for dtype in stored if dtype.is_floating_point}
        if options.dtype is None and len(floats) > 1:
            chosen = common_dtype(source.weights, list(source.part.mappings))
            notes.append(f"{TITLES[component]}: stored in {len(floats)} types, all became {chosen}")
    return tuple(notes)


def _damage(health: Health) -> Iterator[str]:
    """What is damaged and was loaded all the same, in words."""
    yield from (f"damaged, but never read: {finding}" for finding in health.unused)
    for finding in health.problems:
        if finding.use is not None:
            yield f"damaged, read up to clip skip {finding.use}: {finding}"
