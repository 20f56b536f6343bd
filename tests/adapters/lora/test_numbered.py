"""Files of cloneofsimo/lora: numbers for layers, in the order in which PyTorch found them in the diffusers of then."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.adapters.lora.comparing import targets_of, unet_of
from tests.adapters.lora.files import low_rank, write
from tests.encoders.minis import reference, shared_encoder
from tests.golden.minis import M15, build, build_twin
from undertow.adapters.lora.lora_file import describe_lora, read_lora
from undertow.adapters.lora.targets import Targets
from undertow.errors import AdapterMismatch, CorruptFile, UnsupportedModel

DEFAULT = ["CrossAttention", "Attention", "GEGLU"]
EXTENDED = ["ResnetBlock2D", *DEFAULT]


@cache
def twin(*, old: bool) -> nn.Module:
    """diffusers' network. old: with the feed-forward networks between the attentions, as in `BasicTransformerBlock` of
    diffusers 0.2 to 0.14: `self.attn1`, `self.ff`, `self.attn2`."""
    network = build_twin(M15, unet_of("M15"))
    for block in network.modules() if old else ():
        if type(block).__name__ == "BasicTransformerBlock":
            for name in ("attn1", "ff", "attn2"):
                block._modules[name] = block._modules.pop(name)
    return network


def found_by_the_trainer(network: nn.Module, classes: list[str]) -> Iterator[str]:
    """`_find_modules_v2` of lora_diffusion/lora.py: for every module of a class, the layers below it."""
    for place, ancestor in network.named_modules():
        if type(ancestor).__name__ in classes:
            for name, module in ancestor.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    yield f"{place}.{name}"


def numbered(network: nn.Module, component: str, classes: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a file, by `save_safeloras_with_embeds`; the values tell their layers."""
    tensors: dict[str, Tensor] = {}
    for number, name in enumerate(found_by_the_trainer(network, classes)):
        down, up = low_rank(name, tuple(network.get_submodule(name).weight.shape), 2)
        tensors |= {f"{component}:{number}:up": up, f"{component}:{number}:down": down}
    return tensors, {component: json.dumps(classes), f"{component}:0:rank": "2"}


@pytest.mark.parametrize("classes", [DEFAULT, EXTENDED, ["CrossAttention"]], ids=["default", "extended", "attention"])
@pytest.mark.parametrize("old", [True, False])
def test_every_number_is_the_layer_that_the_trainer_meant(classes, old, tmp_path):
    network = twin(old=old)
    named = [*classes, "Attention"]  # what diffusers calls CrossAttention today
    tensors, header = numbered(network, "unet", named)
    header["unet"] = json.dumps(classes)
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors, header), targets_of("M15"))
    names = list(found_by_the_trainer(network, named))
    assert lora.updates.keys() == {"unet"}
    assert sorted(lora.updates["unet"]) == sorted(names)
    assert len(names) > 20
    for name, update in lora.updates["unet"].items():
        down, up = low_rank(name, tuple(network.get_submodule(name).weight.shape), 2)
        assert torch.equal(update.down, down), name
        assert torch.equal(update.up, up), name
        assert update.scale == 1.0, "there is no alpha"
    assert lora.report.dialects == {"cloneofsimo/lora": len(names)}


def test_text_encoders_and_embeddings_in_the_same_file(tmp_path):
    """transformers registers a CLIPAttention's key, value, query and output, in this order."""
    encoder = shared_encoder("clip_l")
    network = reference("clip_l")
    tensors, header = numbered(network, "text_encoder", ["CLIPAttention"])
    tensors |= {"<s1>": torch.full((16,), 2.0), "<s2>": torch.zeros(16)}
    header |= {"<s1>": "<embed>", "<s2>": "<embed>"}
    path = write(tmp_path / "lora.safetensors", tensors, header)
    lora = read_lora(path, Targets.of(build(M15), [encoder]))
    names = [name.removeprefix("text_model.") for name in found_by_the_trainer(network, ["CLIPAttention"])]
    assert {name.removeprefix("text_model.") for name in lora.updates["clip_l"]} == set(names)
    for name, update in lora.updates["clip_l"].items():
        asked = f"text_model.{name.removeprefix('text_model.')}"
        asked = asked if asked in dict(network.named_modules()) else asked.removeprefix("text_model.")
        down, _ = low_rank(asked, tuple(network.get_submodule(asked).weight.shape), 2)
        assert torch.equal(update.down, down), name
    assert {name: float(vector[0]) for name, vector in lora.embeddings.items()} == {"<s1>": 2.0, "<s2>": 0.0}


def without_one(tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    del tensors["unet:3:up"], tensors["unet:3:down"]


def with_two_exchanged(tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    for leaf in ("up", "down"):
        one, other = f"unet:3:{leaf}", f"unet:4:{leaf}"
        tensors[one], tensors[other] = tensors[other], tensors[one]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_one, AdapterMismatch, "numbered layers of unet are not, in their order and shapes, the layers of"),
        (with_two_exchanged, AdapterMismatch, "numbered layers of unet are not, in their order and shapes, the layers"),
        (lambda _, header: header.clear(), UnsupportedModel, "whose header does not say which unet modules"),
        (lambda _, header: header.update(unet='["GEGLU", "Upsample2D"]'), UnsupportedModel, "Upsample2D"),
        (lambda _, header: header.update(unet="{"), CorruptFile, "the header's unet is not JSON"),
    ],
)
def test_nothing_is_guessed(change, error, message, tmp_path: Path):
    tensors, header = numbered(twin(old=True), "unet", DEFAULT)
    change(tensors, header)
    path = write(tmp_path / "lora.safetensors", tensors, header)
    for strict in (True, False):
        with pytest.raises(error, match=message):
            read_lora(path, targets_of("M15"), strict=strict)


def test_another_family_is_refused(tmp_path):
    path = write(tmp_path / "lora.safetensors", *numbered(twin(old=True), "unet", DEFAULT))
    with pytest.raises(AdapterMismatch, match="are not, in their order and shapes, the layers of"):
        read_lora(path, targets_of("MXL"))
    assert describe_lora(path).base is None, "a miniature's layers are those of no published family"
