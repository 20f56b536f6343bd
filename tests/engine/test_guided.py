"""The words for guidance: what each name stands for, with which options, and for which networks."""

from dataclasses import replace

import pytest

from undertow import GenerationRequest, InvalidInput, UNetConfig
from undertow.diffusion.guidance import (
    AdaptiveProjected,
    ClassifierFree,
    DualGuidance,
    During,
    DynamicThreshold,
    EmbeddedScale,
    Mimic,
    PerturbedAttention,
    Rescale,
    SelfAttention,
    SmoothedEnergy,
    StepInterval,
    Tangential,
    ZeroStar,
)
from undertow.engine.guided import chosen_guidance
from undertow.unet.free_u import FreeU

SD1 = UNetConfig.sd15()
LCM = replace(SD1, guidance_dim=256)
EDITING = UNetConfig.instruct_pix2pix()


def chosen(words: str, config: UNetConfig = SD1, **settings):
    return chosen_guidance(GenerationRequest(prompt="", guidance_scale=4.0, guidance_method=words, **settings), config)


def methods(words: str, config: UNetConfig = SD1, **settings) -> tuple:
    return chosen(words, config, **settings).guidance.methods


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # The request's scale where the method is the guidance itself; else the papers' and diffusers' defaults.
        ("none", ClassifierFree(scale=1.0)),
        ("cfg", ClassifierFree(scale=4.0)),
        ("cfg()", ClassifierFree(scale=4.0)),
        (" cfg ( scale = 2 ) ", ClassifierFree(scale=2.0)),
        ("cfg(scale=3|2)", ClassifierFree(scale=(3.0, 2.0))),
        ("apg", AdaptiveProjected(scale=4.0)),
        ("apg(eta=0.5,)", AdaptiveProjected(scale=4.0, eta=0.5)),
        ("zero_star", ZeroStar(scale=4.0)),
        ("tangential", Tangential(scale=4.0)),
        ("pag", PerturbedAttention(scale=3.0)),
        ("pag(layers=mid_block)", PerturbedAttention(scale=3.0, layers=("mid_block",))),
        ("pag(layers=mid_block|up_blocks.1)", PerturbedAttention(scale=3.0, layers=("mid_block", "up_blocks.1"))),
        ("seg", SmoothedEnergy(scale=3.0)),
        ("sag", SelfAttention(scale=0.75)),
        ("threshold", DynamicThreshold()),
        ("mimic", Mimic()),
        ("rescale", Rescale(amount=0.7)),
        ("rescale(amount=0.2)", Rescale(amount=0.2)),
        (
            "cfg(start=0.25)",
            During(method=ClassifierFree(scale=4.0), interval=StepInterval(start=0.25, end=1.0)),
        ),
        (
            "pag(end=0.5,scale=2)",
            During(method=PerturbedAttention(scale=2.0), interval=StepInterval(start=0.0, end=0.5)),
        ),
    ],
)
def test_a_word_is_a_method_with_its_defaults(words, expected):
    assert methods(words) == (expected,)


def test_words_are_joined_in_their_order():
    found = chosen("cfg+pag(scale=2)+rescale+free_u(b1=1.3,keyed=index)")
    assert found.guidance.methods == (ClassifierFree(scale=4.0), PerturbedAttention(scale=2.0), Rescale(amount=0.7))
    assert found.free_u == FreeU(b1=1.3, keyed="index")
    assert chosen("cfg").free_u is None


@pytest.mark.parametrize("unconditional", [True, False])
def test_samplers_may_want_the_unconditional_estimate(unconditional):
    request = GenerationRequest(prompt="")
    assert chosen_guidance(request, SD1, unconditional=unconditional).guidance.unconditional == unconditional


def test_a_network_that_is_told_the_scale_gets_it():
    assert methods("cfg", LCM) == (EmbeddedScale(scale=4.0),)
    assert methods("none", LCM) == (EmbeddedScale(scale=1.0),)
    assert methods("cfg(scale=2)", LCM) == (EmbeddedScale(scale=2.0),)


def test_an_editing_network_has_two_scales():
    assert methods("cfg", EDITING, image_guidance_scale=1.25) == (DualGuidance(scale=4.0, image_scale=1.25),)
    assert methods("none", EDITING, image_guidance_scale=1.25) == (DualGuidance(scale=1.0, image_scale=1.0),)


@pytest.mark.parametrize(
    ("words", "argument", "message"),
    [
        ("", "guidance_method", "a name with options"),
        ("cfg+", "guidance_method", "a name with options"),
        ("cfg scale=2", "guidance_method", "a name with options"),
        ("cgf", "guidance_method", "did you mean 'cfg'"),
        ("pag(scale)", "guidance_method", "NAME=VALUE"),
        ("pag(sigma=2,width=3)", "option of pag", "sigma, width.*one of scale.*start, end"),
        ("cfg(scale=x)", "option scale of cfg", "is x, expected a number"),
        ("cfg(scale=7|x)", "option scale of cfg", r"is 7\|x, expected a number"),
        ("apg(eta=1|2)", "option eta of apg", r"is 1\|2, expected a number"),
        ("apg(space=pixels)", "option space of apg", "'pixels', expected one of denoised, prediction, v"),
        ("pag(start=soon)", "option start of pag", "is soon, expected a number"),
        ("zero_star(zero_steps=1.5)", "option zero_steps of zero_star", "is 1.5, expected a whole number"),
        ("free_u(b1=x)", "option b1 of free_u", "is x, expected a number"),
        ("free_u(version=3)", "option version of free_u", "'3', expected one of 1, 2"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, argument, message):
    with pytest.raises(InvalidInput, match=message) as refusal:
        methods(words)
    assert refusal.value.argument == argument


def test_what_the_network_lacks_the_parts_for_is_refused():
    with pytest.raises(InvalidInput, match="self-attention"):
        methods("pag(layers=nowhere)")
