"""Encoding: from a request to the passes of its pictures. All is checked and decided here, before the first step."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from undertow.adapters.kind import ResolvedAdapter
from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.strength import strength_note, truncate
from undertow.engine.chosen_sampler import ChosenSampler, choose_sampler, known_levels
from undertow.engine.few_step_adapters import few_step_notes
from undertow.engine.fitting import ModelFacts, require_fitting
from undertow.engine.guidance_method import named_methods
from undertow.engine.idle import Circumstances, follows_folder, idle_settings
from undertow.engine.image_inputs import ImageInputs
from undertow.engine.images import EncodedImages, encode_images
from undertow.engine.parts import HighResolution
from undertow.engine.pass_builder import PassBuilder
from undertow.engine.passes import Continue, FromNoise, FromPicture, Latents, Pass, Start, Upscaled
from undertow.engine.picture_size import picture_size
from undertow.engine.report import UsedAdapter
from undertow.engine.request import GenerationRequest
from undertow.engine.watch import Watch
from undertow.errors import InvalidInput
from undertow.memory.keeper import Uses, always_there
from undertow.unet.config import TextTime


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A request that can be denoised. size: (height, width) of the finished pictures, in pixels. decisions: what was
    chosen for it, and why. used: the adapters that act. embeddings: the files of its textual inversions. refiner: the
    model that draws the last steps, where one does."""

    passes: Sequence[Pass]
    size: tuple[int, int]
    decisions: tuple[str, ...]
    used: tuple[UsedAdapter, ...] = ()
    embeddings: Mapping[str, Path] = field(default_factory=dict[str, Path])
    refiner: Path | None = None


def encode(
    model: LoadedModel,
    request: GenerationRequest,
    watch: Watch,
    *,
    manager: AdapterManager,
    refiner: LoadedModel | None = None,
    latents: Tensor | None = None,
    uses: Uses = always_there,
) -> Generator[None, None, Encoded]:
    """The passes of a request, encoded in parts: it yields between them, so that others' steps come in between.

    manager: of the model's adapters. latents: standard normal noise to start from, in place of that of the seeds.
    uses: has a network in memory while it reads. Errors: `InvalidInput` for what does not fit the model or each other;
    `MissingComponent` names what the checkpoint lacks; `CheckpointError` and its kinds for adapters.
    """
    return _Encoding(
        model=model, request=request, watch=watch, manager=manager, refiner=refiner, given=latents, uses=uses
    ).run()


