"""What the network is told at every step: texts, what an empty negative prompt means, and SDXL's numbers."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.encoders.minis import WIDTHS, shared_encoder, stack_for
from tests.golden.minis import M15, build, conditioning_for, latents_for
from undertow import GenerationRequest, InvalidInput, Region, UNetConfig
from undertow.encoders.text_stack import TextStack
from undertow.engine.conditioning import Branches, Conditioner, side_by_side
from undertow.engine.layout import box_mask
from undertow.unet.conditioning import Conditioning, concatenate
from undertow.unet.config import CrossAttention, Level, Middle, TextTime
from undertow.vocabulary import Vocabulary

SIZE = (48, 80)
ROUNDING = 1e-5
"""float32: more tokens are summed in another order."""

BASE, REFINER = TextTime(pooled_dim=64, ids=6), TextTime(pooled_dim=64, ids=5)
KINDS = {"sd1": ("clip_l",), "base": ("clip_l", "openclip_g"), "refiner": ("openclip_g",)}
ADDED = {"sd1": None, "base": BASE, "refiner": REFINER}


def conditioner(kind: str, *, prompt: str = "red apple", needs_unconditional: bool = True, **settings) -> Conditioner:
    """Of a request to a network of this kind. settings: fields of the request, or of the conditioner."""
    own = {name: settings.pop(name) for name in ("region_texts", "region_masks", "dtype") if name in settings}
    text = stack_for(*KINDS[kind])
    config = UNetConfig(
        levels=(Level(channels=32, attention=CrossAttention(heads=2)),),
        middle=Middle(attention=CrossAttention(heads=2)),
        context_dim=sum(WIDTHS[one] for one in KINDS[kind]),
        added=ADDED[kind],
    )
    request = GenerationRequest(prompt=prompt, **settings)
    given = {"region_texts": [text] * len(request.regions), "dtype": torch.float32, **own}
    return Conditioner(
        text=text,
        config=config,
        request=request,
        size=SIZE,
        needs_unconditional=needs_unconditional,
        device=torch.device("cpu"),
        **given,
    )


def both(made: Conditioner) -> tuple[Conditioning, Conditioning]:
    """What is conditional at the first step, and what is not."""
    first = made.branches(1)[0]
    assert first.unconditional is not None
    return first.conditional[0][0], first.unconditional


@pytest.mark.parametrize(
    ("kind", "settings", "conditional", "unwanted"),
    [
        # diffusers' _get_add_time_ids: original size, crop, target size; the refiner's end in an aesthetic score, 6 for
        # what is conditional and 2.5 for what is not.
        ("base", {}, [48, 80, 0, 0, 48, 80], [48, 80, 0, 0, 48, 80]),
        ("base", {"original_size": (30, 20)}, [30, 20, 0, 0, 48, 80], [30, 20, 0, 0, 48, 80]),
        ("base", {"crop": (3, 7)}, [48, 80, 3, 7, 48, 80], [48, 80, 3, 7, 48, 80]),
        ("base", {"target_size": (9, 5)}, [48, 80, 0, 0, 9, 5], [48, 80, 0, 0, 9, 5]),
        ("refiner", {}, [48, 80, 0, 0, 6], [48, 80, 0, 0, 2.5]),
        ("refiner", {"original_size": (30, 20), "crop": (3, 7)}, [30, 20, 3, 7, 6], [30, 20, 3, 7, 2.5]),
    ],
)
def test_sizes_crop_and_scores_are_told_in_their_order(kind, settings, conditional, unwanted):
    one, other = both(conditioner(kind, **settings))
    assert one.time_ids.tolist() == [conditional]
    assert other.time_ids.tolist() == [unwanted]


def test_numbers_and_pooled_text_are_for_networks_that_read_them():
    told, untold = conditioner("refiner"), conditioner("refiner")
    untold.config = replace(untold.config, added=None)
    for one in both(told):
        assert one.time_ids is not None
        assert one.pooled.shape == (1, 64)
    for one in both(untold):
        assert one.time_ids is None
        assert one.pooled is None


@pytest.mark.parametrize(
    ("kind", "negative", "zeros"),
    [("sd1", "", False), ("refiner", "", False), ("base", "dark", False), ("base", "", True)],
)
def test_an_empty_negative_prompt_is_zeros_for_sdxls_base_alone(kind, negative, zeros):
    """diffusers' force_zeros_for_empty_prompt: true in the base's model_index.json, false in the refiner's."""
    made = conditioner(kind, negative_prompt=negative)
    conditional, unwanted = both(made)
    assert bool((unwanted.context == 0).all()) == zeros
    assert not (conditional.context == 0).all()
    if kind != "sd1":
        assert bool((unwanted.pooled == 0).all()) == zeros
        assert not (conditional.pooled == 0).all()
    assert any("empty negative prompt is zeros" in line for line in made.decisions) == zeros
    if not zeros:
        (expected,) = made.text.encode_steps(negative, 1, dialect="a1111", clip_skip=None)[0]
        assert torch.equal(unwanted.context, expected.encoding.context)


