import subprocess
import sys

import pytest
import torch

from tests.encoders.minis import encoder_for, shared_encoder, stack_for
from undertow.encoders.clip import OutputSelection
from undertow.encoders.prompts import parse_prompt, resolve
from undertow.encoders.prompts.tree import Blend, Joined, Tag, Text
from undertow.encoders.text_stack import TextStack
from undertow.errors import ConfigError, InvalidInput

SDXL = ("clip_l", "openclip_g")


@pytest.fixture
def sd1():
    return stack_for("clip_l")


@pytest.fixture
def sdxl():
    return stack_for(*SDXL)


def test_two_runs_are_equal_to_the_bit(sdxl):
    """R159: also from an empty cache and beside other prompts."""
    first = sdxl.encode("a (cute:1.3) cat", dialect="a1111")
    sdxl.forget()
    sdxl.encode("a dog")
    second = sdxl.encode("a (cute:1.3) cat", dialect="a1111")
    assert not second.report.cached
    assert torch.equal(first.context, second.context)
    assert torch.equal(first.pooled, second.pooled)


def test_shapes_and_widths(sdxl):
    encoding = sdxl.encode("")
    assert encoding.context.shape == (1, 77, sdxl.width) == (1, 77, 64 + 128)
    assert encoding.pooled.shape == (1, sdxl.pooled_width) == (1, 64)
    assert encoding.mask is None
    assert stack_for("clip_l").pooled_width is None


def test_the_report_counts(sdxl):
    report = sdxl.encode("cat " * 80).report
    assert [(r.kind, r.tokens, r.chunks) for r in report.encoders] == [("clip_l", 80, 2), ("openclip_g", 80, 2)]


def test_pooled_is_the_first_chunks(sdxl):
    """As in A1111 and ComfyUI."""
    long = sdxl.encode("cat " * 75 + "dog " * 20)
    assert long.context.shape[1] == 154
    assert torch.allclose(long.pooled, sdxl.encode("cat " * 75).pooled, atol=1e-5)


@pytest.mark.parametrize(("text", "runs"), [("a cat", 1), ("a (cat)1.5", 2), ("a (cat)0.5 (dog)0.8", 4)])
def test_a_network_runs_as_often_as_the_weights_need(text, runs):
    """Once for the text, once for the empty prompt, once for each light text; rules are not asked without weights."""
    stack, count = stack_for("clip_l"), []
    hook = stack.encoders[0].register_forward_hook(lambda *_: count.append(1))
    stack.encode(text, dialect="compel")
    hook.remove()
    assert len(count) == runs


def test_truncation_is_reported_and_equals_the_short_prompt(sd1):
    long = sd1.encode("cat " * 75 + "and a Dog", long="truncate")
    assert torch.equal(long.context, sd1.encode("cat " * 75).context)
    assert long.report.truncated == "and a dog"
    assert long.notes == ("too long for clip_l, cut off: 'and a dog'",)
    assert sd1.encode("cat", long="truncate").notes == ()


def test_clip_skip_counts_from_the_end():
    """1 is a family's own layer: SD1's last, SDXL's penultimate, as in A1111."""
    stack, encoder = stack_for("clip_l"), shared_encoder("clip_l")
    own = stack.encode("a cat").context
    assert torch.equal(stack.encode("a cat", clip_skip=1).context, own)
    ids = torch.tensor([[49406, 320, 2368] + [49407] * 74])
    expected = encoder(ids, OutputSelection(skip=2, final_norm=True)).tokens
    assert torch.equal(stack.encode("a cat", clip_skip=2).context, expected)
    assert not torch.equal(expected, own)
    xl = stack_for(*SDXL)
    penultimate = xl.encode("a cat")
    for skip in (1, 2):
        assert torch.equal(xl.encode("a cat", clip_skip=skip).context, penultimate.context)
    deeper = xl.encode("a cat", clip_skip=3)
    assert not torch.equal(deeper.context, penultimate.context)
    assert torch.equal(deeper.pooled, penultimate.pooled)


@pytest.mark.parametrize(("arguments", "named"), [
    ({"clip_skip": 0}, "clip_skip"),
    ({"clip_skip": 9}, "clip_skip"),
    ({"dialect": "a111"}, "a1111"),
    ({"emphasis": "orignal"}, "original"),
    ({"second": "a dog"}, "second"),
])  # fmt: skip
def test_bad_arguments_are_refused(sd1, arguments, named):
    with pytest.raises(InvalidInput, match=named):
        sd1.encode("a cat", **arguments)


