"""Where each part of a model comes from: one checkpoint, or others for its VAE and text encoders."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from undertow.checkpoints.identify.checkpoint import Checkpoint, PartSource
from undertow.checkpoints.identify.families import ENCODERS, FamilyName
from undertow.checkpoints.keymap.prefixes import Component, TextKind
from undertow.checkpoints.read.loading import part_shapes
from undertow.checkpoints.read.unet_loading import part_names
from undertow.errors import MissingComponent
from undertow.state_dicts import Shapes
from undertow.vae.config import VAEConfig
from undertow.vae.latent_space import SD, SDXL, LatentSpace

LATENT_SPACES: Mapping[FamilyName, LatentSpace] = {"sd1": SD, "sd2": SD, "sdxl": SDXL, "sdxl_refiner": SDXL}
"""The latent space of each family, for models that bring no VAE of their own."""


@dataclass(frozen=True, kw_only=True)
class ModelSources:
    """Where each part of a model comes from, opened. vae, text: `main` itself, unless they come from elsewhere.

    vae_config, latent_space: `None` for a model without them. kinds: the text encoders that the family reads; missing:
    those of them that are not there.
    """

    main: Checkpoint
    vae: Checkpoint
    text: Checkpoint
    vae_config: VAEConfig | None
    latent_space: LatentSpace | None
    kinds: tuple[TextKind, ...]
    missing: tuple[TextKind, ...]

    @classmethod
    def of(cls, main: Checkpoint, vae: Checkpoint | None, text: Checkpoint | None) -> "ModelSources":
        """Errors: `MissingComponent` for another source of a VAE that has none."""
        family = main.identification.family
        kinds, text_from = ENCODERS[family], main if text is None else text
        config = _vae_config(main) if vae is None else _other_vae_config(vae, LATENT_SPACES.get(family))
        return cls(
            main=main,
            vae=main if vae is None else vae,
            text=text_from,
            vae_config=config,
            latent_space=LATENT_SPACES.get(family) if config is None else config.latent_space,
            kinds=kinds,
            missing=tuple(kind for kind in kinds if kind not in text_from.parts),
        )

    def parts(self) -> dict[Component, PartSource]:
        """The tensors of every part that will be read: the U-Net, the text encoders, the VAE."""
        found: dict[Component, PartSource] = {}
        if "unet" in self.main.parts:
            found["unet"] = self.main.parts["unet"]
        if not self.missing:
            found |= {kind: self.text.parts[kind] for kind in self.kinds}
        if self.vae_config is not None:
            found["vae"] = self.vae.parts["vae"]
        return found

    def shapes(self) -> dict[Component, Shapes]:
        """Names and shapes of the networks that the parts fill. Errors: as in `expected_shapes`."""
        homes: dict[Component, Checkpoint] = {"unet": self.main, "vae": self.vae}
        return {
            component: part_shapes(homes.get(component, self.text), component, source)
            for component, source in self.parts().items()
        }


def _vae_config(checkpoint: Checkpoint) -> VAEConfig | None:
    return checkpoint.vae_config if "vae" in checkpoint.parts else None


def _other_vae_config(checkpoint: Checkpoint, latent_space: LatentSpace | None) -> VAEConfig:
    """The config of a VAE from elsewhere. A single file does not tell the latent space, so that it is the model's."""
    config = _vae_config(checkpoint)
    if config is None:
        raise MissingComponent(checkpoint.path, "VAE", f"it holds {part_names(checkpoint)}")
    if checkpoint.contents is None or latent_space is None:
        return config
    return replace(config, latent_space=latent_space)
