"""What emoji's ControlNet and image prompt learn from, and the image encoder: as they say, and read by others."""

import pytest
import torch
from PIL import Image

from recipes.emoji.adapter_card import ship_control, ship_image_prompt
from recipes.emoji.control import (
    draw_with_edges,
    draw_with_references,
    edges_of,
    write_paired,
)
from recipes.emoji.names import COLORS, EMOJI
from recipes.emoji.recognize import background, recognize
from recipes.emoji.render import Glyphs
from recipes.emoji.scenes import Scene, is_trained_color
from recipes.emoji.vision import CONFIG, HELD_OUT, new_classifier, varied, write_vision
from tests.recipes.emoji.tiny import drawn_glyphs, needs_font
from undertow.adapters.image_prompt.encoder import load_image_encoder
from undertow.hints.compare import edge_f1
from undertow.training.captioned import load_captioned
from undertow.training.paired_images import load_paired_images
from undertow.training.randomness import generator_for

pytestmark = pytest.mark.slow

HALF = 2e-3
"""Float16 weights, in shares of the largest feature."""


@pytest.fixture(scope="module", params=["drawn", pytest.param("font", marks=needs_font)])
def glyphs(request):
    return drawn_glyphs() if request.param == "drawn" else Glyphs()


def as_image(picture) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def test_edges_are_those_of_the_picture_and_the_folder_is_one_to_train_from(glyphs, tmp_path):
    data = draw_with_edges(6, glyphs)
    for picture, edges in zip(data.pictures, data.paired, strict=True):
        assert edges.equal(edges_of(picture))
        assert edge_f1(as_image(edges), as_image(edges_of(picture))) == 1
        assert edges.any()
    write_paired(data, tmp_path, "edges")
    read = load_captioned(tmp_path / "pictures", size=64)
    assert read.pixels.equal(data.pictures)
    assert read.captions == data.captions
    assert load_paired_images(tmp_path / "edges", tmp_path / "pictures", size=64).equal(data.paired)
    assert draw_with_edges(6, glyphs).pictures.equal(data.pictures)
    assert not draw_with_edges(6, glyphs, seed=1).pictures.equal(data.pictures)


def test_a_reference_shows_the_same_emoji(glyphs):
    data = draw_with_references(8, glyphs)
    unknown = [Scene(names=(EMOJI[0],), color="white")] * 8
    shown, references = (recognize(pictures, unknown, glyphs).found for pictures in (data.pictures, data.paired))
    assert shown == references
    colors = [
        next(color for color in COLORS if f"{color} background" in caption)
        for caption in data.captions
        if "background" in caption
    ]
    assert len(set(colors)) > 1
    assert any(caption.startswith("on ") for caption in data.captions)


def test_beside_references_the_base_draws_what_it_was_trained_with(glyphs):
    data = draw_with_references(100, glyphs, seed=1)
    named = [caption for caption in data.captions if not caption.startswith("on ")]
    assert len(named) / len(data.captions) == pytest.approx(0.25, abs=0.13)  # standard deviation 0.043
    few = data.pictures[:24]
    found = recognize(few, [Scene(names=(EMOJI[0],), color="white")] * len(few), glyphs).found
    for (name,), color, caption in zip(found, background(few), data.captions, strict=False):
        assert is_trained_color(name, color)
        assert caption == f"on {color} background" or name in caption
    # Whole cells, next to the middle: nothing stands in the outermost four pixels on two sides at least.
    for picture in few:
        plain = picture == picture[:, :1, :1]
        free = [bool(edge.all()) for edge in (plain[:, :4], plain[:, -4:], plain[:, :, :4], plain[:, :, -4:])]
        assert free.count(True) >= 2


def test_varied_pictures_are_a_function_of_the_generator(glyphs):
    (one, names), (again, _) = (varied(generator_for(0, "test"), 16, glyphs) for _ in range(2))
    assert one.equal(again)
    assert one.shape == (16, 3, 64, 64)
    assert len(names.unique()) > 8
    assert len(one.flatten(1).float().mean(1).round().unique()) > 8


def test_the_encoder_learns_and_is_read_back_by_us_and_by_transformers(glyphs, tmp_path):
    import transformers

    classifier = new_classifier()
    assert sum(parameter.numel() for parameter in classifier.encoder.parameters()) < 1_000_000
    pictures, names = varied(generator_for(0, "test"), 4, glyphs)
    torch.nn.functional.cross_entropy(classifier(pictures), names).backward()
    assert all(parameter.grad is not None for parameter in classifier.encoder.parameters() if parameter.requires_grad)
    folder = write_vision(classifier.encoder, tmp_path / "image_encoder")
    read = load_image_encoder(folder, dtype=torch.float32)
    assert read.config == CONFIG
    images = [as_image(picture) for picture in pictures]
    with torch.no_grad():
        ours, theirs = classifier.encoder.encode(images).pooled, read.encode(images).pooled
        peer = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
        peers = peer(pixel_values=read.preprocessing.pixels(images)).image_embeds
        head = classifier.head(ours)
        seen = classifier(pictures)
    assert float((ours - theirs).abs().max()) <= HALF * float(ours.abs().max())
    torch.testing.assert_close(theirs, peers, rtol=1e-4, atol=1e-5)
    # What it is trained on is prepared as what it will see.
    torch.testing.assert_close(head, seen, rtol=1e-4, atol=1e-4)
    assert len(EMOJI) <= HELD_OUT


def test_what_ships_lies_where_it_is_found_with_a_card_and_the_fonts_license(tmp_path):
    write_vision(new_classifier().encoder, tmp_path / "encoder")
    (tmp_path / "prompt.safetensors").write_bytes(b"weights")
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "config.json").write_text("{}")
    edges = ship_control(tmp_path / "control", tmp_path / "out" / "emoji-edges")
    references = ship_image_prompt(
        tmp_path / "prompt.safetensors", tmp_path / "encoder", tmp_path / "out" / "emoji-references"
    )
    assert sorted(path.name for path in edges.iterdir()) == ["OFL.txt", "README.md", "config.json"]
    assert (references / "emoji-references.safetensors").read_bytes() == b"weights"
    # "beside the file", where diffusers and undertow look for an encoder.
    assert load_image_encoder(references / "image_encoder").config == CONFIG
    card = (references / "README.md").read_text()
    assert "1.7 MB in float16" in card
    assert "SIL Open Font License" in card
