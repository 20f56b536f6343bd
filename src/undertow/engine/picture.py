"""One picture from noise to latents: a generator that yields the rows it needs, through all passes of its request."""

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
from undertow.diffusion.paths import Path
from undertow.engine.conditioning import Branches
from undertow.engine.evaluation import Question, ask
from undertow.engine.parts import HighResolution
from undertow.engine.passes import Canvas, Enlarged, FromNoise, FromPicture, GoOn, Larger, Pass, slerp
from undertow.engine.request import GenerationRequest
from undertow.engine.rows import Steps
from undertow.engine.watch import Watch
from undertow.sampling.catalogue import start_sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import answered
from undertow.unet.conditioning import Conditioning

Entered = Callable[[int, int, float, Tensor | None], None]
"""Told of every step: picture, step over all passes, sigma, newest estimate."""

Enlarge = Callable[[Canvas, HighResolution], Larger]
"""Finished latents to those of the enlarged picture."""


@dataclass(kw_only=True, eq=False)
class Picture:
    """Picture `index` of a request. Its noise is its own, so it does not depend on who shares its batches."""

    request: GenerationRequest
    index: int
    passes: Sequence[Pass]
    watch: Watch
    entered: Entered
    enlarge: Enlarge
    latents: Canvas | None = None
    _noise: NoiseSource = field(init=False)
    _over: Canvas | None = field(default=None, init=False)
    _denoised: Tensor | None = field(default=None, init=False)
    _steps_done: int = field(default=0, init=False)
    _run: GuidanceRun = field(init=False)

    def __post_init__(self) -> None:
        self._noise = NoiseSource([self.request.seeds[self.index]])

    def draw(self) -> Steps[Canvas]:
        """The latents of the last pass."""
        for one in self.passes:
            self.latents = yield from self._pass(one)
            self._steps_done += one.steps
        assert self.latents is not None  # a request has at least one pass
        return self.latents

    def _pass(self, one: Pass) -> Steps[Canvas]:
        known, noise = self._start(one)
        self._over = noise
        x = self._first(one, known, noise)
        if one.steps == 0:
            return x  # nothing may change, or another model draws all
        self._run = one.guidance.start(one.steps, one.network.preconditioning.parameterization)
        sampler = start_sampler(
            self.request.sampler, x, one.sigmas, path=_path(one), noise=self._noise, **self.request.sampler_options
        )
        answer: Tensor | Guided | None = None  # a generator's first `send` must be None
        step = -1
        while True:
            try:
                call = sampler.send(answer)  # pyright: ignore[reportArgumentType]
            except StopIteration as finished:
                return self._finish(one, finished.value)
            if (entering := one.step_at(call.sigma)) != step:
                step = entering
                self._enter(step, call.sigma, call.x)
            seen = call.x
            if one.kept is not None and not (self._from_noise and call.sigma >= one.sigmas[0]):
                # Pure noise is shown as it is, as in diffusers: there is no picture in it yet.
                seen = one.kept.over(call.x, _noisy(one, one.kept.latents, noise, call.sigma))
            guided = yield from self._estimate(one, seen, call.sigma, step)
            self._denoised = guided.denoised
            answer = answered(call, guided)

    def _estimate(self, one: Pass, x: Canvas, sigma: float, index: int) -> Steps[Guided]:
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
                return finished.value
            composed = further.branch.side == "wanted" and one.branches[index].composed
            needed = (UNCONDITIONAL, further.branch) if composed else (further.branch,)
            found = yield from self._evaluate(one, further.x, step, needed)
            estimate = found[further.branch]

    def _evaluate(self, one: Pass, x: Canvas, step: Step, branches: Sequence[Branch]) -> Steps[dict[Branch, Estimate]]:
        texts = one.branches[step.index]
        scale = embedded_scale(one.guidance, step)
        questions = {branch: _questions(one, texts, branch, scale, step) for branch in branches}
        together = [question for group in questions.values() for question in group]
        answers = iter((yield from ask(one.network, one.layout, x, step.sigma, together, one.free_u)))
        found = {branch: [next(answers) for _ in group] for branch, group in questions.items()}
        for group in found.values():
            for answer in group:
                self.watch.see(f"step_{self._steps_done + step.index}_noise_{answer.name}", answer.prediction)
        unconditional = found[UNCONDITIONAL][0].denoised if UNCONDITIONAL in found else None
        return {
            branch: Estimate(
                denoised=one.composition.compose(texts, [answer.denoised for answer in group], unconditional)
                if branch.side == "wanted"
                else group[0].denoised,
                observations=group[0].observations,
            )
            for branch, group in found.items()
        }

    @property
    def _from_noise(self) -> bool:
        """Whether this is the first pass with a step, and nothing but noise is where it starts."""
        return self._steps_done == 0 and isinstance(self.passes[0].start, FromNoise)

    def _start(self, one: Pass) -> tuple[Canvas | None, Canvas]:
        """The clean latents that a pass starts from, if any, and the noise over them."""
        shape = (one.network.unet.config.out_channels, *one.layout.size)
        match one.start:
            case FromNoise(given=given):
                return None, self._draw_noise(shape, given)
            case FromPicture(latents=latents, given=given):
                return latents, self._draw_noise(shape, given)
            case Enlarged(how=how):
                assert self.latents is not None  # never the first pass
                return self.enlarge(self.latents, how), self._draw_noise(shape, None)
            case GoOn():
                assert self._over is not None  # never the first pass
                return self.latents, self._over

    def _draw_noise(self, shape: tuple[int, int, int], given: Tensor | None) -> Canvas:
        request = self.request
        noise = self._noise.draw(shape)  # drawn in any case: what a stochastic sampler draws next must not depend on it
        if given is not None:
            noise = given[self.index : self.index + 1].float()
        if request.variation_seed is not None and request.variation_strength:
            other = NoiseSource([request.variation_seed + self.index]).draw(shape)
            noise = slerp(noise, other, request.variation_strength)
        return noise

    def _first(self, one: Pass, known: Canvas | None, noise: Canvas) -> Canvas:
        device = one.network.unet.device
        match one.start:
            case FromNoise():
                return _path(one).pure_noise(noise, one.sigmas[0]).to(device)
            case GoOn():
                assert known is not None
                return known.to(device)
            case _:
                assert known is not None
                return _noisy(one, known.to(device), noise, one.sigmas[0])

    def _finish(self, one: Pass, latents: Canvas) -> Canvas:
        self.watch.see(f"step_{self._steps_done + one.steps - 1}_latents", latents)
        later = self.passes[self.passes.index(one) + 1 :]
        if one.kept is None or (later and isinstance(later[0].start, GoOn)):
            return latents
        return one.kept.over(latents, one.kept.latents)

    def _enter(self, step: int, sigma: float, x: Canvas) -> None:
        step += self._steps_done
        if step > 0:
            self.watch.see(f"step_{step - 1}_latents", x)
        self.entered(self.index, step, sigma, self._denoised)


