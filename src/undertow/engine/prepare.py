"""From a request to the passes of its pictures: all is checked, encoded and decided here, before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from undertow.adapters.kind import ResolvedAdapter
from undertow.adapters.manager import AdapterManager
from undertow.adapters.pictures import LatentGrid
from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.grids import require_grid, sigma_grid
from undertow.diffusion.guidance import WANTED, During, Guidance, Method, SelfAttention, Step
from undertow.diffusion.schedules import TimestepMap
from undertow.diffusion.strength import truncate
from undertow.engine.canvas import layout_for, picture_size
from undertow.engine.conditioning import Branches, Conditioner
from undertow.engine.evaluation import Network
from undertow.engine.guided import chosen_guidance
from undertow.engine.layout import Layout, box_mask
from undertow.engine.passes import (
    Adapted,
    Canvas,
    Composition,
    Enlarged,
    Extra,
    FromNoise,
    FromPicture,
    GoOn,
    Kept,
    Pass,
    Start,
)
from undertow.engine.reading import Read, Reads, read_picture
from undertow.engine.request import GenerationRequest
from undertow.engine.watch import Watch
from undertow.errors import InvalidInput
from undertow.sampling.catalogue import find_sampler


@dataclass(kw_only=True, eq=False)
class Prepared:
    """size: (height, width) of the finished pictures, in pixels."""

    request: GenerationRequest
    model: LoadedModel
    passes: Sequence[Pass]
    size: tuple[int, int]
    watch: Watch
    decisions: list[str]


def prepare(
    model: LoadedModel,
    request: GenerationRequest,
    watch: Watch,
    *,
    manager: AdapterManager,
    refiner: LoadedModel | None = None,
    latents: Tensor | None = None,
) -> Prepared:
    """The passes of a request.

    manager: of the model's adapters. latents: standard normal noise to start from, in place of that of the seeds.
    Errors: `InvalidInput` for what does not fit the model or each other; `MissingComponent` names what the checkpoint
    lacks; `CheckpointError` and its kinds for adapters.
    """
    return _Preparation(
        model=model, request=request, watch=watch, manager=manager, refiner=refiner, given=latents
    ).run()


@dataclass(kw_only=True, eq=False)
class _Preparation:
    model: LoadedModel
    request: GenerationRequest
    watch: Watch
    manager: AdapterManager
    refiner: LoadedModel | None
    given: Tensor | None
    decisions: list[str] = field(default_factory=list)
    adapters: tuple[ResolvedAdapter, ...] = ()
    of_regions: tuple[tuple[ResolvedAdapter, ...], ...] = ()

    def run(self) -> Prepared:
        request, model = self.request, self.model
        if request.regions_by == "attention" and (request.views is not None or request.seamless != "none"):
            raise InvalidInput(
                "regions_by",
                "'attention'",
                "'estimates' with views and seamless pictures",
                "windows do not move regions",
            )
        if find_sampler(request.sampler, model.schedule.path).inverse:
            raise InvalidInput(
                "sampler", repr(request.sampler), "one that ends in a picture", "it runs from one to noise"
            )
        unet, vae = model.require_unet(), model.require_vae()
        model.require_text(request.clip_skip)
        factor = vae.config.factor
        size, note = picture_size(request, unet.config.sample_size, factor)
        self.decisions += [note] if note else []
        cells = (size[0] // factor, size[1] // factor)
        self._check_given((vae.config.latent_channels, *cells))
        self._resolve_adapters()
        reads = Reads.of(unet.config, vae.config)
        reads.check(request)
        picture = Read()
        if request.image is not None or request.depth is not None:
            with self.watch.stage("encode"):
                picture = read_picture(request, reads, model, size)
        start, sigmas = self._start(picture.latents, reads)
        passes = [
            self._pass(
                self.model,
                start,
                sigmas,
                cells,
                kept=picture.kept,
                extra=picture.extra,
                without_image=picture.without_image,
            )
        ]
        passes += self._refined(passes[0], cells)
        if request.high_resolution is not None:
            size, more = self._enlarged(size)
            passes.append(more)
        return Prepared(
            request=request, model=model, passes=passes, size=size, watch=self.watch, decisions=self.decisions
        )

    def _resolve_adapters(self) -> None:
        """Reads the request's adapters, with their pictures."""
        request = self.request
        if request.regions_by == "attention" and any(region.adapters for region in request.regions):
            raise InvalidInput(
                "regions_by", "'attention'", "'estimates' for regions with adapters", "attention asks once for all"
            )
        everywhere = self.manager.resolve(request.adapters)
        regions = [self.manager.resolve(region.adapters, beside=everywhere.adapters) for region in request.regions]
        self.adapters, self.of_regions = everywhere.adapters, tuple(region.adapters for region in regions)
        resolved = [one for group in (everywhere, *regions) for one in group.adapters]
        notes = [note for group in (everywhere, *regions) for note in group.notes]
        self.decisions += dict.fromkeys((*(f"{one.adapter.title}: {one.note}" for one in resolved), *notes))
        if self.refiner is not None and resolved:
            self.decisions.append("adapters act on the base model, not on the refiner")

    def _adapted(self, layout: Layout) -> Adapted:
        """The adapters over a pass' canvas."""
        factor = self.model.require_vae().config.factor
        canvas = LatentGrid(
            cells=layout.size, factor=factor, windows=layout.spread, pixel_windows=layout.enlarged(factor).spread
        )
        everywhere = self.manager.tile(self.adapters, canvas)
        return Adapted(
            everywhere=everywhere,
            regions=tuple(everywhere.with_more(self.manager.tile(own, canvas)) for own in self.of_regions),
            windows=len(layout.windows),
        )

    def _check_given(self, shape: tuple[int, int, int]) -> None:
        if self.given is None:
            return
        expected = [self.request.count, *shape]
        if list(self.given.shape) != expected:
            raise InvalidInput("latents", list(self.given.shape), f"{expected}: one for each picture, at this size")

    def _start(self, latents: Canvas | None, reads: Reads) -> tuple[Start, list[float]]:
        """Where the first pass starts, and along which noise levels it goes."""
        request = self.request
        grid = self._grid(request.steps)
        if latents is None or (reads.edits and request.mask is None):
            return FromNoise(given=self.given), grid  # editing reads the picture; it does not start from it
        sigmas = truncate(self._grid, len(grid) - 1, request.strength, request.strength_convention)
        if request.strength == 1 and request.mask is not None:
            return FromNoise(given=self.given), sigmas  # without a mask diffusers keeps a trace of the picture
        return FromPicture(latents=latents, given=self.given), sigmas

    def _grid(self, steps: int) -> list[float]:
        request = self.request
        if request.sigmas is None:
            discard = request.discard_penultimate
            if discard is None:
                discard = find_sampler(request.sampler).discards_penultimate
            return sigma_grid(request.schedule, self.model.schedule, steps, discard_penultimate=discard)
        require_grid(request.sigmas)
        return list(request.sigmas)

    def _refined(self, base: Pass, cells: tuple[int, int]) -> list[Pass]:
        """Cuts the base model's pass where the refiner takes over, and gives the refiner's.

        As diffusers' denoising_end and denoising_start: the share counts trained timesteps.
        """
        if self.refiner is None:
            return []
        schedule = self.model.schedule
        if self.refiner.schedule != schedule or self.refiner.parameterization.path != schedule.path:
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
        return [self._pass(self.refiner, GoOn(), sigmas[first:], cells, kept=base.kept)]

    def _enlarged(self, size: tuple[int, int]) -> tuple[tuple[int, int], Pass]:
        how, factor = self.request.high_resolution, self.model.require_vae().config.factor
        assert how is not None
        height, width = (round(length * how.scale / factor) * factor for length in size)
        grid = self._grid(self.request.steps if how.steps is None else how.steps)
        sigmas = truncate(self._grid, len(grid) - 1, how.strength, self.request.strength_convention)
        cells = (height // factor, width // factor)
        return (height, width), self._pass(self.model, Enlarged(how=how), sigmas, cells)

    def _pass(
        self,
        model: LoadedModel,
        start: Start,
        sigmas: Sequence[float],
        cells: tuple[int, int],
        *,
        kept: Kept | None = None,
        extra: Extra | None = None,
        without_image: Extra | None = None,
    ) -> Pass:
        network, request = self._network(model), self.request
        entry = find_sampler(request.sampler, model.schedule.path)
        chosen = chosen_guidance(request, network.unet.config, unconditional=entry.guided)
        if request.views is not None and any(isinstance(m, SelfAttention) for m in _bare_methods(chosen.guidance)):
            raise InvalidInput("guidance_method", "sag", "another one with views", "its attention map is of one window")
        branches = self._branches(model, chosen.guidance, sigmas, cells)
        _see_text(branches, self.watch)
        layout = layout_for(request, cells, network.unet.config.sample_size, model.require_vae().config.factor)
        return Pass(
            network=network,
            start=start,
            sigmas=sigmas,
            branches=branches,
            layout=layout,
            guidance=chosen.guidance,
            adapters=self._adapted(layout) if model is self.model else None,
            free_u=chosen.free_u,
            composition=Composition(masks=self._region_masks(cells)),
            kept=kept,
            extra=extra,
            without_image=without_image,
        )

    def _region_masks(self, cells: tuple[int, int]) -> tuple[Tensor, ...]:
        """Of regions that are estimated by themselves."""
        if self.request.regions_by == "attention":
            return ()
        return tuple(region.weight * box_mask(region.box, cells) for region in self.request.regions)

    def _network(self, model: LoadedModel) -> Network:
        unet = model.require_unet()
        timestep_map: TimestepMap = "nearest" if self.request.timestep_map == "nearest" else "interpolated"
        return Network(
            unet=unet,
            preconditioning=Preconditioning(
                parameterization=model.parameterization,
                schedule=model.schedule,
                timestep_map=timestep_map,
                network_dtype=unet.dtype,
            ),
        )

    def _branches(
        self, model: LoadedModel, guidance: Guidance, sigmas: Sequence[float], cells: tuple[int, int]
    ) -> list[Branches]:
        unet, factor = model.require_unet(), model.require_vae().config.factor
        count = max(1, len(sigmas) - 1)
        steps = (Step(index=index, count=count, sigma=sigma) for index, sigma in enumerate(sigmas[:count]))
        text = model.require_text(self.request.clip_skip)
        texts = [text] * (1 + len(self.request.regions))
        if model is self.model:
            groups = (self.adapters, *((*self.adapters, *own) for own in self.of_regions))
            texts = [self.manager.text(text, resolved, count) for resolved in groups]
        conditioner = Conditioner(
            text=texts[0],
            region_texts=texts[1:],
            config=unet.config,
            request=self.request,
            size=(cells[0] * factor, cells[1] * factor),
            needs_unconditional=any(branch.side != WANTED.side for step in steps for branch in guidance.branches(step)),
            region_masks=[box_mask(region.box, cells) for region in self.request.regions]
            if self.request.regions_by == "attention"
            else (),
            dtype=unet.dtype,
            device=unet.device,
        )
        with self.watch.stage("text"):
            branches = conditioner.branches(count)
        self.decisions += [line for line in conditioner.decisions if line not in self.decisions]
        return branches


def _bare_methods(guidance: Guidance) -> list[Method]:
    """The methods without the intervals around them."""
    return [method.method if isinstance(method, During) else method for method in guidance.methods]


def _see_text(branches: Sequence[Branches], watch: Watch) -> None:
    """Every text once, under the names of burn-models' debug log."""
    seen: set[int] = set()
    for step in branches:
        rows = [("cond", conditioning) for conditioning, _ in step.wanted]
        if step.unconditional is not None:
            rows.append(("uncond", step.unconditional))
        for name, row in rows:
            for kind, tensor in (("context", row.context), ("pooled", row.pooled)):
                if tensor is not None and tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    watch.see(f"text_{kind}_{name}", tensor)