def test_an_empty_prompt_is_encoded_where_an_empty_negative_one_is_zeros():
    conditional, unwanted = both(conditioner("base", prompt=""))
    assert conditional.context.any()
    assert not unwanted.context.any()


def test_what_guidance_does_not_ask_for_is_not_made_but_composition_needs_it():
    (plain,) = conditioner("sd1", needs_unconditional=False).branches(1)
    (composed,) = conditioner("sd1", prompt="red AND blue :0.5", needs_unconditional=False).branches(1)
    (weighted,) = conditioner("sd1", prompt="red :0.5", needs_unconditional=False).branches(1)
    assert plain.unconditional is None
    assert not plain.composed
    assert [weight for _, weight in composed.conditional] == [1, 0.5]
    for one in (composed, weighted):
        assert one.composed
        assert one.unconditional is not None


def test_steps_that_share_a_text_share_its_conditioning():
    made = conditioner("sd1", prompt="[red:blue:2] apple")
    branches = made.branches(4)
    assert len(branches) == 4
    texts = [one.conditional[0][0] for one in branches]
    assert texts[0] is texts[1]
    assert texts[2] is texts[3]
    assert not torch.equal(texts[1].context, texts[2].context)
    assert len({id(one.unconditional) for one in branches}) == 1


def test_an_equal_prompt_and_negative_prompt_are_two_conditionings():
    """Of the refiner's, which tell them apart by their scores."""
    one, other = both(conditioner("refiner", prompt="red", negative_prompt="red"))
    assert torch.equal(one.context, other.context)
    assert one.time_ids.tolist() != other.time_ids.tolist()


def test_without_a_step_there_is_still_something_to_tell():
    assert len(conditioner("sd1").branches(0)) == 1


@pytest.mark.parametrize("text", ["red apple:1.4", "photo, ratio 16:9", "dark AND night", "dark AND night :0.5"])
@pytest.mark.parametrize("where", ["negative", "region"])
def test_negative_prompts_and_those_of_regions_are_not_composed(where, text):
    """A1111 splits at AND and takes the number at the end in get_multicond_prompt_list of its prompt_parser.py, which
    negative prompts never pass: their text is what stands there."""
    region = Region(prompt=text, box=(0, 0, 0.5, 1))
    settings = {"negative_prompt": text} if where == "negative" else {"regions": (region,)}
    made = conditioner("sd1", **settings)
    (step,) = made.branches(1)
    found = step.unconditional if where == "negative" else step.regions[0]
    assert torch.equal(found.context, stack_for("clip_l").encode(text, dialect="plain").context)
    assert len([line for line in made.decisions if "AND is a word" in line]) == ("AND" in text)


def test_a_negative_prompt_is_not_told_how_to_place_things():
    words = Vocabulary(words=("cat", "dog"), emoji=("cat", "dog"), colors=(), relations=("above",))
    text = TextStack([shared_encoder("clip_l")], vocabulary=words)
    for name in ("prompt", "negative_prompt"):
        made = replace(conditioner("sd1", **{"prompt": "cat", name: "cat dog"}), text=text, decisions=[])
        made.branches(1)
        assert bool(made.decisions) == (name == "prompt")


def test_embeddings_that_a_request_relies_on_must_be_known():
    with pytest.raises(InvalidInput, match="embeddings is 'thing', expected names of those that were added: none was"):
        conditioner("sd1", embeddings=("thing",)).branches(1)


def test_a_negative_prompt_is_edited_and_weighted_all_the_same():
    first, second = conditioner("sd1", negative_prompt="[dark:(light:1.5):1] night").branches(2)
    encode = partial(stack_for("clip_l").encode, dialect="a1111")
    assert torch.equal(first.unconditional.context, encode("dark night").context)
    assert torch.equal(second.unconditional.context, encode("(light:1.5) night").context)


@pytest.mark.parametrize("settings", [{"dialect": "plain"}, {"clip_skip": 2}])
def test_dialect_and_clip_skip_are_the_requests(settings):
    prompt = "(red:1.5) apple"
    found, plain = (both(conditioner("sd1", prompt=prompt, **each))[0].context for each in (settings, {}))
    given = {"dialect": "a1111", "clip_skip": None, **settings}
    expected = stack_for("clip_l").encode_steps(prompt, 1, **given)[0][0].encoding.context
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


