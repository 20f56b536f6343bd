from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.encoders.minis import config_for, encoder_for, reference, shared_encoder, shared_tokenizer, tensors_for
from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.encoders.clip_config import PUBLISHED, ClipTextConfig, config_from_transformers
from undertow.encoders.clip_network import ClipText
from undertow.encoders.clip_tensors import build_clip
from undertow.encoders.tokenizer import OfficialTokenizer
from undertow.errors import ConfigError, InvalidInput, KeyMismatch

IDS = torch.tensor([[49406, 320, 2368, 49407] + [49407] * 73])
LAST = OutputSelection(skip=1, final_norm=True)


def build(kind: str, tensors: Mapping[str, torch.Tensor], **options: object) -> TextEncoder:
    options = {"config": config_for(kind), "tokenizer": shared_tokenizer(), **options}
    return TextEncoder.from_tensors(kind, tensors, **options)


def test_both_spellings_of_keys_are_read():
    expected = shared_encoder("clip_l")(IDS, LAST).tokens
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors_for("clip_l").items()}
    assert "embeddings.token_embedding.weight" in bare
    assert torch.equal(build("clip_l", bare)(IDS, LAST).tokens, expected)


def test_what_is_not_read_may_be_there():
    """Position ids of merged files are rounded or worse; projections and scales of CLIP-L are for search."""
    given = {
        **tensors_for("clip_l"),
        "text_model.embeddings.position_ids": torch.full((1, 77), torch.nan),
        "logit_scale": torch.tensor(4.6),
    }
    assert "text_projection.weight" in given
    encoder = build("clip_l", given)
    assert encoder.projection is None
    assert torch.equal(encoder(IDS, LAST).tokens, shared_encoder("clip_l")(IDS, LAST).tokens)


def test_loading_is_strict():
    tensors = tensors_for("openclip_g")
    del tensors["text_projection.weight"], tensors["text_model.final_layer_norm.bias"]
    tensors["text_model.encoder.layers.3.mlp.fc1.bias"] = torch.zeros(256)
    with pytest.raises(KeyMismatch) as caught:
        build("openclip_g", tensors, source="model.safetensors")
    assert caught.value.missing == ("final_layer_norm.bias", "text_projection.weight")
    assert caught.value.unexpected == ("text_model.encoder.layers.3.mlp.fc1.bias",)
    assert caught.value.path.name == "model.safetensors"


def test_tensors_of_another_shape_are_named():
    tensors = tensors_for("clip_l")
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    tensors[name] = tensors[name][:7]
    with pytest.raises(KeyMismatch, match=r"fc1\.weight \[7, 64\] instead of \[128, 64\]"):
        build("clip_l", tensors)


def test_an_encoder_of_another_kind_is_refused():
    with pytest.raises(KeyMismatch):
        TextEncoder.from_tensors("clip_l", tensors_for("openclip_h"), tokenizer=shared_tokenizer())


def test_tensors_are_taken_one_at_a_time():
    """A lazy mapping is asked once for each tensor, and not for what is unused."""

    class Lazy(Mapping):
        def __init__(self, tensors):
            self.tensors, self.asked = tensors, []

        def __getitem__(self, name):
            self.asked.append(name)
            return self.tensors[name]

        def __iter__(self):
            return iter(self.tensors)

        def __len__(self):
            return len(self.tensors)

    lazy = Lazy({**tensors_for("clip_l"), "logit_scale": torch.tensor(1.0)})
    build("clip_l", lazy)
    assert "logit_scale" not in lazy.asked
    assert "text_projection.weight" not in lazy.asked
    # The first one is also looked at by the type checks of these tests.
    assert {lazy.asked.count(name) for name in set(lazy.asked) - {next(iter(lazy))}} == {1}


def test_weights_share_memory_with_what_was_given():
    """Peak memory is the file's: no tensor is copied where its type fits."""
    tensors = tensors_for("clip_l")
    encoder = build("clip_l", tensors)
    for name, tensor in encoder.tensors().items():
        assert tensor.data_ptr() == tensors[name].data_ptr(), name


@pytest.mark.parametrize(("kind", "parameters", "tensors", "layers"), [
    ("clip_l", 123_060_480, 196, 12),
    ("openclip_h", 340_387_840, 372, 23),
    ("openclip_g", 694_659_840, 517, 32),
])  # fmt: skip
def test_published_sizes(kind, parameters, tensors, layers):
    """The full-size networks of SD1, SD2 (as transformers keeps it, a layer short) and SDXL, without memory."""
    config = PUBLISHED[kind]
    with torch.device("meta"):
        model = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=config.width,
                intermediate_size=config.intermediate,
                num_hidden_layers=layers,
                num_attention_heads=config.heads,
            )
        )
        given = dict(model.state_dict())
        given["text_projection.weight"] = torch.empty(config.projection, config.width)
    clip, projection = build_clip(kind, config, given, dtype=None, device=None, source="full size")
    weights = list(clip.parameters()) + ([] if projection is None else list(projection.parameters()))
    assert (sum(weight.numel() for weight in weights), len(weights)) == (parameters, tensors)


def test_padding_follows_the_kind():
    assert [shared_encoder(kind).pad for kind in ("clip_l", "openclip_h", "openclip_g")] == [49407, 0, 0]


