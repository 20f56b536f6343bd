"""A whole model in memory: U-Net, VAE, text encoders, and the mathematics they were trained with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.families import FamilyName
from undertow.checkpoints.identify.few_steps import suggested_fields, why_few_steps
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.keymap.prefixes import TITLES, Component, TextKind
from undertow.checkpoints.read.home import FileHome
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.schedules import Schedule
from undertow.encoders.text_stack import TextStack
from undertow.errors import MissingComponent
from undertow.schedulers.model_sampler import ModelSampler
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.latent_space import LatentSpace


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was found and decided while loading. notes: decisions and anomalies as sentences."""

    identification: Identification
    health: Health
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The parts of a checkpoint, ready to run. Absent parts are `None`; the `require_...` methods raise for them.
    sampler: as in `Checkpoint`. homes: where the weights of each part can be read again."""

    path: Path
    schedule: Schedule = field(repr=False)
    parameterization: Parameterization
    latent_space: LatentSpace | None = field(repr=False)
    family: FamilyName
    report: LoadReport = field(repr=False)
    sampler: ModelSampler | str | None = field(default=None, repr=False)
    unet: UNet | None = field(default=None, repr=False)
    vae: AutoencoderKL | None = field(default=None, repr=False)
    text: TextStack | None = field(default=None, repr=False)
    missing_text: tuple[TextKind, ...] = field(default=())
    homes: Mapping[Component, FileHome] = field(default_factory=dict, repr=False)

    @property
    def is_of_classes(self) -> bool:
        """Whether the network draws pixels, of a class or of nothing at all: no text, and no autoencoder."""
        if self.unet is None or self.vae is not None:
            return False
        config = self.unet.config
        return config.context_dim is None and config.in_channels == config.out_channels

    @property
    def few_steps(self) -> str:
        """Why it counts as distilled to few steps; empty where nothing says so."""
        return "" if self.unet is None else why_few_steps(self.unet.config, self._scheduler)

    @property
    def suggested(self) -> dict[str, float]:
        """Fields of a request that it is best drawn with; nothing where the defaults are right."""
        return {} if self.unet is None else suggested_fields(self.unet.config, self._scheduler)

    @property
    def _scheduler(self) -> str | None:
        return self.sampler.scheduler if isinstance(self.sampler, ModelSampler) else None

    def require_unet(self) -> UNet:
        """The U-Net. Errors: `MissingComponent`."""
        if self.unet is None:
            raise MissingComponent(self.path, "U-Net", "give a file or folder that has one")
        return self.unet

    def require_vae(self) -> AutoencoderKL:
        """The VAE. Errors: `MissingComponent`."""
        if self.vae is None:
            remedy = self._remedy(
                "it draws no latents", "give a whole checkpoint, or in Python another one with `vae=`"
            )
            raise MissingComponent(self.path, "VAE", remedy)
        return self.vae

    def require_text(self, clip_skip: int | None = None) -> TextStack:
        """The text encoders, without damage where they are used at this clip skip (`None`: the family's own).

        Errors: `MissingComponent`, `DamagedWeights`.
        """
        if self.text is None:
            missing = " and no ".join(TITLES[kind] for kind in self.missing_text) or "text encoder"
            remedy = self._remedy("it reads no words", "give a whole checkpoint, or in Python another one with `text=`")
            raise MissingComponent(self.path, missing, remedy)
        for selection in self.text.selections:
            self.report.health.require(self.path, max(selection.skip, 1 if clip_skip is None else clip_skip))
        return self.text

    def _remedy(self, so: str, otherwise: str) -> str:
        """For a part that is missing: of a pixel model nothing that is loaded beside it helps."""
        if self.is_of_classes:
            return f"it is a pixel model: {so}; undertow sample draws with it, and undertow doctor examines it"
        return otherwise
