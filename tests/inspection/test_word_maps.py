"""From prompts to maps of words: pieces, phrases, marks, unlike contexts; what is written, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.services import service_of
from undertow import GenerationRequest, InvalidInput
from undertow.encoders.reading import Reading
from undertow.inspection.attention_maps import TokenMaps
from undertow.inspection.heat_pictures import heat_colors, overlaid
from undertow.inspection.word_maps import WordOptions, require_words, word_maps


@pytest.fixture(scope="module")
def text(service):
    """Its tokenizer knows letters: every word has as many pieces as letters."""
    return service.model.text


def read(text, prompt, dialect="a1111", steps=4) -> tuple[Reading, ...]:
    return text.read_steps(prompt, steps, dialect=dialect)


def said(reading):
    return [(word.text, word.positions) for word in reading.words]


@pytest.mark.parametrize(
    ("prompt", "dialect", "expected"),
    [
        ("red cat", "plain", [("red", (1, 2, 3)), ("cat", (4, 5, 6))]),
        ("(red:1.3) cat", "a1111", [("red", (1, 2, 3)), ("cat", (4, 5, 6))]),
        ("red BREAK cat", "a1111", [("red", (1, 2, 3)), ("cat", (78, 79, 80))]),
        ('("red", "cat").blend(1, 1)', "compel", [("red", (1, 2, 3)), ("cat", (1, 2, 3))]),
        ('("red", "cat").and()', "compel", [("red", (1, 2, 3)), ("cat", (78, 79, 80))]),
        ("", "plain", []),
    ],
)
def test_words_are_found_where_their_tokens_stand(text, prompt, dialect, expected):
    (reading,) = read(text, prompt, dialect)
    assert said(reading) == expected


@pytest.mark.parametrize("prompt", ["red cat", "red, cat " * 30])
def test_a_reading_is_as_long_as_its_context_and_names_every_place(text, prompt):
    encoding = text.encode(prompt)
    kinds = encoding.reading.kinds
    assert len(kinds) == encoding.context.shape[1]
    chunks = [kinds[start : start + 77] for start in range(0, len(kinds), 77)]
    assert all(chunk[0] == "start" and chunk.count("end") == 1 for chunk in chunks)
    assert chunks[0].index("end") == 1 + chunks[0].count("text")
    assert said(encoding.reading) == said(read(text, prompt, "plain")[0])


def test_two_encoders_read_into_one_context():
    text = service_of("sdxl").model.text
    assert len(text.encode("red cat " * 30).reading.kinds) == text.encode("red cat " * 30).context.shape[1]


def test_prompts_that_change_or_are_composed_are_several_readings(text):
    assert [[word for word, _ in said(one)] for one in read(text, "a [cat:dog:2]")] == [["a", "cat"], ["a", "dog"]]
    assert [[word for word, _ in said(one)] for one in read(text, "a cat AND a dog")] == [["a", "cat"], ["a", "dog"]]


def test_an_embedding_is_one_word_under_its_name(service):
    text = service.model.text
    text.add_embedding("style", torch.randn(2, 768))
    try:
        (reading,) = read(text, "style cat")
        assert said(reading)[0] == ("style", (1, 2))
        assert reading.positions_of(text.pieces("style")) == [(1, 2)]
    finally:
        text.remove_embedding("style")


def test_words_are_whole_words_and_phrases(text):
    (reading,) = read(text, "cat catalog cat")
    assert reading.positions_of(text.pieces("cat")) == [(1, 2, 3), (11, 12, 13)]
    assert reading.positions_of(text.pieces("catalog cat")) == [tuple(range(4, 14))]
    assert reading.positions_of(text.pieces("log")) == []


def maps_of(reading, branch="cond", steps=1, seed=0):
    heat = torch.rand(len(reading.kinds), 2, 3, generator=torch.Generator().manual_seed(seed))
    return TokenMaps(heat=heat / heat.sum(0), reading=reading, branch=branch, steps=steps)


def test_pieces_are_pooled_as_asked(text):
    (reading,) = read(text, "red cat red")
    maps = maps_of(reading)
    heat = maps.heat
    red = (heat[1:4].mean(0) + heat[7:10].mean(0)) / 2
    found = word_maps([maps], WordOptions(marks=True), text)
    assert list(found) == ["red", "cat", "<start>", "<end>", "<padding>"]
    assert np.allclose(found["red"], red)
    assert np.allclose(found["<start>"], heat[0])
    assert np.allclose(found["<padding>"], heat[11:].sum(0))
    summed = word_maps([maps], WordOptions(words=("red cat",), pooling="sum"), text)["red cat"]
    assert np.allclose(summed, heat[1:7].sum(0))
    largest = word_maps([maps], WordOptions(words=("cat",), pooling="max"), text)["cat"]
    assert np.allclose(largest, heat[4:7].amax(0))
    among = word_maps([maps], WordOptions(words=("cat",), pooling="sum", among="words"), text)["cat"]
    assert np.allclose(among, heat[4:7].sum(0) / heat[1:10].sum(0))


def test_contexts_count_by_their_steps(text):
    cat, dog = read(text, "a [cat:dog:1]")
    first, second = maps_of(cat, steps=1, seed=1), maps_of(dog, steps=3, seed=3)
    found = word_maps([first, second], WordOptions(), text)
    assert np.allclose(found["a"], first.heat[1] / 4 + second.heat[1] * 3 / 4)
    assert np.allclose(found["cat"], first.heat[2:5].mean(0))


def test_a_word_that_the_prompt_lacks_is_refused_with_near_ones(text):
    with pytest.raises(InvalidInput, match="did you mean 'apple'"):
        require_words(WordOptions(words=("aple",)), read(text, "red apple"), text)
    require_words(WordOptions(words=("apple", "red apple", "<start>")), read(text, "red apple"), text)
    with pytest.raises(InvalidInput, match="prompt is without a word, expected words to draw maps of"):
        require_words(WordOptions(), read(text, " "), text)
    require_words(WordOptions(marks=True), read(text, ""), text)


def test_what_is_visualized_is_the_picture_itself_and_can_be_saved(service, tmp_path):
    settings = {"steps": 2, "seed": 3, "count": 2}
    plain = service.generate("red cat", **settings)
    found = service.visualize_attention("red cat", words=("cat",), marks=True, self_attention=True, **settings)
    assert torch.equal(found.result.latents, plain.latents)
    assert not service.engine.probes
    assert list(found.maps) == ["cat", "<start>", "<end>", "<padding>"]
    assert found.overlay("cat").size < found.overlay().size
    paths = found.save(tmp_path / "maps")
    assert [path.name for path in paths[3:]] == ["attention-2.png", "attention-2.npz", "attention-2.json"]
    arrays = np.load(paths[0].with_suffix(".npz"))
    assert np.array_equal(arrays["word cat"], found.maps["cat"])
    assert arrays["tokens"].shape == (77, *found.maps["cat"].shape)
    assert f"entropy {service.unet.config.self_attentions()[0]}" in arrays.files
    described = json.loads(paths[0].with_suffix(".json").read_text())
    assert described["contexts"][0]["words"][1] == {"text": "cat", "positions": [4, 5, 6]}
    assert described["words"]["cat"]["max"] == pytest.approx(float(found.maps["cat"].max()))
    with pytest.raises(InvalidInput, match="did you mean 'cat'"):
        found.overlay("cats")


def test_maps_are_logged_of_all_that_is_drawn_meanwhile(service):
    plain = service.generate_many([GenerationRequest(prompt=one, steps=3, seed=3) for one in ("red cat", "dog")])
    with service.log_attention_maps(cells=(8,), heads=[0], at_steps=range(2)) as log:
        results = service.generate_many([GenerationRequest(prompt=one, steps=3, seed=3) for one in ("red cat", "dog")])
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(plain, results, strict=True))
    assert [[word for word, _ in said(log.maps(request)[0].reading)] for request in (0, 1)] == [["red", "cat"], ["dog"]]
    assert log.maps(1)[0].steps == 2
    assert not service.engine.probes


def test_the_negative_prompt_has_maps_of_its_own(service):
    found = service.visualize_attention("red cat", negative_prompt="dog", side="unconditional", steps=1, seed=3)
    assert list(found.maps) == ["dog"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"words": ("dog",)}, "words is 'dog'"),
        ({"at_steps": (7,)}, "at_steps is 7"),
        ({"side": "unconditional", "guidance_scale": 1.0, "negative_prompt": "dog"}, "side is 'unconditional'"),
        (
            {"words": ("red",), "side": "unconditional", "guidance_scale": 1.0},
            "side is 'unconditional', expected 'conditional' at guidance_scale 1",
        ),
        ({"at_steps": ()}, "at_steps is empty"),
        ({"side": "unconditional"}, "negative_prompt is without a word"),
        ({"layers": ("down_blok*",)}, "layers is"),
        ({"step": 3}, "step is 3"),
    ],
)
def test_what_is_not_there_is_refused(service, settings, said):
    with pytest.raises(InvalidInput, match=said):
        service.visualize_attention("red cat", **{"steps": 1, "seed": 3, **settings})
    assert not service.engine.probes


def test_heat_is_colored_from_nothing_to_the_hottest():
    colors = heat_colors(np.array([[0.0, 0.5, 1.0, 2.0]]), 1.0)
    assert colors.tolist() == [[[0, 0, 4], [188, 55, 84], [252, 255, 164], [252, 255, 164]]]
    assert heat_colors(np.zeros((1, 1)), 0.0).tolist() == [[[0, 0, 4]]]
    assert overlaid(Image.new("RGB", (32, 16), "white"), np.ones((4, 8), np.float32)).size == (384, 192)