def test_dtype_is_the_files_or_the_one_asked_for():
    tensors = {name: tensor.half() for name, tensor in tensors_for("clip_l").items()}
    tensors["text_model.final_layer_norm.weight"] = tensors["text_model.final_layer_norm.weight"].float()
    assert {weight.dtype for weight in build("clip_l", tensors).parameters()} == {torch.float16}
    assert {weight.dtype for weight in build("clip_l", tensors, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_an_encoder_can_move():
    """No tensor is left without memory."""
    encoder = encoder_for("clip_l").to("cpu", torch.float64)
    assert (encoder.dtype, encoder.device) == (torch.float64, torch.device("cpu"))


def test_saved_tensors_load_in_transformers_and_here():
    encoder = shared_encoder("openclip_g")
    assert encoder.tensors().keys() == reference("openclip_g").state_dict().keys()
    again = build("openclip_g", encoder.tensors())
    reading = OutputSelection(skip=2, final_norm=False, pooled=True)
    assert torch.equal(again(IDS, reading).pooled, encoder(IDS, reading).pooled)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip_l", "openclip_h", "openclip_g"])
def test_the_layers_give_transformers_bits(kind):
    """Ours are written out, so that transformers need not be imported: every layer, both activations."""
    peer, layers = reference(kind), len(shared_encoder(kind).clip.encoder.layers)
    expected = peer(IDS, output_hidden_states=True).hidden_states
    for run in range(1, layers + 1):
        skip = shared_encoder(kind).config.layers - run + 1
        ours = shared_encoder(kind)(IDS, OutputSelection(skip=skip, final_norm=False)).tokens
        assert torch.equal(ours, expected[run]), run


@torch.no_grad()
@pytest.mark.parametrize("skip", [1, 2])
def test_the_pooled_vector_is_read_at_the_first_end_mark_whatever_follows(skip):
    """As transformers does it, which needs its eos_token_id set right for padding of another id."""
    encoder, reading = shared_encoder("openclip_g"), OutputSelection(skip=skip, final_norm=False, pooled=True)
    for ids in (IDS, torch.tensor([[49406, 320, 2368, 49407, *[0] * 73]])):
        pooled = encoder(ids, reading).pooled
        torch.testing.assert_close(pooled, reference("openclip_g")(ids).text_embeds, rtol=1e-4, atol=1e-5)
    another = torch.tensor([[49406, 320, 2368, 49407, 530, *[49407] * 72]])
    torch.testing.assert_close(encoder(another, reading).pooled, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip", [0, 4, -1])
def test_layers_that_are_not_there_are_refused(skip):
    with pytest.raises(InvalidInput, match="1 to 3 for clip_l"):
        shared_encoder("clip_l")(IDS, OutputSelection(skip=skip, final_norm=True))


def test_sd2_without_its_last_layer_refuses_to_read_it():
    with pytest.raises(InvalidInput, match="2 to 4 for openclip_h"):
        shared_encoder("openclip_h")(IDS, LAST)


def test_pooled_needs_a_projection():
    with pytest.raises(InvalidInput, match="projection"):
        shared_encoder("clip_l")(IDS, OutputSelection(skip=1, final_norm=True, pooled=True))


def test_a_hidden_token_is_seen_by_nobody_else():
    """A changed word that is hidden changes only its own place."""
    other = IDS.clone()
    other[0, 1] = 2242
    visible = torch.ones_like(IDS, dtype=torch.bool)
    visible[0, 1] = False
    encoder = shared_encoder("clip_l")
    ours, theirs = encoder(IDS, LAST, visible=visible).tokens, encoder(other, LAST, visible=visible).tokens
    same = (ours == theirs).all(-1)[0]
    assert same.tolist() == [True, False] + [True] * 75
    assert not torch.equal(encoder(IDS, LAST).tokens, encoder(other, LAST).tokens)


def test_all_visible_is_the_same_as_no_mask():
    encoder = shared_encoder("clip_l")
    masked = encoder(IDS, LAST, visible=torch.ones_like(IDS, dtype=torch.bool)).tokens
    assert torch.allclose(masked, encoder(IDS, LAST).tokens, atol=1e-5)


@pytest.mark.parametrize(("change", "field"), [
    ({"hidden_size": None}, "hidden_size"),
    ({"num_hidden_layers": "three"}, "num_hidden_layers"),
    ({"hidden_act": "relu"}, "hidden_act"),
    ({"num_attention_heads": 5}, "heads"),
    ({"num_hidden_layers": 0}, "layers"),
    ({"max_position_embeddings": 2}, "positions"),
])  # fmt: skip
def test_impossible_configs_are_refused(change, field):
    with pytest.raises(ConfigError) as caught:
        config_from_transformers(config_for("clip_l", **change), "clip_l")
    assert caught.value.field == field


def test_a_config_of_the_whole_clip_is_read_too():
    nested = config_from_transformers({"text_config": config_for("clip_l")}, "clip_l")
    assert nested == shared_encoder("clip_l").config
    assert isinstance(nested, ClipTextConfig)


def test_a_network_of_another_vocabulary_is_refused_before_it_reads_a_text():
    """A small vocabulary without its tokenizer: the official ids would lie outside the embedding."""
    small = replace(shared_encoder("clip_l").config, vocabulary=54)
    with pytest.raises(ConfigError, match="trained with another tokenizer") as refusal:
        TextEncoder("clip_l", small, ClipText(small, 0), None, OfficialTokenizer())
    assert refusal.value.field == "vocabulary"
