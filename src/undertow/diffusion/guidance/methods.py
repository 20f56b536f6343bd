"""What a guidance method is, and `Guidance`: methods in order, and the branches that they need together.

A method starts from the estimate so far and returns a new one. The first estimate is that of the conditional branch;
classifier-free guidance replaces it, perturbed-attention guidance adds to it, rescaling finishes it:

    Guidance(methods=(ClassifierFree(scale=7.5), PerturbedAttention(scale=3.0), Rescale(amount=0.7)))

How it is run, by an engine that batches as it likes:

    run = guidance.start(steps, parameterization)                       once per request
    branches = guidance.branches(step)                                  every evaluation: a row of the batch for each
    guided = yield from run.combine(step, x, {branch: Estimate(...)})   may yield further evaluations (SAG)

Nothing here mixes the rows of a batch.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.guidance.branches import (
    CONDITIONAL,
    UNCONDITIONAL,
    Branch,
    Estimate,
    Evaluation,
    Guided,
    sigmas_at,
)
from undertow.diffusion.parameterizations import Parameterization, VPrediction
from undertow.diffusion.paths import working
from undertow.guidance_options.rules import Role, Space, require_order
from undertow.guidance_options.steps import Interval, Step

Rows = Float[Tensor, "batch ..."]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a method sees while it combines. x: the rows of one request, at the sigma of the step."""

    step: Step
    x: Rows
    estimates: Mapping[Branch, Estimate]
    parameterization: Parameterization

    def denoised(self, branch: Branch = CONDITIONAL) -> Rows:
        """A branch's estimate of x0, in float32 or better."""
        return working(self.estimates[branch].denoised)

    def express(self, denoised: Rows, space: Space) -> Rows:
        """An estimate of x0 in another space."""
        if space == "denoised":
            return denoised
        parameterization = VPrediction() if space == "v" else self.parameterization
        return parameterization.prediction_from_denoised(denoised, working(self.x), sigmas_at(self.step, self.x))

    def read(self, value: Rows, space: Space) -> Rows:
        """The estimate of x0 that `value` means: the inverse of `express`."""
        if space == "denoised":
            return value
        parameterization = VPrediction() if space == "v" else self.parameterization
        return parameterization.denoised(value, working(self.x), sigmas_at(self.step, self.x))


FurtherEvaluations = Generator[Evaluation, Estimate, Tensor]

Rule = Callable[[Rows, Moment], Tensor | FurtherEvaluations]
"""(estimate so far, moment) -> new estimate; a generator when the method needs evaluations that depend on others."""


@runtime_checkable
class Method(Protocol):
    """A frozen record; `start` gives it the state of one request."""

    @property
    def role(self) -> Role: ...

    def asks(self, step: Step) -> tuple[Branch, ...]:
        """What must be evaluated besides the conditional branch."""
        ...

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        """The rule for one request of `steps` steps. Errors: `InvalidInput` when it cannot apply to this request."""
        ...


@dataclass(frozen=True, kw_only=True)
class During:
    """A method that holds in an interval only; outside it changes nothing and asks for nothing."""

    method: Method
    interval: Interval

    @property
    def role(self) -> Role:
        return self.method.role

    def asks(self, step: Step) -> tuple[Branch, ...]:
        return self.method.asks(step) if self.interval.holds(step) else ()

    def start(self, steps: int, parameterization: Parameterization) -> Rule:
        rule = self.method.start(steps, parameterization)
        return lambda estimate, at: rule(estimate, at) if self.interval.holds(at.step) else estimate


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Methods in order: at most one base, then terms, then finishes; none means the conditional branch alone.

    unconditional: evaluate the unconditional branch at every step and hand it to the sampler (CFG++). Errors:
    `InvalidInput` for methods in another order.
    """

    methods: tuple[Method, ...] = ()
    unconditional: bool = False

    def __post_init__(self):
        require_order("guidance methods", [(_name(method), method.role) for method in self.methods])

    def branches(self, step: Step) -> tuple[Branch, ...]:
        """What must be evaluated at a step, each once, the conditional branch first."""
        asked = [CONDITIONAL, *(UNCONDITIONAL,) * self.unconditional]
        asked += [branch for method in self.methods for branch in method.asks(step)]
        observed: dict[Branch, tuple[str, ...]] = {}
        for branch in asked:
            observed[branch] = tuple(dict.fromkeys((*observed.get(branch, ()), *branch.observed)))
        return tuple(replace(branch, observed=names) for branch, names in observed.items())

    def start(self, steps: int, parameterization: Parameterization) -> "GuidanceRun":
        """The state of one request. Errors: `InvalidInput` when a method does not fit the steps or the network."""
        return GuidanceRun(self, parameterization, [method.start(steps, parameterization) for method in self.methods])


@dataclass
class GuidanceRun:
    """The guidance of one request on its way, with what methods remember from step to step."""

    guidance: Guidance
    parameterization: Parameterization
    rules: list[Rule] = field(repr=False)

    def combine(
        self, step: Step, x: Rows, estimates: Mapping[Branch, Estimate]
    ) -> Generator[Evaluation, Estimate, Guided]:
        """The guided estimate, in the dtype of x, from those of `Guidance.branches`; call it once for every evaluation
        of the sampler. What it yields is answered with an `Estimate` at the same sigma."""
        at = Moment(step=step, x=x, estimates=estimates, parameterization=self.parameterization)
        estimate = at.denoised()
        for rule in self.rules:
            result = rule(estimate, at)
            estimate = result if isinstance(result, Tensor) else (yield from result)
        unconditional = at.denoised(UNCONDITIONAL).to(x.dtype) if self.guidance.unconditional else None
        return Guided(denoised=estimate.to(x.dtype), unconditional=unconditional)


def _name(method: Method) -> str:
    return type(method.method if isinstance(method, During) else method).__name__
