"""Poor pictures because of what was asked: words, size, guidance, steps, levels of noise."""

from collections.abc import Iterator
from functools import partial

import torch

from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import UndertowError
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Change, Seen, rule
from undertow.inspection.doctor.suited import advice, distilled, suited_fields, suited_sampler

AREAS = (0.4, 2.5)
"""Pixels of the picture, as a factor to those that the model was trained at."""

SIDES = 3.0
"""Longest side over shortest."""

GUIDANCE = 15.0
DISTILLED_GUIDANCE, DISTILLED_STEPS = 2.5, 12
"""The most that few-step models are drawn with (arXiv:2310.04378 and 2311.17042: 1 to 8 steps)."""

FEW_STEPS = 8
UNTRAINED = 0.05
"""Norm of a token's vector over the median of all, below which it was hardly ever trained."""

STARTS = 0.6
"""Share of the trained levels above which pictures begin, when nothing but noise is there."""

request_rule = partial(rule, family="picture")


@request_rule(
    "untrained-tokens",
    symptom="parts of the prompt are ignored",
    prevention="undertow words lists what a small model knows",
)
def untrained_tokens(case: Case) -> Iterator[Seen]:
    """Words that the model never learned: outside its vocabulary, or with token vectors that were never trained."""
    text = case.model.text
    if text is None or not case.request.prompt.strip():
        return
    if text.vocabulary is not None:
        spelled = text.spelled(case.request.prompt)
        unknown = text.vocabulary.unknown([spelled], known=text.embeddings)
        if unknown:
            near = [one for word in unknown for one in text.vocabulary.near(word)]
            yield Seen(
                evidence=f"{len(unknown)} of {len(spelled.split())} words: {', '.join(unknown[:8])}",
                cause="the model's captions never had these words",
                fix=f"say {' or '.join(near[:3])}" if near else "undertow words lists what it knows",
                module="text",
            )
        return
    for encoder in text.encoders:
        ids = encoder.tokenizer.encode(case.request.prompt)
        norms = encoder.tensors()["text_model.embeddings.token_embedding.weight"].float().norm(dim=1)
        usual = float(norms.median())
        bare = [index for index in ids if float(norms[index]) < UNTRAINED * usual]
        if bare:
            yield Seen(
                evidence=f"{len(bare)} of {len(ids)} tokens ({encoder.tokenizer.decode(bare)!r}) have vectors of "
                f"{float(norms[bare[0]]) / usual:.1%} of the usual length",
                cause="these tokens were hardly ever trained",
                fix="say it in other words",
                module=encoder.kind,
            )


@request_rule(
    "negative-cancels-prompt",
    symptom="pictures that have nothing to do with the prompt",
    prevention="keep what is not wanted apart from what is",
)
def negative_cancels_prompt(case: Case) -> Iterator[Seen]:
    """The negative prompt is the prompt."""
    prompt, negative = (one.strip().lower() for one in (case.request.prompt, case.request.negative_prompt))
    if prompt and prompt == negative and case.request.guidance_scale != 1:
        yield Seen(
            evidence="both texts are the same: guidance multiplies a difference of 0",
            cause="guidance moves away from the negative prompt, which is what is wanted here",
            fix="leave the negative prompt empty",
            severity="serious",
            changes=(Change(where="request", name="negative_prompt", value=""),),
        )


@request_rule(
    "size-far-from-trained",
    symptom="doubled heads, repeated patterns, or a cropped subject",
    prevention="draw near the trained size and enlarge: --enlarge 2",
)
def size_far_from_trained(case: Case) -> Iterator[Seen]:
    """Pixels, or the ratio of the sides, are far from what the model has seen."""
    (height, width), trained = case.size, case.unet.config.sample_size * case.factor
    area, sides = height * width / trained**2, max(height, width) / min(height, width)
    if AREAS[0] <= area <= AREAS[1] and sides <= SIDES:
        return
    if case.request.views is not None and area > 1:
        return
    yield Seen(
        evidence=f"{width}x{height} has {area:.2g} times the pixels of {trained}x{trained}, and sides of 1:{sides:.2g}",
        cause="the model was trained at another size",
        fix=f"draw at {trained}x{trained}, and enlarge with a second pass (--enlarge) or in windows (--views)",
        changes=(Change(where="request", name="size", value=(trained, trained)),),
    )


@request_rule(
    "guidance-off",
    symptom="vague pictures that follow the prompt loosely",
    prevention="leave --guidance away unless the model was distilled",
)
def guidance_off(case: Case) -> Iterator[Seen]:
    """A scale of 1 or less, with a model that is not distilled."""
    scale = case.request.guidance_scale
    if scale <= 1 and case.has_text and not distilled(case):
        yield Seen(
            evidence=f"guidance_scale is {scale:g}, at which the negative prompt is not asked either",
            cause="guidance is off",
            **advice(case, {"guidance_scale": suited_fields(case)["guidance_scale"]}),
        )


@request_rule(
    "guidance-high",
    symptom="burnt colors and hard contrasts",
    prevention="leave --guidance away: the model's own is taken; or rescale: --guidance-method cfg+rescale",
)
def guidance_high(case: Case) -> Iterator[Seen]:
    """A scale far beyond what models are drawn with."""
    scale, most = case.request.guidance_scale, _most_guidance(case)
    tamed = any(word in case.request.guidance_method for word in ("rescale", "apg"))
    if scale > most and not tamed:
        yield Seen(
            evidence=f"guidance_scale is {scale:g}, of at most about {most:g}",
            cause="predictions are pushed far out of their range (arXiv:2305.08891, section 3.4)",
            **advice(case, {"guidance_scale": suited_fields(case)["guidance_scale"]}),
        )