def test_the_type_is_of_texts_and_not_of_numbers():
    one, _ = both(conditioner("base", dtype=torch.bfloat16, original_size=(1025, 80)))
    assert (one.context.dtype, one.pooled.dtype, one.time_ids.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert one.time_ids[0, 0] == 1025, "bfloat16 would round it"


def test_notes_of_a_text_are_told_once():
    made = conditioner("sd1", prompt="<lora:style:0.5> red", negative_prompt="<lora:style:0.5> red")
    made.branches(3)
    assert len(made.decisions) == len(set(made.decisions)) == 1


def test_text_encoders_of_another_width_are_refused():
    with pytest.raises(InvalidInput, match="64 wide, expected 192, the width this U-Net reads"):
        Conditioner(
            text=stack_for("clip_l"),
            region_texts=(),
            config=conditioner("base").config,
            request=GenerationRequest(prompt=""),
            size=SIZE,
            needs_unconditional=True,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )


LEFT, RIGHT = Region(prompt="cat", box=(0, 0, 0.5, 1)), Region(prompt="dog", box=(0.5, 0, 1, 1))


def test_regions_are_read_in_their_order_each_by_its_own_reader():
    own = stack_for("clip_l", selections=[stack_for("openclip_h").selections[0]])
    made = conditioner("sd1", regions=(LEFT, RIGHT), region_texts=[stack_for("clip_l"), own])
    (found,) = made.branches(1)
    expected = [
        reader.encode_steps(prompt, 1, dialect="a1111", clip_skip=None)[0][0].encoding.context
        for reader, prompt in ((stack_for("clip_l"), "cat"), (own, "dog"))
    ]
    assert [torch.equal(one.context, other) for one, other in zip(found.regions, expected, strict=True)] == [True] * 2


def test_with_masks_the_prompts_of_regions_stand_beside_each_other():
    masks = [box_mask(region.box, (2, 4)) for region in (LEFT, Region(prompt="", box=(0.5, 0, 1, 0.5)))]
    (found,) = conditioner("sd1", regions=(LEFT, RIGHT), region_masks=masks).branches(1)
    assert found.regions == ()
    row = found.conditional[0][0]
    assert row.context.shape == (1, 3 * 77, 64)
    assert row.context_mask is None
    assert row.regions.shape == (1, 3 * 77, 2, 4)
    shown = [row.regions[0, 77 * index].int().tolist() for index in range(3)]
    assert shown == [[[0, 0, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0]] * 2, [[0, 0, 1, 1], [0, 0, 0, 0]]]
    for index, prompt in enumerate(("red apple", "cat", "dog")):
        expected = stack_for("clip_l").encode_steps(prompt, 1, dialect="a1111", clip_skip=None)[0][0].encoding.context
        assert torch.equal(row.context[:, 77 * index : 77 * (index + 1)], expected)
    assert found.unconditional.regions is None


def text_of(tokens: int, seed: int, mask: torch.Tensor | None = None) -> Conditioning:
    given = conditioning_for(M15, batch=1, tokens=tokens, seed=seed)
    return Conditioning(context=given.context, context_mask=mask)


def test_masks_of_padded_texts_stay_with_them():
    mask = torch.tensor([[True, False, True]])
    left, right = (box_mask(region.box, (1, 2)) for region in (LEFT, RIGHT))
    found = side_by_side(text_of(2, 0), [text_of(3, 1, mask), text_of(1, 2)], [left, right])
    assert found.context_mask.tolist() == [[True, True, True, False, True, True]]


@torch.no_grad()
@pytest.mark.parametrize("everywhere", [True, False])
def test_padded_tokens_of_a_region_are_not_looked_at(everywhere):
    """Neither where the region is nor elsewhere: cells see the tokens of their region that are real."""
    unet, latents, timestep = build(M15), latents_for(M15, batch=1), torch.tensor([500.0])
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[:, 4:] = False
    left = torch.ones(1, 1, 16, 16) if everywhere else box_mask(LEFT.box, (16, 16))
    real, padded = text_of(7, 1), text_of(7, 1, mask)
    short = Conditioning(context=real.context[:, :4])
    found, whole, cut = (
        unet(latents, timestep, side_by_side(text_of(3, 0), [part], [left])) for part in (padded, real, short)
    )
    assert (found - cut).abs().max() <= ROUNDING * max(1.0, float(cut.abs().max()))
    assert (found - whole).abs().max() > 0.01


@torch.no_grad()
def test_regional_prompts_of_unlike_lengths_share_a_forward():
    unet, timesteps = build(M15), torch.tensor([500.0, 300.0])
    left = box_mask(LEFT.box, (16, 16))
    rows = [side_by_side(text_of(3, 0), [text_of(tokens, tokens)], [left]) for tokens in (2, 9)]
    latents = latents_for(M15, batch=2)
    together = unet(latents, timesteps, concatenate(rows))
    for index, row in enumerate(rows):
        alone = unet(latents[index : index + 1], timesteps[index : index + 1], row)
        assert (together[index] - alone[0]).abs().max() <= ROUNDING * max(1.0, float(alone.abs().max()))


def test_what_is_composed():
    text = Conditioning(context=torch.zeros(1, 1, 1))
    for weights, composed in (((1.0,), False), ((0.5,), True), ((1.0, 1.0), True)):
        branches = Branches(conditional=tuple((text, weight) for weight in weights), unconditional=None)
        assert branches.composed == composed