@dataclass(kw_only=True, eq=False)
class _Encoding:
    model: LoadedModel
    request: GenerationRequest
    watch: Watch
    manager: AdapterManager
    refiner: LoadedModel | None
    given: Tensor | None
    uses: Uses
    decisions: list[str] = field(default_factory=list)
    resolved: list[ResolvedAdapter] = field(default_factory=list)
    sampler: ChosenSampler = field(init=False)
    used: list[UsedAdapter] = field(default_factory=list)

    def run(self) -> Generator[None, None, Encoded]:
        request, model = self.request, self.model
        self.sampler = choose_sampler(request, model.schedule, model.sampler)
        self.decisions += self.sampler.notes
        unet, vae, text = model.require_unet(), model.require_vae(), model.require_text(request.clip_skip)
        require_fitting(
            request,
            ModelFacts(
                unet=unet.config,
                latent_channels=vae.config.latent_channels,
                factor=vae.config.factor,
                sampler=model.sampler,
                levels=known_levels(self.sampler.levels),
                text_layers={encoder.kind: encoder.config.layers for encoder in text.encoders},
            ),
        )
        factor = vae.config.factor
        size, note = picture_size(request, unet.config.sample_size, factor)
        self.decisions += [note] if note else []
        cells = (size[0] // factor, size[1] // factor)
        self._check_given((vae.config.latent_channels, *cells))
        builder = self._builder()
        image_inputs = ImageInputs.of(unet.config, vae.config.latent_channels)
        picture = EncodedImages()
        if image_inputs.are_needed(request):
            yield
            with self.watch.stage("encode"), self.uses(vae):
                picture = encode_images(request, image_inputs, model, size)
        yield
        start, sigmas = self._start(picture.latents, image_inputs)
        first = builder.build(
            model,
            start,
            sigmas,
            cells,
            inpaint_mask=picture.inpaint_mask,
            extra=picture.extra,
            without_image=picture.without_image,
        )
        refined = self._refined(builder, first, cells)
        passes = [first, *refined]
        if request.high_resolution is not None:
            yield
            size, more = self._upscaled(builder, request.high_resolution, size, image_inputs)
            passes.append(more)
        self.decisions += idle_settings(request, self._circumstances(passes, image_inputs))
        return Encoded(
            passes=passes,
            size=size,
            decisions=tuple(dict.fromkeys([*self.decisions, *self._placements(passes)])),
            used=tuple(self.used),
            embeddings=self._embeddings(),
            refiner=self.refiner.path if refined and self.refiner is not None else None,
        )

    def _embeddings(self) -> dict[str, Path]:
        request, text = self.request, self.model.text
        texts = (request.prompt, request.negative_prompt, *(region.prompt for region in request.regions))
        return {} if text is None else text.embedding_files(texts, request.dialect)

    def _circumstances(self, passes: Sequence[Pass], image_inputs: ImageInputs) -> Circumstances:
        base = self.model.require_unet()
        return Circumstances(
            edits=image_inputs.edits,
            refined=self.refiner is not None,
            sized=isinstance(base.config.added, TextTime),
            by_folder=follows_folder(self.request, self.model.sampler),
            windows=max(len(one.layout.windows) for one in passes),
            steps=tuple(one.steps for one in passes if one.network.unet is base),
            methods=named_methods(self.request, base.config),
        )

    def _placements(self, passes: Sequence[Pass]) -> Iterator[str]:
        """What is said of adapters, behind what the request itself may have wrong."""
        unet = self.model.unet
        acting = (branches for one in passes if one.network.unet is unet for branches in one.branches)
        guided = any(branches.unconditional is not None for branches in acting)
        return (f"{one.adapter.title}: {one.note(guided=guided)}" for one in self.resolved)

    def _builder(self) -> PassBuilder:
        """Reads the request's adapters, with their pictures."""
        request = self.request
        if request.all_adapters:
            with self.uses(None):  # where it gives way, there is room for what adapters read their pictures with
                pass
        everywhere = self.manager.resolve(request.adapters)
        regions = [self.manager.resolve(region.adapters, beside=everywhere.adapters) for region in request.regions]
        groups = (everywhere, *regions)
        resolved = [one for group in groups for one in group.adapters]
        self.used += [
            UsedAdapter(title=one.adapter.title, kind=one.loaded.title, path=one.loaded.path) for one in resolved
        ]
        notes = [note for group in groups for note in group.notes]
        self.decisions += [*notes, *few_step_notes(request, self.model.require_unet().config, resolved)]
        self.resolved += resolved
        if self.refiner is not None and resolved:
            self.decisions.append("adapters act on the base model, not on the refiner")
        return PassBuilder(
            base=self.model,
            request=request,
            sampler=self.sampler,
            watch=self.watch,
            manager=self.manager,
            adapters=everywhere.adapters,
            of_regions=tuple(region.adapters for region in regions),
            uses=self.uses,
            decisions=self.decisions,
        )

    def _check_given(self, shape: tuple[int, int, int]) -> None:
        if self.given is None:
            return
        expected = [self.request.count, *shape]
        if list(self.given.shape) != expected:
            raise InvalidInput("latents", list(self.given.shape), f"{expected}: one for each picture, at this size")

    def _start(self, latents: Latents | None, image_inputs: ImageInputs) -> tuple[Start, list[float]]:
        """Where the first pass starts, and along which noise levels it goes."""
        request = self.request
        grid = self.sampler.grid(request.steps)
        noise = FromNoise(given=self.given, size=self.sampler.noise_at(grid[0]))
        if latents is None or (image_inputs.edits and request.mask is None):
            return noise, grid  # editing reads the picture; it does not start from it
        sigmas = self._truncated(grid, request.strength)
        if request.strength == 1 and request.mask is not None:
            return noise, sigmas  # without a mask diffusers keeps a trace of the picture
        return FromPicture(latents=latents, given=self.given), sigmas

    def _truncated(self, grid: Sequence[float], strength: float) -> list[float]:
        """The levels that a strength leaves of a grid, with a note where that is hardly any."""
        convention, steps = self.request.strength_convention, len(grid) - 1
        note = strength_note(steps, strength, convention)
        self.decisions += [note] if note else []
        return truncate(self.sampler.grid, steps, strength, convention)

    def _refined(self, builder: PassBuilder, base: Pass, cells: tuple[int, int]) -> list[Pass]:
        """Cuts the base model's pass where the refiner takes over, and gives the refiner's.

        As diffusers' denoising_end and denoising_start: the share counts trained timesteps.
        """
        if self.refiner is None:
            return []
        schedule = self.sampler.levels
        if self.refiner.schedule != self.model.schedule or self.refiner.parameterization.path != schedule.path:
            raise InvalidInput("refiner", str(self.refiner.path), "a model trained with the base model's noise levels")
        cutoff = round(len(schedule) * (1 - self.request.refiner_switch))
        levels = torch.tensor(base.sigmas[:-1], dtype=torch.float64)
        timesteps = schedule.sigma_to_timestep(levels).tolist()
        first = next((index for index, timestep in enumerate(timesteps) if timestep < cutoff), len(timesteps))
        sigmas = list(base.sigmas)
        base.sigmas = sigmas[: first + 1]
        if first == len(timesteps):
            self.decisions.append("the refiner has no step to draw: refiner_switch is too late for so few steps")
            return []
        return [builder.build(self.refiner, Continue(), sigmas[first:], cells, inpaint_mask=base.inpaint_mask)]

    def _upscaled(
        self, builder: PassBuilder, how: HighResolution, size: tuple[int, int], image_inputs: ImageInputs
    ) -> tuple[tuple[int, int], Pass]:
        """The second pass over a larger picture, and the size of that in pixels."""
        factor = self.model.require_vae().config.factor
        height, width = (round(length * how.scale / factor) * factor for length in size)
        grid = self.sampler.grid(self.request.steps if how.steps is None else how.steps)
        sigmas = self._truncated(grid, how.strength)
        cells = (height // factor, width // factor)
        picture = EncodedImages()
        if image_inputs.kind != "latents":
            with self.watch.stage("encode"), self.uses(self.model.require_vae()):
                picture = encode_images(self.request, image_inputs, self.model, (height, width))
        return (height, width), builder.build(
            self.model,
            Upscaled(how=how),
            sigmas,
            cells,
            extra=picture.extra,
            without_image=picture.without_image,
        )
