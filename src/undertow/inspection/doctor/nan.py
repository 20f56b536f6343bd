"""Black pictures and NaN: weights, adapters, and ranges of half precision."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import nn

from undertow.checkpoints.health import NEVER, Finding, examine
from undertow.errors import DamagedWeights, UndertowError
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Change, Seen, rule
from undertow.inspection.doctor.rescued import is_rescued
from undertow.shortage import size_in_words
from undertow.vae.precision import decode_safely

FLOAT16_MAX = torch.finfo(torch.float16).max
HEADROOM = 4.0
"""Factor to float16's largest number below which other prompts and sizes may overflow."""

nan_rule = partial(rule, family="nan")


def _networks(case: Case) -> Mapping[str, nn.Module]:
    text = () if case.model.text is None else case.model.text.encoders
    named = {"unet": case.model.unet, "vae": case.model.vae, **{one.kind: one for one in text}}
    return {name: network for name, network in named.items() if network is not None}


def _suspicious(case: Case) -> Iterator[Finding]:
    """Weights as they are in memory now, without those of text encoders that this request does not read."""
    unread = _unread_layers(case)
    for part, network in _networks(case).items():
        for name, weight in network.named_parameters():
            found = examine(f"{part}.{name}", weight.detach())
            if found is not None and not any(layer in found.name for layer in unread):
                yield found


def _unread_layers(case: Case) -> tuple[str, ...]:
    """Parts of the names of text encoders' last layers, which clip skip leaves out."""
    text = case.model.text
    if text is None:
        return ()
    asked = 1 if case.request.clip_skip is None else case.request.clip_skip
    return tuple(
        f"{encoder.kind}.{stem}layers.{encoder.config.layers - place}."
        for encoder, selection in zip(text.encoders, text.selections, strict=True)
        for place in range(1, max(asked, selection.skip))
        for stem in ("encoder.", "text_model.encoder.", "")
    )


@nan_rule(
    "weights-not-finite",
    symptom="black pictures, or an error that names NaN",
    prevention="load with --validate-weights, and compare the file's hash with the publisher's",
)
def weights_not_finite(case: Case) -> Iterator[Seen]:
    """NaN or infinity in weights that every picture uses."""
    for found in _suspicious(case):
        if found.verdict == "not finite":
            yield Seen(
                evidence=f"{found.nan} NaN and {found.infinite} infinite values of {found.count:,}",
                cause="the weight is damaged: by a broken download, merge or conversion, or an overflow while training",
                fix="download or convert the model again; undertow inspect MODEL --validate-weights checks the file",
                module=found.name,
                severity="serious",
            )


@nan_rule(
    "weights-not-finite-sometimes",
    symptom="black pictures with another clip skip",
    prevention="read layers that are whole: keep clip_skip at the model's own",
)
def weights_not_finite_sometimes(case: Case) -> Iterator[Seen]:
    """Damage that the load report names, in layers that this request does not read (Illustrious merges: CLIP's layer
    11, source document 004). `weights_not_finite` names what is read."""
    skip = case.request.clip_skip
    for found in case.model.report.health.findings:
        if found.verdict != "not finite" or found.use is None or _is_read(found.use, case):
            continue
        yield Seen(
            evidence=f"{found}; it is read {'never' if found.use == NEVER else f'with clip skip {found.use} or less'}"
            f"; the request's clip skip is {'the model’s own' if skip is None else skip}",
            cause="a merge damaged a layer that its author never used",
            fix="nothing: this request does not read it",
            module=found.name,
            severity="note",
        )


def _is_read(use: int, case: Case) -> bool:
    """As `LoadedModel.require_text` has it: a request can skip more layers than the model does by itself, not fewer."""
    asked = 1 if case.request.clip_skip is None else case.request.clip_skip
    text = case.model.text
    return text is not None and any(use >= max(one.skip, asked) for one in text.selections)


@nan_rule(
    "weights-zero",
    symptom="gray, empty or unchanging pictures",
    prevention="load with --validate-weights, which lists tensors of zeros",
)
def weights_zero(case: Case) -> Iterator[Seen]:
    """Matrices and kernels of nothing but zeros, through which nothing passes."""
    for found in _suspicious(case):
        part, _, name = found.name.partition(".")
        weight = _networks(case)[part].get_parameter(name)
        if found.verdict == "all zero" and weight.ndim > 1:
            yield Seen(
                evidence=f"all {found.count:,} values are 0",
                cause="the tensor was never trained, or was lost in a merge or conversion",
                fix="download or convert the model again",
                module=found.name,
            )


@nan_rule(
    "prediction-not-finite",
    symptom="slow steps that are computed again, else black pictures or an error that names NaN",
    prevention="keep the type that the model was published in, and try bfloat16 before float16",
)
def prediction_not_finite(case: Case) -> Iterator[Seen]:
    """NaN that appears in a forward of pure noise, and the module in which it does so first."""
    found = case.activations
    if not found.bad:
        return
    dtype = str(case.unet.dtype).removeprefix("torch.")
    module = case.unet.get_submodule(found.bad)
    whole = all(bool(weight.isfinite().all()) for weight in module.parameters())
    before = [value for value in found.largest.values() if value < float("inf")]
    rescued = whole and is_rescued(case)
    cause = f"an activation leaves the range of {dtype}" if whole else "a weight of this module is not finite"
    yield Seen(
        evidence=f"first in {found.bad}; the largest activation before it is {max(before, default=0):.4g} in {dtype}",
        cause=f"{cause}; generation computes what overflows in float32, which takes longer" if rescued else cause,
        fix="draw with --precision bf16 or f32" if whole else "download or convert the model again",
        module=found.bad,
        severity="warning" if rescued else "serious",
        changes=(Change(where="load", name="dtype", value="float32"),) if whole and dtype == "float16" else (),
    )


