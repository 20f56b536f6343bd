"""What is said of a file that is not what was looked for, and that a file is looked up once."""

import pytest

from tests.checkpoints.crafted import Shapes, ldm_shapes, sparse_file
from undertow.checkpoints.files.header import read_header
from undertow.checkpoints.identify import families, identification
from undertow.checkpoints.identify.families import FAMILIES, find_family
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.identify.unsupported import refuse_unrecognized
from undertow.checkpoints.keymap.contents import read_contents
from undertow.errors import UnknownCheckpoint, UnsupportedModel
from undertow.unet.config import UNetConfig

ONE = (1,)
FOUND: dict[str, tuple[Shapes, str]] = {
    "a model": (
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)},
        r"a model of its own \(U-Net\), not an ad",
    ),
    "nothing": ({}, "it holds no tensors; give a LoRA"),
    "few names": ({"a": ONE}, r"none of its 1 tensors is called as in an adapter \('a'\); give a LoRA"),
    "many names": (dict.fromkeys("abcd", ONE), r"none of its 4 tensors is called .* \('a', 'b', 'c', \.\.\.\)"),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_file_of_something_else_is_described(name, tmp_path):
    shapes, said = FOUND[name]
    contents = read_contents(read_header(sparse_file(tmp_path / "a.safetensors", shapes)).tensors)
    with pytest.raises(UnknownCheckpoint, match=said):
        refuse_unrecognized(tmp_path, contents, known_as="called as in an adapter", remedy="give a LoRA")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("vision_model.embeddings.patch_embedding.weight", "CLIP vision"),
    ],
)
def test_what_has_a_name_is_called_by_it(name, model, tmp_path):
    contents = read_contents(read_header(sparse_file(tmp_path / "a.safetensors", {name: ONE})).tensors)
    with pytest.raises(UnsupportedModel, match=model):
        refuse_unrecognized(tmp_path, contents, known_as="known", remedy="give another")


def test_a_file_is_looked_up_among_the_published_architectures_once(tmp_path, monkeypatch):
    asked: list[UNetConfig] = []

    def counted(config: UNetConfig):
        asked.append(config)
        return find_family(config)

    monkeypatch.setattr(families, "find_family", counted)
    monkeypatch.setattr(identification, "find_family", counted)
    found = identify(sparse_file(tmp_path / "model.safetensors", ldm_shapes(UNetConfig.sd15())))
    assert (found.title, found.config) == ("Stable Diffusion 1.x", UNetConfig.sd15())
    assert len(asked) == 1


def test_every_published_architecture_is_found_and_no_other():
    for family in FAMILIES:
        assert find_family(family.config()) is family
    assert find_family(UNetConfig.cifar10()) is None