@request_rule(
    "distilled-steps",
    symptom="overcooked, glossy pictures that take long",
    prevention="leave --steps away: few-step models say how many they are drawn in",
)
def distilled_steps(case: Case) -> Iterator[Seen]:
    """A model, or a LoRA, that was distilled to a few steps, with many."""
    why, steps, suited = distilled(case), case.request.drawn_steps, suited_fields(case)
    if why and steps > DISTILLED_STEPS:
        if case.request.guidance_scale <= _most_guidance(case):
            suited.pop("guidance_scale")
        yield Seen(
            evidence=f"{steps} steps, and {why}",
            cause="weights that were distilled to 1 to 8 steps gain nothing from more, and drift",
            **advice(case, {**suited, **suited_sampler(case)}),
        )


@request_rule(
    "few-steps",
    symptom="blurred, unfinished pictures",
    prevention="undertow compare MODEL --steps 5,10,20 shows how many are enough",
)
def few_steps(case: Case) -> Iterator[Seen]:
    """Fewer steps than a model that was not distilled needs."""
    request = case.request
    if request.image is None and request.drawn_steps < FEW_STEPS and not distilled(case):
        yield Seen(
            evidence=f"{request.drawn_steps} steps; models that were not distilled need 15 to 30",
            cause="each step is too long for the solver",
            **advice(case, {"steps": suited_fields(case)["steps"]}),
        )


@request_rule(
    "off-grid-levels",
    symptom="noise that stays, missing contrast, or gray pictures",
    prevention="leave --sampler, --schedule and --sigmas away: the model's own are taken",
)
def off_grid_levels(case: Case) -> Iterator[Seen]:
    """Levels of noise outside, or far inside, what the model was trained on, and grids of another family."""
    schedule, reset = case.model.schedule, Change(where="request", name="schedule", value=None)
    try:
        chosen = case.sampler
        levels = chosen.grid(case.request.steps)
    except UndertowError as error:
        yield Seen(
            evidence=str(error),
            cause="this sampler or grid does not suit the model",
            fix="leave --sampler and --schedule away",
            severity="serious",
            changes=(reset, Change(where="request", name="sampler", value="model")),
        )
        return
    first, last = levels[0], next((level for level in reversed(levels) if level > 0), levels[0])
    highest = torch.tensor([min(first, schedule.sigma_max)], dtype=torch.float64)
    timestep = float(schedule.sigma_to_timestep(highest)) / (len(schedule) - 1)
    if first > schedule.sigma_max * 1.001 or last < schedule.sigma_min * 0.5:
        yield Seen(
            evidence=f"levels from {first:.4g} to {last:.4g}; trained from {schedule.sigma_max:.4g} to "
            f"{schedule.sigma_min:.4g}",
            cause="the network is asked about noise that it has never seen",
            fix="leave --sigmas away",
            severity="serious",
            changes=(Change(where="request", name="sigmas", value=None),),
        )
    elif case.request.image is None and isinstance(schedule, NoiseSchedule) and timestep < STARTS:
        yield Seen(
            evidence=f"begins at sigma {first:.4g}, timestep {timestep:.0%} of the trained ones, without an image",
            cause="pure noise is given to a network that expects a picture under it",
            fix="leave --sigmas away",
            severity="serious",
            changes=(Change(where="request", name="sigmas", value=None),),
        )
    foreign = next((one for one in ("sd15", "sdxl") if chosen.schedule.endswith(f"_{one}")), None)
    family = case.model.family
    if foreign is not None and family.startswith("sdxl") != (foreign == "sdxl"):
        yield Seen(
            evidence=f"the grid {chosen.schedule} was optimized for {foreign}, and the model is of {family}",
            cause="its levels were searched for another model",
            fix="leave --schedule away",
            changes=(reset,),
        )


@request_rule(
    "terminal-noise-unused",
    symptom="neither very dark nor very bright pictures",
    prevention="draw models with zero terminal SNR with trailing levels (sgm_uniform), which begin at the last one",
)
def terminal_noise_unused(case: Case) -> Iterator[Seen]:
    """A model with zero terminal SNR that is not begun at its last level (arXiv:2305.08891, section 3.3)."""
    schedule = case.model.schedule
    if not isinstance(schedule, NoiseSchedule) or not schedule.zero_terminal_snr or case.request.image is not None:
        return
    first = case.sampler.grid(case.request.steps)[0]
    if first < schedule.sigma_max * 0.99:
        yield Seen(
            evidence=f"begins at sigma {first:.4g} of {schedule.sigma_max:.4g}, the level of pure noise",
            cause="the levels leave out the one at which such a model decides on brightness",
            fix="draw with --schedule sgm_uniform",
            changes=(Change(where="request", name="schedule", value="sgm_uniform"),),
        )


def _most_guidance(case: Case) -> float:
    """The largest scale that such models are drawn with; one that is told its scale was trained on large ones."""
    return DISTILLED_GUIDANCE if distilled(case) and case.unet.config.guidance_dim is None else GUIDANCE


RULES = (
    untrained_tokens,
    negative_cancels_prompt,
    size_far_from_trained,
    guidance_off,
    guidance_high,
    distilled_steps,
    few_steps,
    off_grid_levels,
    terminal_noise_unused,
)