def test_families_are_known_by_their_encoders():
    with pytest.raises(ConfigError, match="clip_l"):
        TextStack([shared_encoder("openclip_g"), shared_encoder("clip_l")])
    with pytest.raises(ConfigError, match="selections"):
        TextStack([shared_encoder("clip_l")], selections=[])
    last = TextStack([shared_encoder("openclip_g")], selections=[OutputSelection(skip=1, final_norm=True)])
    assert last.encode("a cat").pooled is None


def test_a_second_prompt_goes_to_the_second_encoder(sdxl):
    both = sdxl.encode("a cat", second="a dog")
    cat, dog = sdxl.encode("a cat"), sdxl.encode("a dog")
    assert torch.equal(both.context, torch.cat([cat.context[..., :64], dog.context[..., 64:]], dim=-1))
    assert torch.equal(both.pooled, dog.pooled)


def test_the_shorter_of_two_prompts_is_filled_with_empty_chunks(sdxl):
    both = sdxl.encode("a cat", second="dog " * 80)
    assert both.context.shape[1] == 154
    assert torch.equal(both.context[:, 77:, :64], sdxl.encode("").context[..., :64])


# Cache


def test_the_same_prompt_is_encoded_once(sd1):
    first = sd1.encode("a cat")
    again = sd1.encode("a cat")
    assert (first.report.cached, again.report.cached) == (False, True)
    assert again.context is first.context
    for other in ({"dialect": "comfy"}, {"clip_skip": 2}, {"long": "truncate"}, {"emphasis": "no_norm"}):
        assert not sd1.encode("a cat", **other).report.cached


def test_changed_weights_are_noticed():
    stack = TextStack([encoder_for("clip_l")])
    first = stack.encode("a cat").context
    with torch.no_grad():
        stack.encoders[0].clip.encoder.layers[1].mlp.fc1.weight.mul_(1.5)
    second = stack.encode("a cat")
    assert not second.report.cached
    assert not torch.equal(second.context, first)
    assert stack.to(dtype=torch.float64).encode("a cat").context.dtype == torch.float64


def test_changed_embeddings_are_noticed(sd1):
    plain = sd1.encode("a cat").context
    sd1.add_embedding("cat", torch.ones(2, 64))
    replaced = sd1.encode("a cat").context
    sd1.remove_embedding("CAT")
    assert not torch.equal(replaced, plain)
    assert torch.equal(sd1.encode("a cat").context, plain)


# Textual inversion


def test_an_embedding_made_of_words_is_those_words(sd1):
    """The vectors of "cute cat" under another name give what the words give: ids do not matter, vectors do."""
    table = shared_encoder("clip_l").clip.embeddings.token_embedding.weight
    sd1.add_embedding("thing", table[[2242, 2368]])
    expected = sd1.encode("a cute cat").context
    for text, dialect in (("a thing", "plain"), ("a THING", "a1111"), ("a embedding:thing", "comfy")):
        assert torch.equal(sd1.encode(text, dialect=dialect).context, expected)


@pytest.mark.parametrize("text", ["a thing", "a aembedding:thing", "a EMBEDDING:thing", "a (thing:1.2)"])
def test_in_comfys_dialect_a_bare_name_is_text(sd1, text):
    """ComfyUI knows an embedding by its prefix alone."""
    plain = sd1.encode(text, dialect="comfy").context
    sd1.add_embedding("thing", torch.ones(1, 64))
    assert torch.equal(sd1.encode(text, dialect="comfy").context, plain)
    assert not torch.equal(sd1.encode("a embedding:thing", dialect="comfy").context, plain)


def test_an_embedding_has_vectors_for_each_encoder(sdxl):
    tables = {e.kind: e.clip.embeddings.token_embedding.weight for e in sdxl.encoders}
    sdxl.add_embedding("thing", {"clip_l": tables["clip_l"][2368], "clip_g": tables["openclip_g"][2368]})
    assert sdxl.embeddings == ("thing",)
    assert torch.equal(sdxl.encode("a thing").context, sdxl.encode("a cat").context)
    assert torch.equal(sdxl.encode("a thing").pooled, sdxl.encode("a cat").pooled)


