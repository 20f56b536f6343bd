"""IP-Adapter as a kind of adapter: each with its reference pictures, laid over the latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.files.picture_readers import require_pictures
from undertow.adapters.image_prompt.encoder import Encoders
from undertow.adapters.image_prompt.image_port import ImagePromptRow, ImagePromptTokens, areas, combine, image_port
from undertow.adapters.image_prompt.image_prompt_file import image_prompt_from
from undertow.adapters.image_prompt.names import FACE_PREFIXES, is_image_prompt, require_image_prompt
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.kind import AdaptedModel, AdapterKind, BatchRow, require_no_hint
from undertow.adapters.lora.updates import LayerUpdates
from undertow.adapters.pictures import Area, Hint, LatentGrid
from undertow.adapters.rules import require_masks
from undertow.encoders.image import ImageEncoder, ImageFeatures
from undertow.memory.adapter_networks import AdapterNetworks, WholeFile
from undertow.memory.component import READ_ONCE
from undertow.pictures.files import several
from undertow.pictures.pixels import to_mask
from undertow.unet.conditioning import Ports
from undertow.unet.config import UNetConfig
from undertow.unet.runner import Runner

KeysValues = Mapping[str, tuple[Tensor, Tensor]]
Areas = Mapping[str, Float[Tensor, "1 queries"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedImagePrompt:
    """An IP-Adapter with the reference pictures of a request. conditional, unconditional: keys and values by
    cross-attention, for each set of pictures that shares a softmax, and for no picture in its place."""

    adapter: Adapter
    prompt: ImagePrompt
    config: UNetConfig
    conditional: tuple[KeysValues, ...]
    unconditional: tuple[KeysValues, ...]

    @classmethod
    def read(
        cls,
        adapter: Adapter,
        prompt: ImagePrompt,
        encoder: ImageEncoder,
        config: UNetConfig,
        networks: AdapterNetworks | None = None,
    ) -> "ResolvedImagePrompt":
        """The pictures encoded, once for all steps. Several without masks are one longer sequence; with masks each has
        a softmax of its own. networks: which have the adapter and the encoder in memory. Errors: `InvalidInput` for no
        picture, and masks that are not one for each; `AdapterMismatch` for another adapter's encoder."""
        pictures, masks = adapter.images(), adapter.masks()
        require_pictures(adapter, prompt.title, several_allowed=True)
        require_masks(adapter)
        drawn = [to_mask(mask, (mask.height, mask.width))[0, 0] for mask in masks] or None

        def keys_values(features: ImageFeatures) -> tuple[KeysValues, ...]:
            return tuple(prompt.keys_values(one.tokens) for one in combine(prompt.tokens(features), drawn))

        networks = AdapterNetworks() if networks is None else networks
        with networks.using(encoder):
            seen, nothing = encoder.encode(pictures), prompt.nothing(encoder, len(pictures))
        with networks.using(prompt):
            conditional, unconditional = keys_values(seen), keys_values(nothing)
        return cls(adapter=adapter, prompt=prompt, config=config, conditional=conditional, unconditional=unconditional)

    @property
    def loaded(self) -> ImagePrompt:
        """Its file in memory."""
        return self.prompt

    def note(self, *, guided: bool) -> str:
        """What it is, and how many pictures it reads."""
        count = len(several(self.adapter.image))
        how = "each looked at by itself" if len(self.conditional) > 1 else "looked at together"
        return f"{self.prompt.title}, {'one picture' if count == 1 else f'{count} pictures, {how}'}"

    def tile(self, grid: LatentGrid) -> "TiledImagePrompt":
        """The masks cut into the windows of the latents. Errors: `InvalidInput` for masks of another shape."""
        masks = [grid.area(self.adapter.title, mask) for mask in self.adapter.masks()]
        windows = [grid.pixel_windows(mask) for mask in masks]
        count = len(windows[0]) if windows else 0
        return TiledImagePrompt(
            resolved=self,
            windows=tuple(tuple(self._areas(parts[index], grid) for parts in windows) for index in range(count)),
        )

    def _areas(self, mask: Area, grid: LatentGrid) -> Areas:
        height, width = mask.shape[2] // grid.factor, mask.shape[3] // grid.factor
        found = areas(mask[0, 0], self.config.attention_grids(height, width))
        return {site: area.to(self.prompt.device) for site, area in found.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledImagePrompt:
    """Reference pictures laid over the latents. windows: for each window, the area of each picture; empty without
    masks."""

    resolved: ResolvedImagePrompt
    windows: tuple[tuple[Areas, ...], ...]

    def rows(self, window: int, step: int, steps: int, *, conditional: bool) -> Sequence[ImagePromptRow]:
        """Its inputs to a row of this window at a step; empty where it does not act. conditional: the side of
        guidance."""
        resolved = self.resolved
        scale = resolved.adapter.gain(step, steps)
        gains = {
            site: gain for site in resolved.config.cross_attentions() if (gain := scale * resolved.adapter.factor(site))
        }
        if not gains:
            return ()
        seen = resolved.conditional if conditional else resolved.unconditional
        places = self.windows[window] if self.windows else [None] * len(seen)
        return [
            ImagePromptRow(
                sites={
                    site: ImagePromptTokens(
                        keys=tokens[site][0],
                        values=tokens[site][1],
                        gain=gain,
                        area=None if area is None else area[site],
                    )
                    for site, gain in gains.items()
                }
            )
            for tokens, area in zip(seen, places, strict=True)
        ]


class ImagePromptKind(AdapterKind[ImagePrompt, ResolvedImagePrompt, ImagePromptRow]):
    """IP-Adapters, whose reference pictures are attended to beside the text. encoders: the image encoders in use."""

    loaded, resolved, inputs = ImagePrompt, ResolvedImagePrompt, (ImagePromptRow,)

    def __init__(self, model: AdaptedModel):
        super().__init__(model)
        self.encoders = Encoders(model.unet.device, model.folder, model.networks)

    @staticmethod
    def identify(opened: OpenedAdapter) -> str | None:
        names = opened.names
        if not (is_image_prompt(names) or any(name.startswith(FACE_PREFIXES) for name in names)):
            return None
        require_image_prompt(opened.path, opened.weights)
        return "an IP-Adapter"

    def read(self, opened: OpenedAdapter) -> ImagePrompt:
        networks, unet = self.model.networks, self.model.unet
        numbers = sum(one.count for one in opened.tensors.values())
        with networks.arriving(numbers * unet.dtype.itemsize):
            prompt = image_prompt_from(opened, unet)
            home = WholeFile(path=opened.path, version=prompt.content_hash, load=partial(self._again, opened.place))
            networks.add(prompt, prompt.title, READ_ONCE, home)
        return prompt

    def _again(self, place: Path) -> tuple[ImagePrompt, str]:
        with open_adapter(place) as opened:
            prompt = image_prompt_from(opened, self.model.unet)
        return prompt, prompt.content_hash

    def points(self, loaded: ImagePrompt) -> Sequence[str]:
        return list(self.model.unet.config.cross_attentions())

    def resolve(
        self,
        adapter: Adapter,
        loaded: ImagePrompt,
        *,
        hint: Hint | None = None,
        layers: LayerUpdates | None = None,
    ) -> ResolvedImagePrompt:
        require_no_hint(adapter, hint)
        encoder = self.encoders.for_adapter(adapter, loaded)
        return ResolvedImagePrompt.read(adapter, loaded, encoder, self.model.unet.config, self.model.networks)

    def ports(
        self,
        rows: Sequence[BatchRow],
        inputs: Sequence[Sequence[ImagePromptRow]],
        ports: Ports,
        runner: Runner,
        at_once: int | None,
    ) -> Ports:
        found = image_port(self.model.unet.config, inputs, like=rows[0].latents)
        if found is None or ports.image is None:
            return ports if found is None else replace(ports, image=found)
        sites = dict.fromkeys((*ports.image, *found))
        return replace(ports, image={site: (*ports.image.get(site, ()), *found.get(site, ())) for site in sites})
