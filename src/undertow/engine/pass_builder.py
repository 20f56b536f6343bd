"""One pass of a request, built from what was read for it: its texts, guidance, layout and adapters."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from undertow.adapters.manager import AdapterManager, ResolvedAdapter
from undertow.adapters.pictures import LatentGrid
from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.guidance import CONDITIONAL, Guidance, Step
from undertow.diffusion.paths import path_name
from undertow.engine.chosen_sampler import ChosenSampler
from undertow.engine.conditioning import Branches, Conditioner
from undertow.engine.evaluation import Network
from undertow.engine.guidance_method import named_methods, require_guidance
from undertow.engine.guided import chosen_guidance
from undertow.engine.layout import Layout, box_mask
from undertow.engine.passes import Adapted, Composition, Extra, InpaintMask, Pass, Start
from undertow.engine.probing import TEXT_ENCODERS
from undertow.engine.request import GenerationRequest
from undertow.engine.sizes import layout_for
from undertow.engine.watch import Watch
from undertow.memory.keeper import Uses, always_there
from undertow.sampling.catalogue import find_sampler


@dataclass(kw_only=True, eq=False)
class PassBuilder:
    """Builds the passes of a request. base: the model that adapters act on. adapters: the request's; of_regions: those
    of each region, besides. uses: has a network in memory while it reads. decisions: what was chosen on the way."""

    base: LoadedModel
    request: GenerationRequest
    sampler: ChosenSampler
    watch: Watch
    manager: AdapterManager
    adapters: tuple[ResolvedAdapter, ...]
    of_regions: tuple[tuple[ResolvedAdapter, ...], ...]
    uses: Uses = always_there
    decisions: list[str] = field(default_factory=list)

    def build(
        self,
        model: LoadedModel,
        start: Start,
        sigmas: Sequence[float],
        cells: tuple[int, int],
        *,
        inpaint_mask: InpaintMask | None = None,
        extra: Extra | None = None,
        without_image: Extra | None = None,
    ) -> Pass:
        """A pass of one of the request's models. cells: (height, width) of its latents. The rest as in `Pass`. Errors:
        `InvalidInput`, `PromptError`."""
        network, request = self._network(model), self.request
        entry = find_sampler(self.sampler.name, model.schedule.path)
        chosen = chosen_guidance(request, network.unet.config, unconditional=entry.guided)
        methods, path = named_methods(request, network.unet.config), path_name(model.schedule.path)
        require_guidance(methods, steps=max(0, len(sigmas) - 1), cells=cells, path=path)
        branches = self._branches(model, chosen.guidance, sigmas, cells)
        _see_text(branches, self.watch)
        layout = layout_for(request, cells, network.unet.config.sample_size, model.require_vae().config.factor)
        return Pass(
            network=network,
            start=start,
            sampler=self.sampler,
            sigmas=sigmas,
            branches=branches,
            layout=layout,
            guidance=chosen.guidance,
            adapters=self._adapted(layout) if model is self.base else None,
            free_u=chosen.free_u,
            composition=Composition(masks=self._region_masks(cells)),
            inpaint_mask=inpaint_mask,
            extra=extra,
            without_image=without_image,
            forecast=request.forecast_steps,
        )

    def _region_masks(self, cells: tuple[int, int]) -> tuple[Tensor, ...]:
        """Of regions that are estimated by themselves."""
        if self.request.regions_by == "attention":
            return ()
        return tuple(region.weight * box_mask(region.box, cells) for region in self.request.regions)

    def _network(self, model: LoadedModel) -> Network:
        unet = model.require_unet()
        return Network(
            unet=unet,
            preconditioning=Preconditioning(
                parameterization=model.parameterization,
                schedule=self.sampler.levels,
                timestep_map=self.sampler.timestep_map,
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
        parts: dict[str, nn.Module] = dict(zip(TEXT_ENCODERS, text.encoders, strict=False))
        read = text.afresh() if any(self.watch.looks_into(part) for part in parts) else text
        texts = [read] * (1 + len(self.request.regions))
        if model is self.base:
            groups = (self.adapters, *((*self.adapters, *own) for own in self.of_regions))
            texts = [self.manager.text(read, resolved, count) for resolved in groups]
        conditioner = Conditioner(
            text=texts[0],
            region_texts=texts[1:],
            config=unet.config,
            request=self.request,
            size=(cells[0] * factor, cells[1] * factor),
            needs_unconditional=any(
                branch.side != CONDITIONAL.side for step in steps for branch in guidance.branches(step)
            ),
            region_masks=[box_mask(region.box, cells) for region in self.request.regions]
            if self.request.regions_by == "attention"
            else (),
            dtype=unet.dtype,
            device=unet.device,
        )
        with self.watch.stage("text"), self.uses(text), self.watch.inside(parts):
            branches = conditioner.branches(count)
        self.decisions += [line for line in conditioner.decisions if line not in self.decisions]
        return branches

    def _adapted(self, layout: Layout) -> Adapted | None:
        """The adapters, laid over the latents of a pass."""
        if not self.adapters and not any(self.of_regions):
            return None
        factor = self.base.require_vae().config.factor
        grid = LatentGrid(
            cells=layout.size,
            factor=factor,
            windows=layout.split_tiles,
            pixel_windows=layout.enlarged(factor).split_tiles,
        )
        everywhere = self.manager.tile(self.adapters, grid)
        return Adapted(
            everywhere=everywhere,
            regions=tuple(everywhere.with_more(self.manager.tile(own, grid)) for own in self.of_regions),
            windows=len(layout.windows),
        )


def _see_text(branches: Sequence[Branches], watch: Watch) -> None:
    """Every text once, under the names of burn-models' debug log."""
    seen: set[int] = set()
    for step in branches:
        rows = [("cond", conditioning) for conditioning, _ in step.conditional]
        if step.unconditional is not None:
            rows.append(("uncond", step.unconditional))
        for name, row in rows:
            for kind, tensor in (("context", row.context), ("pooled", row.pooled)):
                if tensor is not None and tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    watch.see(f"text_{kind}_{name}", tensor)