@pytest.mark.parametrize(("name", "vectors", "message"), [
    ("x", torch.ones(2, 128), "64 numbers"),
    ("x", torch.ones(76, 64), "1 to 75"),
    ("x", torch.ones(0, 64), "1 to 75"),
    ("x", torch.full((1, 64), torch.nan), "finite"),
    (" ", torch.ones(1, 64), "name"),
    ("x", {"clip_g": torch.ones(1, 64)}, "clip_l"),
])  # fmt: skip
def test_impossible_embeddings_are_refused(sd1, name, vectors, message):
    with pytest.raises(InvalidInput, match=message):
        sd1.add_embedding(name, vectors)
    assert sd1.embeddings == ()


def test_one_tensor_for_two_encoders_is_refused(sdxl):
    with pytest.raises(InvalidInput, match="clip_l, openclip_g"):
        sdxl.add_embedding("x", torch.ones(1, 64))


def test_removing_what_is_not_there_is_refused(sd1):
    with pytest.raises(InvalidInput, match="no embeddings"):
        sd1.remove_embedding("x")


# Dialects


def test_each_dialect_weighs_as_its_tool_does(sd1):
    plain = sd1.encode("a cute cat").context
    no_norm = sd1.encode("a (cute:1.5) cat", dialect="a1111", emphasis="no_norm").context
    assert torch.equal(no_norm[:, 2], plain[:, 2] * 1.5)
    assert torch.equal(no_norm[:, [0, 1, 3]], plain[:, [0, 1, 3]])
    original = sd1.encode("a (cute:1.5) cat", dialect="a1111").context
    assert torch.allclose(original, no_norm * (plain.mean() / no_norm.mean()))
    empty = sd1.encode("").context
    lerp = sd1.encode("a (cute:1.5) cat", dialect="comfy").context
    assert torch.allclose(lerp[:, 2], empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2]), atol=1e-6)
    assert torch.equal(sd1.encode("a (cute)1.5 cat", dialect="compel").context, lerp)


def test_compel_hides_a_light_text_from_the_others(sd1):
    """At weight 0 only the hidden text's own place remembers it: the others see what they see without it."""
    encoder = shared_encoder("clip_l")
    ids = torch.tensor([[49406, 320, 2242, 2368] + [49407] * 73])
    visible = torch.ones_like(ids, dtype=torch.bool)
    visible[0, 2] = False
    expected = encoder(ids, OutputSelection(skip=1, final_norm=True), visible=visible).tokens
    found = sd1.encode("a (cute)0 cat", dialect="compel").context
    others = [n for n in range(77) if n != 2]
    # The tool keeps a share of 1 / tan(π/2 (1 - 1e-5)), 1.6e-5, of the prompt with the text.
    assert torch.allclose(found[:, others], expected[:, others], atol=2e-4)
    assert not torch.allclose(sd1.encode("a cute cat").context[:, others], expected[:, others], atol=1e-2)


def test_emphasis_none_reads_no_weights(sd1):
    literal = sd1.encode("a (cute:1.3) cat", dialect="a1111", emphasis="none")
    assert torch.equal(literal.context, sd1.encode("a (cute:1.3) cat").context)


def test_weights_ignored_are_read(sd1):
    ignored = sd1.encode("a (cute:1.3) cat", dialect="a1111", emphasis="ignore")
    assert torch.equal(ignored.context, sd1.encode("a cute cat").context)


def test_a_blend_is_the_weighted_mean(sdxl):
    cat, dog = sdxl.encode("cat"), sdxl.encode("dog")
    blend = sdxl.encode('("cat", "dog").blend(3, 1)', dialect="compel")
    assert torch.allclose(blend.context, 0.75 * cat.context + 0.25 * dog.context, atol=1e-6)
    assert torch.allclose(blend.pooled, 0.75 * cat.pooled + 0.25 * dog.pooled, atol=1e-6)
    raw = sdxl.encode('("cat", "dog").blend(1, -1, no_normalize)', dialect="compel")
    assert torch.allclose(raw.context, cat.context - dog.context, atol=1e-6)
    with pytest.raises(InvalidInput, match="no_normalize"):
        sdxl.encode('("cat", "dog").blend(1, -1)', dialect="compel")


def test_a_blend_of_unequal_lengths_is_filled_up(sd1):
    prompt = parse_prompt("", "compel")
    tree = Blend(parts=(Text("cat " * 80), Text("dog")), weights=(1.0, 1.0))
    context = sd1.encode(type(prompt)(tree=tree)).context
    half = (sd1.encode("cat " * 80).context[:, 77:] + sd1.encode("").context) / 2
    assert torch.allclose(context[:, 77:], half, atol=1e-6)


