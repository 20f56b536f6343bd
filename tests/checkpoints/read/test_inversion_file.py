"""Textual inversions in every form in which people share them; the vectors are those that were written."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import nn

from undertow.checkpoints.files.header import read_header
from undertow.checkpoints.read.inversion_file import read_inversions
from undertow.checkpoints.read.inversion_names import holds_inversions
from undertow.checkpoints.read.inversion_picture import mask_numbers
from undertow.errors import CorruptFile, UnknownCheckpoint

L, H, G = (torch.arange(2 * width).reshape(2, width) / 1000 for width in (768, 1024, 1280))


@pytest.mark.parametrize(
    ("tensors", "made_for", "vectors", "names"),
    [
        ({"emb_params": L}, "Stable Diffusion 1", {"clip_l": L}, ("style",)),
        ({"emb_params": H}, "Stable Diffusion 2", {"openclip_h": H}, ("style",)),
        ({"<cat-toy>": L[0]}, "Stable Diffusion 1", {"clip_l": L[:1]}, ("<cat-toy>", "style")),
        ({"<v1.5>": L.half()}, "Stable Diffusion 1", {"clip_l": L.half().float()}, ("<v1.5>", "style")),
        ({"clip_l": L, "clip_g": G}, "SDXL", {"clip_l": L, "openclip_g": G}, ("style",)),
        ({"text_encoders_0": L, "text_encoders_1": G}, "SDXL", {"clip_l": L, "openclip_g": G}, ("style",)),
        ({"clip_g": G}, "SDXL's refiner", {"openclip_g": G}, ("style",)),
        ({"string_to_param.*": L}, "Stable Diffusion 1", {"clip_l": L}, ("style",)),
        ({"emb_params": L[:, :64]}, "unknown", {"": L[:, :64]}, ("style",)),
    ],
)
def test_safetensors_of_one_embedding(tmp_path, tensors, made_for, vectors, names):
    path = tmp_path / "style.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    (found,) = read_inversions(path)
    assert (found.made_for, found.names) == (made_for, names)
    assert found.vectors.keys() == vectors.keys()
    assert all(torch.equal(found.vectors[kind], vectors[kind]) for kind in vectors)
    assert holds_inversions(read_header(path).tensors)


def test_diffusers_form_is_read_at_the_width_of_any_model(tmp_path):
    """The embedded model's encoder is 192 wide, as no published one is: brackets tell it, or whoever gives the file."""
    path = tmp_path / "small.safetensors"
    for name, guessed in (("<owl>", True), ("owl", False)):
        save_file({name: torch.ones(192)}, path)
        assert holds_inversions(read_header(path).tensors) == guessed
        (found,) = read_inversions(path)
        assert (found.names, found.vectors[""].shape) == ((name, "small"), (1, 192))
    with pytest.raises(UnknownCheckpoint):
        read_inversions(path, asked=False)
    save_file({"weight.owl": torch.ones(192)}, path)
    with pytest.raises(UnknownCheckpoint):
        read_inversions(path)


def test_several_tokens_and_bundles_are_several(tmp_path):
    save_file({"<s0>": L[0].clone(), "<s1>": L[1].clone()}, tmp_path / "two.safetensors")
    assert [(one.names, one.vectors["clip_l"].shape) for one in read_inversions(tmp_path / "two.safetensors")] == [
        (("<s0>",), (1, 768)),
        (("<s1>",), (1, 768)),
    ]
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8)}
    bundled = {"bundle_emb.cat.string_to_param.*": L, "bundle_emb.dog.clip_l": L[:1], "bundle_emb.dog.clip_g": G[:1]}
    save_file(lora | {name: tensor.clone() for name, tensor in bundled.items()}, tmp_path / "lora.safetensors")
    cat, dog = read_inversions(tmp_path / "lora.safetensors")
    assert (cat.names, cat.made_for, dog.names, dog.made_for) == (("cat",), "Stable Diffusion 1", ("dog",), "SDXL")
    assert torch.equal(dog.vectors["openclip_g"], G[:1])
    assert not holds_inversions(read_header(tmp_path / "lora.safetensors").tensors)