@nan_rule(
    "float16-headroom",
    symptom="NaN with some prompts, sizes or LoRA, and not with others",
    prevention="run models whose activations are large in bfloat16, which has float32's range",
)
def float16_headroom(case: Case) -> Iterator[Seen]:
    """Activations of a float16 network that come close to 65,504."""
    finite = {name: value for name, value in case.activations.largest.items() if value < float("inf")}
    if case.unet.dtype != torch.float16 or not finite:
        return
    name = max(finite, key=lambda one: finite[one])
    if finite[name] * HEADROOM > FLOAT16_MAX:
        yield Seen(
            evidence=f"{finite[name]:,.0f} of at most {FLOAT16_MAX:,.0f}: a factor of {FLOAT16_MAX / finite[name]:.2f}",
            cause="this module's activations nearly fill float16's range",
            fix="draw with --precision bf16 where the device computes it, else f32",
            module=name,
            changes=(Change(where="load", name="dtype", value="bfloat16"),),
        )


@nan_rule(
    "weights-overflow-float16",
    symptom="NaN as soon as the model is loaded in float16",
    prevention="convert such models to bfloat16",
)
def weights_overflow_float16(case: Case) -> Iterator[Seen]:
    """Weights beyond 65,504, which float16 turns into infinity."""
    for part, network in _networks(case).items():
        for name, weight in network.named_parameters():
            largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
            if FLOAT16_MAX < largest < float("inf"):
                yield Seen(
                    evidence=f"{largest:,.0f}, and float16 ends at {FLOAT16_MAX:,.0f}",
                    cause="this weight does not fit into float16",
                    fix="keep the model in float32 or bfloat16",
                    module=f"{part}.{name}",
                )


@nan_rule(
    "upcast-attention-missing",
    symptom="black pictures of SD2's 768 model and its kin in half precision",
    prevention="keep upcast_attention in the U-Net's config.json when a model is converted",
)
def upcast_attention_missing(case: Case) -> Iterator[Seen]:
    """Scores that may leave float16's range, in a network that does not ask for float32 scores (SD2's v models)."""
    config = case.unet.config
    if case.unet.dtype != torch.float16 or config.upcast_attention:
        return
    logits = {name: value for name, value in case.activations.logits.items() if value < float("inf")}
    name = max(logits, key=lambda one: logits[one], default="")
    if name and logits[name] > FLOAT16_MAX:
        yield Seen(
            evidence=f"scores up to {logits[name]:,.0f} (‖q‖ · ‖k‖), and float16 ends at {FLOAT16_MAX:,.0f}; "
            "upcast_attention is false",
            cause="queries times keys overflow in kernels that keep scores in float16; generation computes in float32 "
            "what is not finite then, which takes longer",
            fix="draw with --precision bf16, or set upcast_attention in the U-Net's config.json",
            module=name,
            severity="serious" if case.activations.bad and not is_rescued(case) else "warning",
            changes=(Change(where="load", name="dtype", value="bfloat16"),),
        )


@nan_rule(
    "vae-float16",
    symptom="decoding that takes longer; in other programs black pictures or spots, though the latents are fine",
    prevention="leave --vae-precision away: the type is then one that does not overflow",
)
def vae_float16(case: Case) -> Iterator[Seen]:
    """An autoencoder in float16 whose decoder overflows (trap T16)."""
    vae = case.model.require_vae()
    if vae.dtype != torch.float16:
        return
    retried = decode_safely(vae, case.noise()[:, : vae.config.latent_channels]).report.retried
    if retried or vae.config.force_upcast:
        seen = f"{retried[0]} overflowed while noise was decoded" if retried else "its config says force_upcast"
        yield Seen(
            evidence=f"{seen}; the VAE is in float16, {size_in_words(sum(p.nbytes for p in vae.parameters()))}",
            cause="the decoder's activations leave float16's range; decoding goes on in float32 from there",
            fix="load with --vae-precision bf16 or f32",
            module=f"vae.{retried[0]}" if retried else "vae",
            changes=(Change(where="load", name="vae_dtype", value="float32"),),
        )


@nan_rule(
    "adapter-not-finite",
    symptom="black pictures with an adapter, and none without",
    prevention="undertow inspect ADAPTER looks at its values",
)
def adapter_not_finite(case: Case) -> Iterator[Seen]:
    """NaN in an adapter's file."""
    for adapter, found in case.read_adapters:
        if isinstance(found, DamagedWeights):
            yield _of_adapter(adapter.title, found)


def _of_adapter(title: str, error: UndertowError) -> Seen:
    return Seen(
        evidence=str(error),
        cause=f"the file of {title} holds values that are not numbers",
        fix=f"download or train {title} again; leave it out meanwhile",
        module=title,
        severity="serious",
    )


RULES = (
    weights_not_finite,
    weights_not_finite_sometimes,
    weights_zero,
    prediction_not_finite,
    float16_headroom,
    weights_overflow_float16,
    upcast_attention_missing,
    vae_float16,
    adapter_not_finite,
)
