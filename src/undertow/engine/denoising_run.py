"""One picture from noise to latents: for each pass of its request a generator that yields the rows it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from undertow.diffusion.guidance import (
    UNCONDITIONAL,
    Branch,
    Estimate,
    GuidanceRun,
    Guided,
    Step,
    embedded_scale,
)
from undertow.diffusion.paths import Path, starting_noise
from undertow.engine.branch_inputs import branch_inputs
from undertow.engine.decode import Decoder
from undertow.engine.evaluation import evaluate
from undertow.engine.passes import Continue, FromNoise, FromPicture, Latents, Pass, Upscaled, UpscaledLatents, slerp
from undertow.engine.rows import Origin, Steps
from undertow.engine.watch import Watch
from undertow.sampling.catalogue import start_sampler
from undertow.sampling.forecast import forecasting
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import Sampler, answered

Entered = Callable[[int, int, float, Tensor | None], None]
"""Called at every step: picture, step over all passes, sigma, newest estimate."""


@dataclass(kw_only=True, eq=False)
class DenoisingRun:
    """Picture `index` of request `number`, pass by pass. Its noise is its own, so it does not depend on the other
    pictures of a batch.

    variation: the seed of other noise, and the share of it (`slerp`). entered: called at every step. mark: of its rows.
    """

    seed: int
    passes: Sequence[Pass]
    number: int = 0
    index: int = 0
    variation: tuple[int, float] | None = None
    watch: Watch = field(default_factory=Watch)
    entered: Entered | None = None
    mark: int = 0
    latents: Latents | None = None
    """Those of the last finished pass."""
    _noise: NoiseSource = field(init=False)
    _over: Latents | None = field(default=None, init=False)
    _denoised: Tensor | None = field(default=None, init=False)
    _upscaled: UpscaledLatents | None = field(default=None, init=False)
    _steps_done: int = field(default=0, init=False)
    _run: GuidanceRun = field(init=False)

    def __post_init__(self) -> None:
        self._noise = NoiseSource([self.seed])

    def denoise(self, index: int) -> Steps[Latents]:
        """The latents of a pass. Passes follow one another, with `upscale` in between where one starts from that."""
        one = self.passes[index]
        self.latents = yield from self._denoise(one)
        self._steps_done += one.steps
        return self.latents

    def upscale(self, index: int, decoder: Decoder, recorded: UpscaledLatents | None = None) -> UpscaledLatents:
        """Enlarges the latents of a finished pass to those that the next one starts from, which it returns. recorded:
        they themselves, where they were enlarged before."""
        later = self.passes[index + 1]
        assert isinstance(later.start, Upscaled)
        assert self.latents is not None  # `denoise` comes before
        if recorded is None:
            self._upscaled = decoder.upscaled(self.latents, later.start.how, later.layout.size)
        else:
            self._upscaled = recorded.to(self.latents.device)
        return self._upscaled

    def _denoise(self, one: Pass) -> Steps[Latents]:
        known, noise = self._start(one)
        self._over = noise
        x = self._first(one, known, noise)
        if one.steps == 0:
            return x  # nothing may change, or another model draws all
        self._run = one.guidance.start(one.steps, one.network.preconditioning.parameterization)
        sampler = self._sampler(one, x)
        answer: Tensor | Guided | None = None  # a generator's first `send` must be None
        step = -1
        while True:
            try:
                call = sampler.send(answer)  # pyright: ignore[reportArgumentType]
            except StopIteration as finished:
                return self._finish(one, one.sampler.finished(finished.value, _path(one), one.sigmas[-1]))
            if (entering := one.step_at(call.sigma)) != step:
                step = entering
                self._enter(step, call.sigma, call.x)
            seen = call.x
            if one.inpaint_mask is not None and not (self._from_noise and call.sigma >= one.sigmas[0]):
                # Pure noise is shown as it is, as in diffusers: there is no picture in it yet.
                seen = one.inpaint_mask.over(call.x, _noisy(one, one.inpaint_mask.latents, noise, call.sigma))
            guided = yield from self._estimate(one, seen, call.sigma, step)
            self._denoised = guided.denoised
            self.watch.step(self._steps_done + step, call.sigma, call.x, guided.denoised)
            answer = answered(call, guided)

    def _estimate(self, one: Pass, x: Latents, sigma: float, index: int) -> Steps[Guided]:
        """The guided estimate at `x`: all branches of this step in one batch, then what guidance asks for beyond."""
        step = Step(index=index, count=one.steps, sigma=sigma)
        branches = one.guidance.branches(step)
        if one.branches[index].composed and UNCONDITIONAL not in branches:
            branches = (UNCONDITIONAL, *branches)
        estimates = yield from self._evaluate(one, x, step, branches)
        combining = self._run.combine(step, x, estimates)
        estimate: Estimate | None = None  # a generator's first `send` must be None
        while True:
            try:
                further = combining.send(estimate)  # pyright: ignore[reportArgumentType]
            except StopIteration as finished:
                return _clipped(finished.value, one.network.clip)
            composed = further.branch.side == "conditional" and one.branches[index].composed
            needed = (UNCONDITIONAL, further.branch) if composed else (further.branch,)
            found = yield from self._evaluate(one, further.x, step, needed)
            estimate = found[further.branch]

    def _evaluate(self, one: Pass, x: Latents, step: Step, branches: Sequence[Branch]) -> Steps[dict[Branch, Estimate]]:
        texts = one.branches[step.index]
        scale = embedded_scale(one.guidance, step)
        inputs = {branch: branch_inputs(one, texts, branch, scale, step) for branch in branches}
        together = [each for group in inputs.values() for each in group]
        overall = self._steps_done + step.index
        origin = Origin(request=self.number, picture=self.index, step=overall, mark=self.mark)
        outputs = iter((yield from evaluate(one.network, one.layout, x, step.sigma, together, one.free_u, origin)))
        found = {branch: [next(outputs) for _ in group] for branch, group in inputs.items()}
        for group in found.values():
            for output in group:
                self.watch.see(f"step_{overall}_noise_{output.name}", output.prediction)
        unconditional = found[UNCONDITIONAL][0].denoised if UNCONDITIONAL in found else None
        return {
            branch: Estimate(
                denoised=one.composition.compose(texts, [output.denoised for output in group], unconditional)
                if branch.side == "conditional"
                else group[0].denoised,
                observations=group[0].observations,
            )
            for branch, group in found.items()
        }

    def _sampler(self, one: Pass, x: Latents) -> Sampler:
        """Asks for what has to be computed."""
        sampler = start_sampler(
            one.sampler.name,
            x,
            one.sigmas,
            path=_path(one),
            noise=self._noise,
            schedule=one.network.preconditioning.schedule,
            **one.sampler.options,
        )
        if one.forecast is None:
            return sampler
        return forecasting(sampler, one.sigmas, one.forecast.computed(one.steps))

    @property
    def _from_noise(self) -> bool:
        """Whether this is the first pass with a step, and nothing but noise is where it starts."""
        return self._steps_done == 0 and isinstance(self.passes[0].start, FromNoise)

    def _start(self, one: Pass) -> tuple[Latents | None, Latents]:
        """The clean latents that a pass starts from, if any, and the noise over them."""
        shape = (one.network.unet.config.out_channels, *one.layout.size)
        match one.start:
            case FromNoise(given=given):
                return None, self._draw_noise(shape, given)
            case FromPicture(latents=latents, given=given):
                return latents, self._draw_noise(shape, given)
            case Upscaled():
                assert self._upscaled is not None  # `upscale` comes before
                return self._upscaled, self._draw_noise(shape, None)
            case Continue():
                assert self._over is not None  # never the first pass
                return self.latents, self._over

    def _draw_noise(self, shape: tuple[int, int, int], given: Tensor | None) -> Latents:
        noise = self._noise.draw(shape)  # drawn in any case: what a stochastic sampler draws next must not depend on it
        if given is not None:
            noise = given[self.index : self.index + 1].float()
        if self.variation is not None:
            seed, share = self.variation
            noise = slerp(noise, NoiseSource([seed]).draw(shape), share)
        return noise

    def _first(self, one: Pass, known: Latents | None, noise: Latents) -> Latents:
        device = one.network.unet.device
        match one.start:
            case FromNoise(size=size):
                return starting_noise(_path(one), noise, one.sigmas[0], size).to(device)
            case Continue():
                assert known is not None
                return known.to(device)
            case _:
                assert known is not None
                return _noisy(one, known.to(device), noise, one.sigmas[0])

    def _finish(self, one: Pass, latents: Latents) -> Latents:
        self.watch.see(f"step_{self._steps_done + one.steps - 1}_latents", latents)
        later = self.passes[self.passes.index(one) + 1 :]
        if one.inpaint_mask is None or (later and isinstance(later[0].start, Continue)):
            return latents
        return one.inpaint_mask.over(latents, one.inpaint_mask.latents)

    def _enter(self, step: int, sigma: float, x: Latents) -> None:
        step += self._steps_done
        if step > 0:
            self.watch.see(f"step_{step - 1}_latents", x)
        if self.entered is not None:
            self.entered(self.index, step, sigma, self._denoised)


def _clipped(guided: Guided, limit: float | None) -> Guided:
    return guided if limit is None else replace(guided, denoised=guided.denoised.clamp(-limit, limit))


def _path(one: Pass) -> Path:
    return one.network.preconditioning.schedule.path


def _noisy(one: Pass, latents: Latents, noise: Latents, sigma: float) -> Latents:
    level = torch.tensor([sigma], dtype=torch.float64)
    return _path(one).add_noise(latents, noise.to(latents), level)