def test_the_first_pickles_hold_a_class_of_torch(tmp_path):
    """As textual_inversion's own embedding_manager.py saves: string_to_param is an nn.ParameterDict."""
    content = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": nn.ParameterDict({"*": nn.Parameter(L)}),
        "name": "style",
        "step": 500,
        "sd_checkpoint": None,
    }
    torch.save(content, tmp_path / "style.pt")
    (found,) = read_inversions(tmp_path / "style.pt")
    assert found.names == ("style",)
    assert torch.equal(found.vectors["clip_l"], L)


def test_diffusers_pickles_are_found_in_their_folder(tmp_path):
    torch.save({"<cat-toy>": L[0]}, tmp_path / "learned_embeds.bin")
    (found,) = read_inversions(tmp_path)
    assert found.names == ("<cat-toy>", "learned_embeds")
    assert torch.equal(found.vectors["clip_l"], L[:1])


def content_json(vectors, name="inside"):
    """As A1111's EmbeddingEncoder writes it."""
    return json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": name}).encode()


def test_a_picture_with_a_text(tmp_path):
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(content_json(L)).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "card.png", pnginfo=info)
    (found,) = read_inversions(tmp_path / "card.png")
    assert (found.names, found.made_for) == (("inside", "card"), "Stable Diffusion 1")
    assert torch.equal(found.vectors["clip_l"], L)


def hidden(content: bytes, *, height: int = 64, shown: int = 32) -> Image.Image:
    """As insert_image_data_embed of A1111: nibbles in blocks at both sides of the picture, parted by black columns; the
    high bits of the blocks are a pattern."""
    data = np.frombuffer(zlib.compress(content, 9), np.uint8)
    width = -(-len(data) // (3 * height)) + 1
    padded = np.resize(data, height * width * 3)
    mask = mask_numbers(padded.size) & 0x0F
    low, high = (
        ((part ^ mask) | 0x50).astype(np.uint8).reshape(height, width, 3) for part in (padded & 0x0F, padded >> 4)
    )
    black = np.zeros((height, 1, 3), np.uint8)
    middle = np.full((height, shown, 3), 0x5A, np.uint8)
    return Image.fromarray(np.concatenate([low, black, middle, black, high], axis=1))


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_picture_with_the_vectors_in_its_pixels(tmp_path, ending):
    framed = Image.new("RGB", (600, 100))
    picture = hidden(content_json(L[:, :96]))
    framed.paste(picture, (3, 5))  # a black border does not matter
    framed.save(tmp_path / f"card.{ending}", lossless=True)
    (found,) = read_inversions(tmp_path / f"card.{ending}")
    assert found.names == ("inside", "card")
    assert torch.allclose(found.vectors[""], L[:, :96])


def test_the_fixed_sequence_is_a1111s():
    """The first numbers in the self test of its image_embedding.py."""
    assert mask_numbers(11).tolist() == [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167]


@pytest.mark.parametrize(
    "picture",
    [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red"), hidden(content_json(L[:, :8])).crop((1, 0, 60, 64))],
)
def test_a_picture_without_an_embedding_is_refused(tmp_path, picture):
    picture.save(tmp_path / "plain.png")
    with pytest.raises((UnknownCheckpoint, CorruptFile), match="textual inversion"):
        read_inversions(tmp_path / "plain.png")


@pytest.mark.parametrize(
    "content",
    [
        b"not JSON",
        b"[1]",
        b"{}",
        b'{"string_to_param": {"*": {"TORCHTENSOR": [[1, "a"]]}}}',
        b'{"string_to_param": {"*": {"TORCHTENSOR": 1}}}',
        b"[" * 100_000,
    ],
)
def test_damaged_texts_are_refused(tmp_path, content):
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(content).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "card.png", pnginfo=info)
    with pytest.raises(CorruptFile, match="textual inversion"):
        read_inversions(tmp_path / "card.png")


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.layer.weight": torch.ones(4, 8), "model.layer.bias": torch.ones(4)},
        {"conv_in.weight": torch.ones(4, 3, 3, 3)},
        {"emb_params": torch.ones(2, 768, dtype=torch.int64)},
        {"emb_params": torch.ones(2, 768), "other": torch.ones(2)},
        {"emb_params": torch.ones(())},
    ],
)
def test_other_files_are_none(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    assert not holds_inversions(read_header(tmp_path / "model.safetensors").tensors)
    with pytest.raises(UnknownCheckpoint, match="no textual inversion"):
        read_inversions(tmp_path / "model.safetensors")


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match=r"learned_embeds\.safetensors"):
        read_inversions(tmp_path)