def test_joined_prompts_stand_side_by_side(sdxl):
    cat, dog, empty = sdxl.encode("cat"), sdxl.encode("dog"), sdxl.encode("")
    joined = sdxl.encode('("cat", "dog").and(1, 0.5)', dialect="compel")
    half = empty.context + 0.5 * (dog.context - empty.context)
    assert torch.allclose(joined.context, torch.cat([cat.context, half], dim=1), atol=1e-6)
    assert torch.equal(joined.pooled, cat.pooled)
    assert isinstance(parse_prompt('("cat", "dog").and()', "compel").tree, Joined)


def test_a_break_is_a_chunk(sd1):
    parts = [sd1.encode(text).context for text in ("a cat", "a dog")]
    assert torch.equal(sd1.encode("a cat BREAK a dog", dialect="a1111").context, torch.cat(parts, dim=1))


def test_tags_are_reported(sd1):
    encoding = sd1.encode("a <lora:film:0.8> cat", dialect="a1111")
    assert encoding.report.tags == (Tag(kind="lora", arguments=("film", "0.8")),)
    (note,) = encoding.notes
    assert note.startswith("taken out of the prompt, and without effect: lora film 0.8; ")
    assert note.endswith("--lora film@0.8, or Adapter('film', scale=0.8)")
    assert torch.equal(encoding.context, sd1.encode("a cat").context)


@pytest.mark.parametrize(
    ("tag", "wanted"), [("film:0.8:0.5", "film@0.8"), ("film", "film@1"), ("film:te=0.5", "film@1")]
)
def test_what_to_do_with_a_tag_is_said_as_it_can_be_typed(sd1, tag, wanted):
    (note,) = sd1.encode(f"a <lora:{tag}> cat", dialect="a1111").notes
    assert f"--lora {wanted}, or" in note


def test_an_unknown_embedding_is_noted(sd1):
    encoding = sd1.encode("a embedding:nobody cat", dialect="comfy")
    assert torch.equal(encoding.context, sd1.encode("a cat").context)
    assert "nobody" in encoding.notes[0]


# Steps


def test_an_edit_changes_the_encoding_at_its_step(sd1):
    steps = sd1.encode_steps("a [cat:dog:0.5]", 4, dialect="a1111")
    contexts = [only.encoding.context for (only,) in steps]
    assert all(torch.equal(context, sd1.encode("a cat").context) for context in contexts[:2])
    assert all(torch.equal(context, sd1.encode("a dog").context) for context in contexts[2:])
    assert contexts[0] is contexts[1]


def test_a_composition_is_several_prompts_with_weights(sd1):
    (step,) = sd1.encode_steps("a cat AND a dog :0.5", 1, dialect="a1111")
    assert [one.weight for one in step] == [1.0, 0.5]
    for one, text in zip(step, ("a cat", "a dog"), strict=True):
        assert torch.equal(one.encoding.context, sd1.encode(text).context)


def test_what_varies_must_be_resolved_first(sd1):
    for text in ("a [cat:dog:2]", "a [cat|dog]", "a cat AND a dog"):
        with pytest.raises(InvalidInput, match="encode_steps"):
            sd1.encode(text, dialect="a1111")
    (parsed, _), _ = resolve(parse_prompt("a (cat:1.5) AND a dog", "a1111"), 0, 1)
    expected = sd1.encode("a (cat:1.5)", dialect="a1111").context
    assert torch.equal(sd1.encode(parsed).context, expected), "a parsed prompt keeps its dialect"


def test_a_swap_is_noted(sd1):
    steps = sd1.encode_steps("a cat.swap(dog, t_start=0.5)", 2, dialect="compel")
    assert torch.equal(steps[0][0].encoding.context, sd1.encode("a cat").context)
    assert torch.equal(steps[1][0].encoding.context, sd1.encode("a dog").context)
    assert all("attention maps" in step[0].encoding.notes[0] for step in steps)


def test_a_second_prompt_may_vary_too(sdxl):
    steps = sdxl.encode_steps("a cat", 2, second="a [cat|dog]", dialect="a1111")
    assert torch.equal(steps[1][0].encoding.context, sdxl.encode("a cat", second="a dog").context)
    with pytest.raises(InvalidInput, match="AND"):
        sdxl.encode_steps("a cat", 2, second=parse_prompt("a cat AND a dog", "a1111"))
    with pytest.raises(InvalidInput, match="steps"):
        sdxl.encode_steps("a cat", 0)


def test_importing_the_room_imports_no_transformers():
    code = (
        "import sys, undertow.encoders; print('transformers' in sys.modules, 'instant_clip_tokenizer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
