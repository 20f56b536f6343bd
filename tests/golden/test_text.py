"""Case T1: text networks against transformers, with the same random weights."""

import pytest
import torch

from tests.encoders.minis import LAYERS, encoder_for, reference, shared_encoder, stack_for, tensors_for
from tests.golden.conftest import EFFECT, T0, change, largest_difference
from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.encoders.emphasis import EMPHASIS

KINDS = ["clip_l", "openclip_h", "openclip_g"]
PROMPT = "a cute cat in (parentheses), résumé 😀 [draft]"
LONG = ", ".join(f"a {color} cat number {n}" for n in range(10) for color in ("red", "blue", "green"))

HALF = {torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Relative L2 error of three layers in half precision: some ten roundings of 2^-11 and 2^-8."""


def ids_for(*texts: str, pad: int) -> torch.Tensor:
    encode = shared_encoder("clip_l").tokenizer.encode
    rows = [[49406, *encode(text)[:75], 49407] for text in texts]
    return torch.tensor([row + [pad] * (77 - len(row)) for row in rows])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def pad(kind):
    """CLIP-L pads with its end mark, OpenCLIP with 0."""
    return 49407 if kind == "clip_l" else 0


@pytest.mark.parametrize("skip", [1, 2, LAYERS])
@pytest.mark.parametrize("final_norm", [True, False])
def test_hidden_states_of_every_layer(kind, pad, skip, final_norm):
    twin = reference(kind).text_model
    ids = ids_for(PROMPT, "", LONG, pad=pad)
    states = twin(ids, output_hidden_states=True).hidden_states
    expected = twin.final_layer_norm(states[-skip]) if final_norm else states[-skip]
    # SD2's encoder counts a last layer that its files leave out.
    missing = 1 if kind == "openclip_h" else 0
    ours = shared_encoder(kind)(ids, OutputSelection(skip=skip + missing, final_norm=final_norm)).tokens
    assert largest_difference(ours, expected) <= T0


def test_the_last_layer_is_what_transformers_returns(kind, pad):
    ids = ids_for(PROMPT, LONG, pad=pad)
    missing = 1 if kind == "openclip_h" else 0
    ours = shared_encoder(kind)(ids, OutputSelection(skip=1 + missing, final_norm=True)).tokens
    assert largest_difference(ours, reference(kind).text_model(ids).last_hidden_state) <= T0


@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_pooled_is_projected_from_the_first_end_mark(eos_token_id):
    """R157: with padding of end marks and with a second end mark, transformers and we take the first."""
    twin = reference("openclip_g", eos_token_id=eos_token_id)
    twice = ids_for("a cat <|endoftext|> and what nobody reads", pad=0)
    assert (twice == 49407).sum() == 2
    for ids in (ids_for(PROMPT, "", LONG, pad=0), ids_for(PROMPT, "", pad=49407), twice):
        found = shared_encoder("openclip_g")(ids, OutputSelection(skip=2, final_norm=False, pooled=True))
        assert largest_difference(found.pooled, twin(ids).text_embeds) <= T0
    plain = shared_encoder("openclip_g")(
        ids_for("a cat ", pad=0), OutputSelection(skip=2, final_norm=False, pooled=True)
    )
    assert largest_difference(found.pooled, plain.pooled) <= T0


def test_sd2_from_a_whole_file_and_from_one_without_the_last_layer():
    """Penultimate layer and final LayerNorm of the whole network = last layer of transformers' shortened one."""
    short = encoder_for("openclip_h")
    extra = {
        name.replace("layers.2.", "layers.3."): torch.full_like(tensor, torch.nan)
        for name, tensor in tensors_for("openclip_h").items()
        if ".layers.2." in name
    }
    whole = TextEncoder.from_tensors(
        "openclip_h",
        {**tensors_for("openclip_h"), **extra},
        config=short.config,
        tokenizer=short.tokenizer,
    )
    ids = ids_for(PROMPT, pad=0)
    expected = reference("openclip_h").text_model(ids).last_hidden_state
    for encoder in (short, whole):
        assert largest_difference(encoder(ids, OutputSelection(skip=2, final_norm=True)).tokens, expected) <= T0


def test_a_damaged_layer_that_nobody_reads_does_no_harm():
    """R156: source document 004's CLIP layer 11; where it is read, its NaN comes through."""
    tensors = tensors_for("clip_l")
    tensors["text_model.encoder.layers.2.self_attn.q_proj.weight"].fill_(torch.nan)
    encoder = TextEncoder.from_tensors(
        "clip_l", tensors, config=shared_encoder("clip_l").config, tokenizer=shared_encoder("clip_l").tokenizer
    )
    ids = ids_for(PROMPT, pad=49407)
    whole = shared_encoder("clip_l")(ids, OutputSelection(skip=2, final_norm=False)).tokens
    assert torch.equal(encoder(ids, OutputSelection(skip=2, final_norm=False)).tokens, whole)
    assert encoder(ids, OutputSelection(skip=1, final_norm=True)).tokens.isnan().any()


@pytest.mark.parametrize(("kinds", "layer", "final_norm"), [
    (("clip_l",), -1, True),
    (("openclip_h",), -1, True),
    (("clip_l", "openclip_g"), -2, False),
    (("openclip_g",), -2, False),
])  # fmt: skip
def test_families_read_what_their_networks_were_trained_on(kinds, layer, final_norm):
    """R40-R42, R155: SD1 last + norm, SD2 penultimate of the whole + norm, SDXL penultimate of both, not normed."""
    expected, pooled = [], None
    for kind in kinds:
        ids = ids_for(PROMPT, pad=49407 if kind == "clip_l" else 0)
        found = reference(kind)(ids, output_hidden_states=True)
        state = found.hidden_states[layer]
        expected.append(reference(kind).text_model.final_layer_norm(state) if final_norm else state)
        pooled = found.text_embeds if kind == "openclip_g" else None
    encoding = stack_for(*kinds).encode(PROMPT)
    assert largest_difference(encoding.context, torch.cat(expected, dim=-1)) <= T0
    assert (encoding.pooled is None) == (pooled is None)
    if pooled is not None:
        assert largest_difference(encoding.pooled, pooled) <= T0


def test_a_long_prompt_is_chunks_side_by_side():
    """Each chunk has its own marks and positions, and is what transformers makes of it alone."""
    encode = shared_encoder("clip_l").tokenizer.encode
    tokens = encode(LONG)
    assert len(tokens) > 150
    encoding = stack_for("clip_l").encode(LONG)
    expected = []
    for start in range(0, len(tokens), 75):
        row = [49406, *tokens[start : start + 75], 49407]
        ids = torch.tensor([row + [49407] * (77 - len(row))])
        expected.append(reference("clip_l").text_model(ids).last_hidden_state)
    assert largest_difference(encoding.context, torch.cat(expected, dim=1)) <= T0
    assert encoding.report.truncated == ""


@pytest.mark.parametrize("emphasis", EMPHASIS)
@pytest.mark.parametrize(("dialect", "weighted"), [
    ("a1111", "a (cute:1.0) cat ([sat]:1.1) BREAK"),
    ("comfy", "a (cute:1.0) cat (sat:1)"),
    ("compel", "a (cute)1.0 cat (sat)1.0"),
])  # fmt: skip
def test_weights_of_one_change_no_bit(dialect, weighted, emphasis):
    stack = stack_for("clip_l", "openclip_g", cache_size=0)
    plain = stack.encode("a cute cat sat")
    ours = stack.encode(weighted, dialect=dialect, emphasis=emphasis)
    assert torch.equal(ours.context, plain.context)
    assert torch.equal(ours.pooled, plain.pooled)


def test_a_prompt_matters():
    """Guards the comparisons above: were the networks deaf, they would agree on anything."""
    stack = stack_for("clip_l", "openclip_g")
    cat, dog = stack.encode("a cat"), stack.encode("a dog")
    assert change(cat.context, dog.context) > EFFECT
    assert change(cat.pooled, dog.pooled) > EFFECT


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_stays_near(kind, dtype):
    full = stack_for(kind).encode(PROMPT).context
    encoding = type(stack_for(kind))([encoder_for(kind, dtype=dtype)]).encode(PROMPT)
    assert encoding.context.dtype == dtype
    assert encoding.context.isfinite().all()
    assert change(encoding.context.float(), full) <= HALF[dtype]
