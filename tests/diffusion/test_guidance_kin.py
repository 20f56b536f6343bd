"""Every guidance method against the code of its source: diffusers' guiders, pipelines, schedulers; ComfyUI's nodes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionSAGPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.pipelines.deprecated.stable_diffusion_sag import pipeline_stable_diffusion_sag
from diffusers.pipelines.pag.pag_utils import PAGMixin
from torch import Tensor

from tests.diffusion.guidance_runs import SHAPE, combine, finish, normal, step
from undertow.diffusion import Epsilon, NoiseSchedule, RectifiedFlow, Velocity, VPrediction, XPrediction
from undertow.diffusion.guidance import (
    CONDITIONAL,
    IMAGE_ONLY,
    UNCONDITIONAL,
    AdaptiveProjected,
    Branch,
    ClassifierFree,
    DualGuidance,
    During,
    DynamicThreshold,
    EmbeddedScale,
    Estimate,
    Evaluation,
    Guidance,
    Mimic,
    Perturbation,
    PerturbedAttention,
    Rescale,
    SelfAttention,
    SigmaInterval,
    SmoothedEnergy,
    StepInterval,
    Tangential,
    ZeroStar,
    embedded_scale,
    sigmas_at,
)
from undertow.errors import InvalidInput
from undertow.unet.free_u import FreeU

EXACT = {"rtol": 1e-10, "atol": 1e-10}
"""float64; going from a prediction to an estimate of x0 and back costs a few last digits."""

SINGLE = {"rtol": 1e-4, "atol": 1e-5}
"""diffusers projects in float32 here, whatever it is given."""

PARAMETERIZATIONS = [Epsilon(), VPrediction(), XPrediction(), Velocity(), XPrediction(path=RectifiedFlow())]
SIGMA = 0.6

X = normal(0)
PAG, SEG = PerturbedAttention(scale=3.0).branch, SmoothedEnergy(scale=3.0).branch
PREDICTIONS = {CONDITIONAL: normal(1), UNCONDITIONAL: normal(2), IMAGE_ONLY: normal(3), PAG: normal(4), SEG: normal(5)}
C, U = PREDICTIONS[CONDITIONAL], PREDICTIONS[UNCONDITIONAL]

METHODS = [
    (AdaptiveProjected(scale=7.0),),
    (ZeroStar(scale=4.0, zero_steps=0),),
    (Tangential(scale=4.0),),
    (ClassifierFree(scale=7.0), PerturbedAttention(scale=3.0), Rescale(amount=0.7)),
    (ClassifierFree(scale=7.0), SmoothedEnergy(scale=3.0), DynamicThreshold(percentile=0.9)),
    (ClassifierFree(scale=7.0), Mimic(scale=3.0, percentile=0.9, amount=0.8)),
    (DualGuidance(scale=7.0, image_scale=1.5),),
]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)
@pytest.mark.parametrize("eta", [1.0, 0.0, 0.4])
@pytest.mark.parametrize("limit", [1e9, 15.0, 2.0])
@pytest.mark.parametrize("momentum", [0.0, -0.75])
def test_projected_guidance_is_diffusers_over_a_run(parameterization, eta: float, limit: float, momentum: float):
    """Three steps, so that momentum counts; their default adds to the unconditional prediction."""
    guider = AdaptiveProjectedGuidance(
        guidance_scale=7.0,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=limit,
        eta=eta,
    )
    method = AdaptiveProjected(
        scale=7.0, eta=eta, norm_limit=limit, momentum=momentum, origin="unconditional", space="prediction"
    )
    guider.momentum_buffer = type(guider).forward.__globals__["MomentumBuffer"](momentum)
    run = Guidance(methods=(method,)).start(3, parameterization)
    for index in range(3):
        predictions = {CONDITIONAL: normal(10 + index), UNCONDITIONAL: normal(20 + index)}
        expected = guider.forward(*predictions.values()).pred
        ours = combine((method,), predictions, X, step(index, 3, SIGMA), parameterization, run)
        torch.testing.assert_close(ours, expected, **EXACT)


def test_projected_guidance_is_the_papers_on_estimates_of_x0():
    """Algorithm of arXiv:2410.02416: conditional + (scale - 1) update, as diffusers' `use_original_formulation`."""
    x0 = {
        branch: Epsilon().denoised(PREDICTIONS[branch], X, sigmas_at(step(), X))
        for branch in (CONDITIONAL, UNCONDITIONAL)
    }
    update = normalized_guidance(x0[CONDITIONAL], x0[UNCONDITIONAL], 6.0, None, 0.0, 5.0, use_original_formulation=True)
    method = AdaptiveProjected(scale=7.0, eta=0.0, norm_limit=5.0, momentum=0.0)
    ours = combine((method,), PREDICTIONS, X, step())
    torch.testing.assert_close(Epsilon().denoised(ours, X, sigmas_at(step(), X)), update, **EXACT)
    plain = AdaptiveProjected(scale=7.0, eta=1.0, norm_limit=math.inf, momentum=0.0)
    classifier_free = combine((ClassifierFree(scale=7.0),), PREDICTIONS, X, step())
    torch.testing.assert_close(combine((plain,), PREDICTIONS, X, step()), classifier_free, **EXACT)


