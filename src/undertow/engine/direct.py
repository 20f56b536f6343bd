"""Pictures from conditionings that exist already, without a request: class labels, captions that were encoded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.grids import sigma_grid
from undertow.diffusion.guidance import ClassifierFree, Guidance
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.schedules import Schedule
from undertow.engine.chosen_sampler import ChosenSampler
from undertow.engine.conditioning import Branches
from undertow.engine.denoise import Batcher, Task
from undertow.engine.denoising_run import DenoisingRun
from undertow.engine.evaluation import Network
from undertow.engine.layout import Layout
from undertow.engine.limits import BatchLimits
from undertow.engine.parts import StepForecast
from undertow.engine.passes import Composition, FromNoise, FromPicture, Latents, Pass
from undertow.errors import InvalidInput
from undertow.sampling.catalogue import canonical_name, find_sampler
from undertow.unet.conditioning import Conditioning
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn. guidance: 1 is off, more follows the conditioning more closely and varies less. forecast:
    which steps are not computed."""

    sampler: str
    schedule: str
    steps: int
    guidance: float = 1.0
    forecast: StepForecast | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectModel:
    """A U-Net and the mathematics that it was trained with. size: height and width of its latents, in cells. clip: as
    in `Network`."""

    unet: UNet
    parameterization: Parameterization
    schedule: Schedule
    size: tuple[int, int]
    clip: float | None = None

    def draw(
        self,
        conditional: Sequence[Conditioning],
        unconditional: Conditioning | None,
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        over: Sequence[Latents] | None = None,
        first_step: int = 0,
        batch_size: int = 100,
    ) -> Iterator[list[Latents]]:
        """Latents of one picture for each conditioning (of one row) and seed, a batch at a time. A picture depends on
        its own seed, not on its neighbors. unconditional: the same for all; `None` where guidance is off. over: latents
        that noise is put over at first, as much as is left at the beginning of `first_step`.

        Errors: `InvalidInput` for an unknown sampler or schedule, and for guidance without `unconditional`; before any
        work.
        """
        find_sampler(settings.sampler, self.schedule.path)
        if settings.guidance != 1 and unconditional is None:
            raise InvalidInput("guidance", settings.guidance, "1, because there is no unconditional conditioning")
        sampler = ChosenSampler(
            name=canonical_name(settings.sampler),
            schedule=settings.schedule,
            levels=self.schedule,
            grid=partial(sigma_grid, settings.schedule, self.schedule),
        )
        sigmas = sampler.grid(settings.steps)[first_step:]
        network = Network(
            unet=self.unet,
            preconditioning=Preconditioning(
                parameterization=self.parameterization, schedule=self.schedule, network_dtype=self.unet.dtype
            ),
            clip=self.clip,
        )
        guidance = Guidance(methods=(ClassifierFree(scale=settings.guidance),))

        def run(conditioning: Conditioning, seed: int, start: FromNoise | FromPicture) -> DenoisingRun:
            branches = Branches(conditional=((conditioning, 1.0),), unconditional=unconditional)
            one = Pass(
                network=network,
                start=start,
                sampler=sampler,
                sigmas=sigmas,
                branches=[branches] * max(1, len(sigmas) - 1),
                layout=Layout.whole(self.size),
                guidance=guidance,
                composition=Composition(),
                forecast=settings.forecast,
            )
            return DenoisingRun(seed=seed, passes=[one])

        starts = [FromNoise()] * len(seeds) if over is None else [FromPicture(latents=latents) for latents in over]
        runs = [run(*each) for each in zip(conditional, seeds, starts, strict=True)]
        limits = BatchLimits(rows=batch_size if settings.guidance == 1 else 2 * batch_size)
        return (_denoise(runs[start : start + batch_size], limits) for start in range(0, len(runs), batch_size))


@torch.inference_mode()
def _denoise(runs: Sequence[DenoisingRun], limits: BatchLimits) -> list[Latents]:
    batcher, finished = Batcher(), dict[int, Tensor]()

    def failed(error: BaseException) -> None:
        raise error

    def done(index: int) -> Callable[[Tensor], None]:
        return lambda latents: finished.update({index: latents})

    for index, run in enumerate(runs):
        batcher.join(Task(steps=run.denoise(0), done=done(index), failed=failed, limits=limits))
    batcher.run()
    return [finished[index] for index in range(len(runs))]
