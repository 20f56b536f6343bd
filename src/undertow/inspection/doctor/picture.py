"""Poor pictures because of what the model is: what it predicts, its latents, its levels of noise, and what it reads."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from undertow.checkpoints.identify.families import find_family
from undertow.diffusion.schedules import NoiseSchedule
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Change, Seen, rule
from undertow.inspection.doctor.pictures import plain_picture, shapes_picture
from undertow.inspection.doctor.prediction import CANDIDATES, probe_prediction
from undertow.vae.config import VAEConfig
from undertow.vae.latent_space import PLAYGROUND_V25, SD, SDXL, LatentSpace
from undertow.vae.latent_values import latents_to_model
from undertow.vae.precision import decode_safely, encode_safely

ALIKE = 0.7
"""Correlation of a picture and its reconstruction from which on an autoencoder counts as trained."""

SPREADS = (0.4, 2.5)
"""Standard deviation of a picture's latents as a U-Net sees them, which is trained on about 1."""

SAME_LEVELS = 0.02
"""Relative difference of the largest sigma; rounding of stored tables stays below 0.002."""

SAME_TEXT = 1e-3
"""Relative difference of two encodings, or of two predictions, below which they say the same."""

picture_rule = partial(rule, family="picture")


@picture_rule(
    "wrong-prediction-type",
    symptom="pictures of noise, or washed out ones, with every prompt",
    prevention="keep the scheduler's config beside the weights, and modelspec.prediction_type in the header",
)
def wrong_prediction_type(case: Case) -> Iterator[Seen]:
    """Another type of prediction fits known noise better than the one that the model is used with."""
    unet, clean = case.unet, _clean(case)
    # EDM's is told by marker tensors.
    if clean is None or case.model.parameterization not in CANDIDATES.values():
        return
    told = case.conditioning(conditional=False)
    probe = probe_prediction(unet, clean, told, case.model.schedule, case.model.parameterization)
    if not probe.mislabelled:
        return
    means = ", ".join(f"{name} {error:.2f}" for name, error in sorted(probe.means.items(), key=lambda one: one[1]))
    changes = () if probe.best == "velocity" else (Change(where="load", name="prediction", value=probe.best),)
    yield Seen(
        evidence=f"least errors of each type on known noise: {means}; at t = 998 the prediction has a cosine of "
        f"{probe.alike:.2f} with the noise; the model is used with {probe.used}",
        cause=f"the network predicts {probe.best}, and is used as if it predicted {probe.used}",
        fix=f"load it with prediction={probe.best!r} (--prediction {probe.best})"
        if changes
        else "write the scheduler of a flow model (FlowMatchEulerDiscreteScheduler) beside it",
        module="unet",
        severity="serious",
        changes=changes,
    )


def _clean(case: Case) -> Tensor | None:
    """A plain picture as the network sees it: white, or of pixels black, since what is drawn in pixels mostly stands
    before black; `None` where the network reads more than noise."""
    config = case.unet.config
    side = min(config.sample_size, 64) * case.factor
    if case.in_pixels:
        return -torch.ones(1, config.in_channels, side, side, device=case.unet.device)
    vae, space = case.model.require_vae(), case.model.latent_space
    if config.in_channels != vae.config.latent_channels or space is None:
        return None
    return latents_to_model(space, encode_safely(vae, plain_picture(side).to(case.unet.device)).posterior.mean)


@picture_rule(
    "latent-scale-of-family",
    symptom="pale or oversaturated pictures; white ones of SDXL",
    prevention="keep scaling_factor in the VAE's config.json",
)
def latent_scale_of_family(case: Case) -> Iterator[Seen]:
    """The scale of the latents is not the one that the family was trained with (trap of source document 004)."""
    space, config = case.model.latent_space, case.model.require_vae().config
    family = find_family(case.unet.config)
    if family is None or space is None or config.level_channels != VAEConfig().level_channels:
        return
    expected: tuple[LatentSpace, ...] = (SDXL, PLAYGROUND_V25) if family.name.startswith("sdxl") else (SD,)
    if space.scale not in [one.scale for one in expected]:
        yield Seen(
            evidence=f"the scale is {space.scale:g}, and {family.title} was trained with {expected[0].scale:g}",
            cause="the VAE, or its config, is another family's",
            fix=f"load it with a VAE of {family.title}, or correct scaling_factor in the VAE's config.json",
            module="vae",
            severity="serious",
        )


@picture_rule(
    "latent-scale-measured",
    symptom="gray pictures without contrast, or burnt ones",
    prevention="measure the standard deviation of latents over the training set when a VAE is trained",
)
def latent_scale_measured(case: Case) -> Iterator[Seen]:
    """Latents of a picture, as the U-Net sees them, have a standard deviation far from 1. Autoencoders that cannot
    repeat the picture tell nothing."""
    vae, space = case.model.require_vae(), case.model.latent_space
    if space is None or vae.config.in_channels != 3:
        return
    picture = shapes_picture(min(vae.config.sample_size, 512)).to(vae.device)
    latents = encode_safely(vae, picture).posterior.mean
    if not _alike(decode_safely(vae, latents).pixels.to(picture), picture):
        return
    spread = float(latents_to_model(space, latents).std())
    if not SPREADS[0] < spread < SPREADS[1]:
        yield Seen(
            evidence=f"latents of a test picture have a standard deviation of {spread:.3g} at a scale of "
            f"{space.scale:g}; U-Nets are trained on about 1",
            cause="the scaling factor does not belong to this VAE",
            fix=f"set scaling_factor in the VAE's config.json to about {space.scale / spread:.3g}",
            module="vae",
            severity="serious",
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) > ALIKE