def test_each_run_remembers_its_own_momentum():
    guidance = Guidance(methods=(AdaptiveProjected(scale=7.0, norm_limit=math.inf),))
    first, second = guidance.start(10, Epsilon()), guidance.start(10, Epsilon())
    once = combine(guidance.methods, PREDICTIONS, X, step(0), run=first)
    twice = combine(guidance.methods, PREDICTIONS, X, step(1), run=first)
    assert (twice - once).abs().max() > 0.1
    torch.testing.assert_close(combine(guidance.methods, PREDICTIONS, X, step(1), run=second), once, **EXACT)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)
def test_zero_star_is_diffusers(parameterization):
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=2)
    method = ZeroStar(scale=4.0, zero_steps=2)
    for index in range(4):
        guider.set_state(step=index, num_inference_steps=4, timestep=torch.tensor(0))
        at = step(index, 4, SIGMA)
        branches = Guidance(methods=(method,)).branches(at)
        assert branches == ((CONDITIONAL,) if index < 2 else (CONDITIONAL, UNCONDITIONAL)), (
            "zero needs no second branch"
        )
        ours = combine((method,), PREDICTIONS, X, at, parameterization)
        torch.testing.assert_close(ours, guider.forward(C, U).pred, **SINGLE)
        assert index >= 2 or ours.abs().max() < 1e-12


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)
def test_tangential_guidance_is_diffusers(parameterization):
    expected = TangentialClassifierFreeGuidance(guidance_scale=4.0).forward(C, U).pred
    ours = combine((Tangential(scale=4.0),), PREDICTIONS, X, step(sigma=SIGMA), parameterization)
    torch.testing.assert_close(ours, expected.double(), **SINGLE)
    plain = combine((ClassifierFree(scale=4.0),), PREDICTIONS, X, step(sigma=SIGMA), parameterization)
    assert (ours - plain).abs().max() > 0.1


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_perturbed_attention_is_diffusers_pipelines(parameterization, scale: float):
    mixin = PAGMixin()
    mixin._pag_scale, mixin._pag_adaptive_scale = 3.0, 0.0
    type(mixin).do_pag_adaptive_scaling = False
    rows = torch.cat([C, PREDICTIONS[PAG]] if scale == 1 else [U, C, PREDICTIONS[PAG]])
    expected = mixin._apply_perturbed_attention_guidance(rows, scale != 1, scale, t=500)
    methods = (ClassifierFree(scale=scale), PerturbedAttention(scale=3.0))
    asked = Guidance(methods=methods).branches(step())
    assert asked == ((CONDITIONAL, PAG) if scale == 1 else (CONDITIONAL, UNCONDITIONAL, PAG))
    torch.testing.assert_close(combine(methods, PREDICTIONS, X, step(sigma=SIGMA), parameterization), expected, **EXACT)