def _path(one: Pass) -> Path:
    return one.network.preconditioning.schedule.path


def _noisy(one: Pass, latents: Canvas, noise: Canvas, sigma: float) -> Canvas:
    level = torch.tensor([sigma], dtype=torch.float64)
    return _path(one).add_noise(latents, noise.to(latents), level)


def _questions(one: Pass, texts: Branches, branch: Branch, scale: float | None, step: Step) -> list[Question]:
    """What a branch asks: one question for each prompt and region, or for the negative prompt. scale: of guidance, for
    networks that are told."""
    if branch.side == "wanted":
        # What is observed is how the network sees the request's own prompt.
        prompts = () if one.composition.covered and not branch.observed else texts.wanted
        names = ["cond" if len(prompts) == 1 else f"cond_{index}" for index in range(len(prompts))]
        asked = [(name, wanted, None) for name, (wanted, _) in zip(names, prompts, strict=True)]
        asked += [(f"region_{index}", conditioning, index) for index, conditioning in enumerate(texts.regions)]
    else:
        assert texts.unconditional is not None  # passes are prepared with what their guidance asks for
        asked = [("uncond" if branch.side == "unconditional" else "image", texts.unconditional, None)]
    sees_no_picture = branch.side == "unconditional" and one.without_image is not None
    extra = one.without_image if sees_no_picture else one.extra
    suffix = "" if branch.perturbation is None else f"_{branch.perturbation.kind}"
    return [
        Question(
            name=name + suffix,
            conditioning=conditioning if scale is None else _told(conditioning, scale),
            extra=extra,
            adapters=()
            if one.adapters is None
            else one.adapters.at(step.index, step.count, region=region, conditional=branch.side == "wanted"),
            perturbation=branch.perturbation,
            observed=branch.observed,
        )
        for name, conditioning, region in asked
    ]


def _told(conditioning: Conditioning, scale: float) -> Conditioning:
    """With the guidance scale as an input (LCM)."""
    assert conditioning.context is not None  # text conditions every network that is told
    return replace(conditioning, guidance=torch.tensor([scale], device=conditioning.context.device))