@picture_rule(
    "noise-levels-of-family",
    symptom="colorful noise, garbled shapes",
    prevention="keep beta_schedule, beta_start and beta_end in the scheduler's config when a model is converted",
)
def noise_levels_of_family(case: Case) -> Iterator[Seen]:
    """The model's levels of noise are not those that its family was trained on (source document 004)."""
    family, schedule = find_family(case.unet.config), case.model.schedule
    if family is None or not isinstance(schedule, NoiseSchedule) or schedule.zero_terminal_snr:
        return
    usual = NoiseSchedule.scaled_linear()
    if abs(schedule.sigma_max / usual.sigma_max - 1) > SAME_LEVELS:
        yield Seen(
            evidence=f"sigma goes up to {schedule.sigma_max:.2f}; {family.title} was trained up to "
            f"{usual.sigma_max:.2f} (scaled_linear from 0.00085 to 0.012)",
            cause="the scheduler's config names other betas",
            fix="set beta_schedule to scaled_linear, beta_start to 0.00085 and beta_end to 0.012",
            module="scheduler",
            severity="serious",
        )


@picture_rule(
    "text-collapsed",
    symptom="the same kind of picture with every prompt",
    prevention="load text encoders of the same model, and look at undertow inspect MODEL for missing tensors",
)
def text_collapsed(case: Case) -> Iterator[Seen]:
    """The prompt and the empty text have almost the same encoding."""
    if not case.has_text:
        return
    text = case.model.require_text(case.request.clip_skip)
    encodings = [
        text.encode(words, dialect="plain", clip_skip=case.request.clip_skip).context.float()
        for words in (case.prompt, "")
    ]
    shortest = min(one.shape[1] for one in encodings)
    with_words, without = (one[:, :shortest] for one in encodings)
    cosine = float(torch.nn.functional.cosine_similarity(with_words.flatten(), without.flatten(), dim=0))
    apart = _apart(with_words, without)
    if apart < SAME_TEXT:
        yield Seen(
            evidence=f"cosine of {case.prompt!r} and the empty text: {cosine:.6f}; relative difference {apart:.1e}",
            cause="the text encoder gives one answer to everything: its token embeddings or layers are not those of "
            "this model",
            fix="draw with a whole checkpoint, or in Python load its text encoders with text=",
            module="text",
            severity="serious",
        )


@picture_rule(
    "prompt-without-effect",
    symptom="pictures that have nothing to do with the prompt",
    prevention="compare two prompts at one seed after each merge or conversion",
)
def prompt_without_effect(case: Case) -> Iterator[Seen]:
    """Predictions with and without the prompt are the same, although the encodings differ."""
    if not case.has_text:
        return
    level = torch.tensor([len(case.model.schedule) / 2], dtype=torch.float32, device=case.unet.device)
    conditional, unconditional = (case.predict(case.noise(), level, conditional=one).float() for one in (True, False))
    apart = _apart(conditional, unconditional)
    if apart < SAME_TEXT and bool(conditional.isfinite().all()):
        yield Seen(
            evidence=f"at t = {float(level):.0f} the two predictions differ by {apart:.1e} of their size",
            cause="nothing of the text comes through the cross-attentions",
            fix="download or convert the model again, and look at the weights of its cross-attentions (attn2)",
            module="unet",
            severity="serious",
        )


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


@picture_rule(
    "flat-picture",
    symptom="a picture of one color",
    prevention="draw one picture at full precision after each change of model, VAE or type",
)
def flat_picture(case: Case) -> Iterator[Seen]:
    """The given picture has hardly any contrast."""
    if case.image is None:
        return
    pixels = torch.tensor(list(case.image.resize((64, 64)).tobytes()), dtype=torch.float32)
    mean, spread = float(pixels.mean()), float(pixels.std())
    if spread < 2:
        color = "black" if mean < 8 else "white" if mean > 247 else "of one color"
        yield Seen(
            evidence=f"values have a mean of {mean:.0f} and a standard deviation of {spread:.1f}, of 255",
            cause="NaN in the network or the autoencoder (black), a wrong latent scale (white), or no steps at all",
            fix="read the other findings; draw again with --precision f32 --vae-precision f32",
            module=f"a picture that is {color}",
            severity="serious",
        )


RULES = (
    wrong_prediction_type,
    latent_scale_of_family,
    latent_scale_measured,
    noise_levels_of_family,
    text_collapsed,
    prompt_without_effect,
    flat_picture,
)