def test_smoothed_energy_with_rescale_is_diffusers():
    interval = {"seg_guidance_start": 0.0, "seg_guidance_stop": 1.0}
    guider = SmoothedEnergyGuidance(
        guidance_scale=7.0, seg_guidance_scale=3.0, seg_guidance_layers=[0], guidance_rescale=0.7, **interval
    )
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(0))
    methods = (ClassifierFree(scale=7.0), SmoothedEnergy(scale=3.0), Rescale(amount=0.7))
    expected = guider.forward(C, U, PREDICTIONS[SEG]).pred
    torch.testing.assert_close(combine(methods, PREDICTIONS, X, step(5)), expected, **EXACT)
    assert SEG.perturbation.kind == "blurred"
    assert SEG.perturbation.sigma == math.inf


SCHEDULE = NoiseSchedule.scaled_linear()
ATTENTION = 2 * torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
WIDE = (3, 4, 9, 11)


def _second_look(x: Tensor) -> Tensor:
    """What a network might predict of an input: any function will do."""
    return torch.tanh(x) + 0.3 * x.roll(1, dims=3)


@pytest.mark.parametrize("side", ["unconditional", "conditional"])
@pytest.mark.parametrize("timestep", [10, 500, 900])
def test_self_attention_guidance_is_diffusers(monkeypatch, side: str, timestep: int):
    """Its pipeline's masking, and its two formulas, with and without classifier-free guidance, in predicted noise."""
    monkeypatch.setattr(pipeline_stable_diffusion_sag, "gaussian_blur_2d", _in_double)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    unet = type("", (), {"config": type("", (), {"attention_head_dim": 1})})
    pipeline = type("Pipeline", (), {"scheduler": scheduler, "unet": unet})()
    alpha = scheduler.alphas_cumprod[timestep]
    sigma = float(((1 - alpha) / alpha).sqrt())
    t, scaled = torch.tensor(timestep), normal(0, WIDE)
    noise = {CONDITIONAL: normal(1, WIDE), UNCONDITIONAL: normal(2, WIDE)}
    seen = noise[UNCONDITIONAL if side == "unconditional" else CONDITIONAL]

    kind = StableDiffusionSAGPipeline
    x0 = kind.pred_x0(pipeline, scaled, seen, t)
    # its maps are head x query x key; ours is what each key receives
    maps = torch.diag_embed(ATTENTION.flatten(1))
    degraded = kind.sag_masking(pipeline, x0, maps, (2, 3), t, kind.pred_epsilon(pipeline, scaled, seen, t))
    guided = (
        noise[UNCONDITIONAL] + 5.0 * (noise[CONDITIONAL] - noise[UNCONDITIONAL]) if side == "unconditional" else seen
    )
    expected = guided + 0.75 * (seen - _second_look(degraded))

    x, at = scaled / alpha.sqrt(), step(sigma=sigma)
    methods = (*(ClassifierFree(scale=5.0),) * (side == "unconditional"), SelfAttention(scale=0.75, side=side))
    guidance = Guidance(methods=methods)
    estimates = {
        branch: Estimate(
            denoised=Epsilon().denoised(noise[branch], x, sigmas_at(at, x)),
            observations=dict.fromkeys(branch.observed, ATTENTION),
        )
        for branch in guidance.branches(at)
    }
    assert [branch.side for branch in estimates if branch.observed == ("mid_block",)] == [side]

    def answer(evaluation: Evaluation) -> Estimate:
        assert evaluation.branch == Branch(side=side)
        torch.testing.assert_close(evaluation.x * alpha.sqrt(), degraded, rtol=1e-6, atol=1e-6)
        prediction = _second_look(evaluation.x * alpha.sqrt())
        return Estimate(denoised=Epsilon().denoised(prediction, evaluation.x, sigmas_at(at, x)))

    guided = finish(guidance.start(10, Epsilon()).combine(at, x, estimates), answer).denoised
    ours = Epsilon().prediction_from_denoised(guided, x, sigmas_at(at, x))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # the scheduler's alphas began as float32
    assert (expected - seen).abs().max() > 0.1


def _in_double(image: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """diffusers' blur, whose kernel is made in float32, in float64."""
    cells = torch.linspace(-(kernel_size - 1) / 2, (kernel_size - 1) / 2, kernel_size, dtype=torch.float64)
    line = torch.exp(-0.5 * (cells / sigma) ** 2)
    line = line / line.sum()
    kernel = (line[:, None] * line[None]).expand(image.shape[1], 1, kernel_size, kernel_size)
    return F.conv2d(F.pad(image, [kernel_size // 2] * 4, mode="reflect"), kernel, groups=image.shape[1])


@pytest.mark.parametrize("parameterization", [VPrediction(), XPrediction()], ids=str)
def test_self_attention_guidance_is_comfyuis_whatever_the_network_predicts(parameterization):
    """nodes_sag.py: denoised + scale (degraded - second), the second at degraded + x - unconditional."""
    x, conditional, unconditional = normal(0, WIDE), normal(1, WIDE), normal(2, WIDE)
    method = SelfAttention(scale=0.5, blur=2.0)
    mask = F.interpolate((ATTENTION > 1)[:, None].double(), WIDE[2:])
    degraded = _in_double(unconditional, 9, 2.0) * mask + unconditional * (1 - mask)
    second = _second_look(degraded + x - unconditional)
    expected = unconditional + 7.0 * (conditional - unconditional) + 0.5 * (degraded - second)
    guidance = Guidance(methods=(ClassifierFree(scale=7.0), method))
    estimates = {
        CONDITIONAL: Estimate(denoised=conditional),
        UNCONDITIONAL: Estimate(denoised=unconditional, observations={"mid_block": ATTENTION}),
    }
    run = guidance.start(10, parameterization)
    guided = finish(run.combine(step(), x, estimates), lambda e: Estimate(denoised=_second_look(e.x)))
    torch.testing.assert_close(guided.denoised, expected, **EXACT)


def test_self_attention_guidance_noises_a_flow_with_the_noise_that_was_there():
    """x is alpha x0 + sigma noise, so the second input differs from the first by alpha (degraded - estimate)."""
    x, estimate, at = normal(0, WIDE), normal(1, WIDE), step(sigma=0.25)
    method = SelfAttention(scale=0.5, side="conditional")
    run = Guidance(methods=(method,)).start(10, Velocity())
    evaluation = next(
        run.combine(at, x, {CONDITIONAL: Estimate(denoised=estimate, observations={"mid_block": ATTENTION})})
    )
    noise = (x - 0.75 * estimate) / 0.25
    expected = RectifiedFlow().add_noise(method.degrade(estimate, ATTENTION), noise, sigmas_at(at, x))
    torch.testing.assert_close(evaluation.x, expected, **EXACT)


@pytest.mark.parametrize("percentile", [0.9, 0.995])
@pytest.mark.parametrize("largest", [1.0, 1.5, 1e9])
@pytest.mark.parametrize("size", [2.0, 0.1])
def test_dynamic_thresholding_is_diffusers(percentile: float, largest: float, size: float):
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=largest)
    x0 = size * normal(1)
    estimates = {CONDITIONAL: Estimate(denoised=x0)}
    run = Guidance(methods=(DynamicThreshold(percentile=percentile, largest=largest),)).start(10, Epsilon())
    ours = finish(run.combine(step(), X, estimates)).denoised
    torch.testing.assert_close(ours, scheduler._threshold_sample(x0), **EXACT)
    assert torch.equal(ours, x0) == (size < 1), "what lies in -1 to 1 is left as it is"


@pytest.mark.parametrize("percentile", [1.0, 0.9])
@pytest.mark.parametrize("amount", [1.0, 0.7])
@pytest.mark.parametrize("space", ["denoised", "prediction"])
def test_mimic_is_that_of_its_author(percentile: float, amount: float, space):
    """dynthresh of sd-dynamic-thresholding with its defaults, written out; in either of the spaces it is used in."""
    parts = PREDICTIONS
    if space == "denoised":
        parts = {branch: Epsilon().denoised(part, X, sigmas_at(step(), X)) for branch, part in PREDICTIONS.items()}
    relative = parts[CONDITIONAL] - parts[UNCONDITIONAL]
    mimic, target = (parts[UNCONDITIONAL] + scale * relative for scale in (3.0, 12.0))
    means = target.mean((2, 3), keepdim=True)
    mimic_size = (mimic - mimic.mean((2, 3), keepdim=True)).abs().amax((2, 3), keepdim=True)
    size = torch.quantile((target - means).abs().flatten(2), percentile, dim=2)[:, :, None, None]
    largest = torch.maximum(mimic_size, size)
    result = (target - means).clamp(-largest, largest) / largest * mimic_size + means
    expected = amount * result + (1 - amount) * target
    methods = (ClassifierFree(scale=12.0), Mimic(scale=3.0, percentile=percentile, amount=amount, space=space))
    ours = combine(methods, PREDICTIONS, X, step())
    ours = Epsilon().denoised(ours, X, sigmas_at(step(), X)) if space == "denoised" else ours
    torch.testing.assert_close(ours, expected, **EXACT)


@pytest.mark.parametrize(("scale", "image_scale", "asked"), [
    (7.5, 1.5, (CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL)),
    (7.5, 1.0, (CONDITIONAL, IMAGE_ONLY)),
    (1.5, 1.5, (CONDITIONAL, UNCONDITIONAL)),
    (1.0, 1.0, (CONDITIONAL,)),
])  # fmt: skip
def test_dual_guidance_is_diffusers_formula_and_runs_what_counts(scale: float, image_scale: float, asked):
    """The formula of its pipeline's loop; its own end-to-end comparison is that of the engine."""
    image = PREDICTIONS[IMAGE_ONLY]
    expected = U + scale * (C - image) + image_scale * (image - U)
    methods = (DualGuidance(scale=scale, image_scale=image_scale),)
    assert Guidance(methods=methods).branches(step()) == asked
    torch.testing.assert_close(combine(methods, PREDICTIONS, X, step()), expected, **EXACT)


def test_a_distilled_scale_runs_one_branch():
    guidance = Guidance(methods=(EmbeddedScale(scale=(8.0, 4.0)), DynamicThreshold(percentile=1.0, largest=math.inf)))
    assert guidance.branches(step(0, 2)) == (CONDITIONAL,)
    assert [embedded_scale(guidance, step(index, 2)) for index in (0, 1)] == [8.0, 4.0]
    assert embedded_scale(Guidance(methods=(ClassifierFree(scale=8.0),)), step()) is None
    torch.testing.assert_close(combine(guidance.methods[:1], PREDICTIONS, X, step(0, 2)), C, **EXACT)


@pytest.mark.parametrize("method", [PerturbedAttention(scale=3.0), SmoothedEnergy(scale=3.0), SelfAttention(scale=0.7)])
def test_terms_cost_nothing_outside_their_interval_and_at_scale_0(method):
    during = During(method=method, interval=StepInterval(end=0.5))
    assert [len(Guidance(methods=(during,)).branches(step(index))) for index in (0, 4, 5, 9)] == [2, 2, 1, 1]
    torch.testing.assert_close(combine((during,), PREDICTIONS, X, step(5)), C, **EXACT)
    off = type(method)(scale=lambda fraction: 0.0)
    assert Guidance(methods=(off,)).branches(step()) == (CONDITIONAL,)
    torch.testing.assert_close(combine((off,), PREDICTIONS, X, step()), C, **EXACT)


@pytest.mark.parametrize("method", [AdaptiveProjected, ZeroStar, Tangential, ClassifierFree])
def test_bases_at_scale_1_are_the_wanted_branch_alone(method):
    """T8 for all of them."""
    base = method(scale=1.0)
    assert Guidance(methods=(base,)).branches(step(3)) == (CONDITIONAL,)
    torch.testing.assert_close(combine((base,), PREDICTIONS, X, step(3)), C, **EXACT)


@pytest.mark.parametrize("methods", METHODS, ids=lambda methods: type(methods[-1]).__name__)
def test_rows_do_not_know_each_other(methods):
    """G4: every picture is the one it is alone, bit for bit, in the precision of use."""
    parts = {branch: part.float() for branch, part in PREDICTIONS.items()}
    x = X.float()
    together = combine(methods, parts, x, step())
    for row in range(SHAPE[0]):
        one = slice(row, row + 1)
        alone = combine(methods, {branch: part[one] for branch, part in parts.items()}, x[one], step())
        assert torch.equal(together[one], alone)


@pytest.mark.parametrize("methods", METHODS, ids=lambda methods: type(methods[-1]).__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_combined_in_float32(methods, dtype: torch.dtype):
    """R143: the result is that of float32, rounded once."""
    guidance, at = Guidance(methods=methods), step()
    half = {branch: Estimate(denoised=PREDICTIONS[branch].to(dtype)) for branch in guidance.branches(at)}
    single = {branch: Estimate(denoised=estimate.denoised.float()) for branch, estimate in half.items()}
    x = X.to(dtype)
    ours = finish(guidance.start(10, Epsilon()).combine(at, x, half)).denoised
    expected = finish(guidance.start(10, Epsilon()).combine(at, x.float(), single)).denoised
    assert ours.dtype == dtype
    assert torch.equal(ours, expected.to(dtype))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerturbedAttention(scale=math.inf), "perturbed-attention scale is inf"),
        (lambda: PerturbedAttention(scale=1.0, layers=()), "layers is empty"),
        (lambda: SmoothedEnergy(scale=1.0, blur=0.0), "sigma is 0.0"),
        (lambda: SelfAttention(scale=math.nan), "self-attention scale is nan"),
        (lambda: SelfAttention(scale=1.0, blur=math.inf), "blur is inf"),
        (lambda: SelfAttention(scale=1.0, threshold=math.nan), "threshold is nan"),
        (lambda: SelfAttention(scale=1.0).degrade(normal(0, (1, 4, 4, 9)), ATTENTION[:1]), "at least 5 cells"),
        (lambda: AdaptiveProjected(scale=5.0, eta=math.nan), "eta is nan"),
        (lambda: AdaptiveProjected(scale=5.0, norm_limit=0.0), "norm_limit is 0.0"),
        (lambda: AdaptiveProjected(scale=5.0, momentum=1.0), "momentum is 1.0"),
        (lambda: AdaptiveProjected(scale=5.0, momentum=-1.0), "momentum is -1.0"),
        (lambda: Guidance(methods=(AdaptiveProjected(scale=5.0, space="v"),)).start(3, Velocity()), "flow"),
        (lambda: ZeroStar(scale=5.0, zero_steps=-1), "zero_steps is -1"),
        (lambda: Guidance(methods=(ZeroStar(scale=5.0, zero_steps=3),)).start(3, Velocity()), "fewer than the 3 steps"),
        (lambda: Tangential(scale=math.nan), "guidance scale is nan"),
        (lambda: DynamicThreshold(percentile=1.1), "percentile is 1.1"),
        (lambda: DynamicThreshold(largest=0.5), "largest is 0.5"),
        (lambda: Mimic(scale=math.nan), "mimic scale is nan"),
        (lambda: Mimic(amount=-1.0), "mimic amount is -1.0"),
        (lambda: DualGuidance(scale=7.0, image_scale=math.inf), "image guidance scale is inf"),
        (lambda: EmbeddedScale(scale=math.nan), "guidance scale is nan"),
        (lambda: Guidance(methods=(PerturbedAttention(scale=(1.0,)),)).start(2, Epsilon()), "one for each of 2 steps"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message: str):
    with pytest.raises(InvalidInput, match=message):
        make()


def test_defaults_are_those_of_the_papers_and_of_diffusers():
    """A request that names a method only gets these numbers."""
    assert AdaptiveProjected(scale=5.0) == AdaptiveProjected(
        scale=5.0, eta=0.0, norm_limit=15.0, momentum=-0.5, origin="conditional", space="denoised"
    )
    assert ZeroStar(scale=5.0) == ZeroStar(scale=5.0, zero_steps=1)
    assert DualGuidance(scale=7.0) == DualGuidance(scale=7.0, image_scale=1.5)
    assert PerturbedAttention(scale=3.0).branch == Branch(perturbation=Perturbation(kind="identity"))
    blurred = Perturbation(kind="blurred", sigma=math.inf, layers=("mid_block",))
    assert SmoothedEnergy(scale=3.0).branch == Branch(perturbation=blurred)
    assert SelfAttention(scale=0.7) == SelfAttention(scale=0.7, side="unconditional", blur=1.0, threshold=1.0)
    assert DynamicThreshold() == DynamicThreshold(percentile=0.995, largest=math.inf)
    assert Mimic() == Mimic(scale=7.0, percentile=1.0, amount=1.0, space="denoised")
    assert Rescale(amount=0.7) == Rescale(amount=0.7, space="prediction")
    assert StepInterval() == StepInterval(start=0.0, end=1.0)
    assert SigmaInterval() == SigmaInterval(low=0.0, high=math.inf)
    assert Guidance() == Guidance(methods=(), unconditional=False)


SCALED = {
    "guidance scale": (ClassifierFree, AdaptiveProjected, ZeroStar, Tangential, DualGuidance, EmbeddedScale),
    "perturbed-attention scale": (PerturbedAttention,),
    "smoothed-energy scale": (SmoothedEnergy,),
    "self-attention scale": (SelfAttention,),
    "mimic scale": (Mimic,),
}


@pytest.mark.parametrize(("name", "method"), [(name, kind) for name, kinds in SCALED.items() for kind in kinds])
def test_every_scale_is_finite_and_has_a_number_for_each_step(name: str, method):
    with pytest.raises(InvalidInput, match=f"^{name} is nan, expected a finite number"):
        method(scale=math.nan)
    guidance = Guidance(methods=(method(scale=(2.0, 3.0)),))
    with pytest.raises(InvalidInput, match=f"^{name} is 2 numbers, expected one for each of 3 steps"):
        guidance.start(3, Epsilon())
    guidance.start(2, Epsilon())


def test_the_image_scale_has_a_number_for_each_step_too():
    guidance = Guidance(methods=(DualGuidance(scale=7.0, image_scale=(1.0, 1.5)),))
    with pytest.raises(InvalidInput, match=r"^image guidance scale is 2 numbers, expected one for each of 3 steps"):
        guidance.start(3, Epsilon())


@pytest.mark.parametrize(
    ("record", "field", "value", "expected"),
    [
        (AdaptiveProjected(scale=5.0), "origin", "deaf", "one of conditional, unconditional"),
        (AdaptiveProjected(scale=5.0), "space", "deaf", "one of denoised, prediction, v"),
        (Mimic(), "space", "deaf", "one of denoised, prediction, v"),
        (Perturbation(kind="identity"), "kind", "deaf", "one of identity, blurred"),
        (Rescale(amount=0.7), "space", "deaf", "one of denoised, prediction, v"),
        (SelfAttention(scale=1.0), "side", "image_only", "one of unconditional, conditional"),
        (FreeU(), "keyed", "deaf", "one of channels, index"),
        (FreeU(), "version", 3, "one of 1, 2"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "__post_init__") else str(value),
)
def test_words_that_mean_nothing_are_refused_without_type_checks(record, field: str, value: object, expected: str):
    """As users run it, where no annotation is checked and words come from a command line.

    Here they would be refused by their annotations; put in behind these, they meet what the record itself checks.
    """
    record = replace(record)
    object.__setattr__(record, field, value)
    with pytest.raises(InvalidInput) as refused:
        record.__post_init__()
    assert refused.value.argument.endswith(field)
    assert (refused.value.value, refused.value.expected) == (repr(value), expected)
