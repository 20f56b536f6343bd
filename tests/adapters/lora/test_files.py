"""Files with every algorithm: each layer's tensors are found, scaled and read as LyCORIS does. Cases L6 to L8."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.adapters.lora.comparing import T1, targets_of, unet_of
from tests.adapters.lora.files import normal, write
from tests.adapters.lora.test_updates import leaves, reference
from tests.checkpoints.crafted import sparse_file
from tests.golden.minis import pair
from undertow.adapters.lora.lora_file import describe_lora, read_lora
from undertow.adapters.lora.names import flatten
from undertow.adapters.lora.targets import targets_of_config
from undertow.checkpoints.keymap import BlockLayout, unet_renaming
from undertow.errors import AdapterMismatch
from undertow.unet.presets import PRESETS

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
CONVOLUTION = "down_blocks.1.resnets.1.conv1"
WIDE, SQUARE = f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.attn1.to_q"

CASES = {
    "lora": ("lora", {}),
    "lora-without-alpha": ("lora", {"alpha": 2}),
    "lora-tucker": ("lora", {"use_tucker": True}),
    "loha": ("loha", {}),
    "loha-tucker": ("loha", {"use_tucker": True}),
    "lokr": ("lokr", {"factor": 8}),
    "lokr-both": ("lokr", {"factor": 8, "decompose_both": True}),
    "lokr-full": ("lokr", {"factor": 8, "full_matrix": True}),
    "lokr-tucker": ("lokr", {"factor": 8, "use_tucker": True}),
    "dora": ("lora", {"weight_decompose": True}),
    "dora-over-inputs": ("lora", {"weight_decompose": True, "wd_on_out": False}),
    "doha": ("loha", {"weight_decompose": True}),
    "dokr-over-inputs": ("lokr", {"factor": 8, "weight_decompose": True, "wd_on_out": False}),
    "glora": ("glora", {}),
    "ia3": ("ia3", {}),
    "ia3-on-input": ("ia3", {"train_on_input": True}),
    "oft": ("oft", {"lora_dim": 8, "rescaled": True}),
    "oft-constrained": ("oft", {"lora_dim": 8, "constraint": 1e-3}),
    "boft": ("boft", {"lora_dim": 8}),
}

EFFECT = 0.1
TIGHT = 0.01
"""A constraint lets a rotation be small only."""

KINDS = {"doha": "dora", "dokr": "dora", "lora": "lora", "boft": "boft"}


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    torch.manual_seed(7)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("case", CASES)
def test_each_algorithm_is_found_in_a_file(case, tmp_path):
    """In linear layers (square ones too, where shapes do not tell axes apart) and in a 3x3 convolution."""
    algorithm, options = CASES[case]
    unet = pair("M15")[1]
    modules: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    for layer in (WIDE, SQUARE, CONVOLUTION):
        modules[layer] = reference(algorithm, unet.get_submodule(layer), **options)
        if "dora_scale" in leaves(modules[layer]):
            modules[layer].dora_scale.abs_().add_(0.5)
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{stem}.{leaf}": tensor for leaf, tensor in leaves(modules[layer]).items()}
    if case == "lora-without-alpha":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), targets_of("M15"))
    for layer, module in modules.items():
        base = unet.get_submodule(layer)
        update = lora.updates["unet"][layer]
        x = normal(2, base.weight.shape[1], *([] if base.weight.ndim == 2 else [6, 6]), seed=layer)
        expected = module(x) - base(x)
        changed = torch.func.functional_call(base, {"weight": update.weight(base.weight, 1.0)}, (x,))
        size = max(1.0, float(expected.abs().max()))
        assert float((changed - base(x) - expected).abs().max()) <= T1 * size, layer
        assert float(expected.norm() / base(x).norm()) > (TIGHT if "constrained" in case else EFFECT), layer
    name = case.split("-")[0]
    assert set(lora.report.kinds) <= ({"lora", "locon"} if name == "lora" else {KINDS.get(name, name)})


def test_differences_norms_and_biases(tmp_path):
    """L8: whole differences, norms, and a bias beside low-rank matrices."""
    unet, targets = unet_of("M15"), targets_of("M15")
    norm, group = f"{BLOCK}.norm1", "down_blocks.1.resnets.0.norm1"
    tensors: dict[str, Tensor] = {}
    for layer in (CONVOLUTION, WIDE):
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{stem}.diff"] = normal(*targets.layers["unet"][layer].shape, seed=layer)
        tensors[f"{stem}.diff_b"] = normal(targets.layers["unet"][layer].shape[0], seed=f"{layer}b")
    for layer in (norm, group):
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{stem}.w_norm"] = normal(*targets.layers["unet"][layer].shape, seed=layer)
        tensors[f"{stem}.b_norm"] = normal(*targets.layers["unet"][layer].shape, seed=f"{layer}b")
    down, up = normal(4, 32, seed="down"), normal(32, 4, seed="up")
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    stem = f"lora_unet_{first.replace('.', '_')}"
    tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.diff_b": normal(32, seed="b")}
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), targets)
    for layer, update in lora.updates["unet"].items():
        module = unet.get_submodule(layer)
        stem = f"lora_unet_{layer.replace('.', '_')}"
        change = tensors.get(f"{stem}.diff", tensors.get(f"{stem}.w_norm", up @ down))
        bias = tensors.get(f"{stem}.diff_b", tensors.get(f"{stem}.b_norm"))
        assert torch.allclose(update.weight(module.weight, 0.5), module.weight + 0.5 * change, atol=T1)
        assert torch.allclose(update.bias(module.bias, 0.5), module.bias + 0.5 * bias, atol=T1)
        assert update.factors() is None or bias is None
    assert lora.report.kinds == {"full": 2, "norm": 2, "lora": 1}
    assert "it changes biases too" in lora.report.notes


def test_a_pointwise_convolution_may_be_written_as_a_matrix(tmp_path):
    """SD1's projections are 1x1 convolutions and SD2's are linear: both forms are found in files of both."""
    for name, shape in (("M15", ()), ("M21", (1, 1))):
        stem = "lora_unet_mid_block_attentions_0_proj_in"
        tensors = {
            f"{stem}.lora_down.weight": normal(4, 128, *shape, seed="down"),
            f"{stem}.lora_up.weight": normal(128, 4, *shape, seed="up"),
        }
        lora = read_lora(write(tmp_path / f"{name}.safetensors", tensors), targets_of(name))
        base = unet_of(name).get_submodule("mid_block.attentions.0.proj_in").weight
        update = lora.updates["unet"]["mid_block.attentions.0.proj_in"]
        assert update.kind == "lora"
        assert update.weight(base, 1.0).shape == base.shape


def test_a_file_may_mix_dialects_and_algorithms_and_pack_embeddings(tmp_path):
    down, up = normal(4, 128, seed="down").half(), normal(128, 4, seed="up").half()
    tensors = {
        f"unet.{BLOCK}.attn1.to_q.lora_A.weight": down,
        f"unet.{BLOCK}.attn1.to_q.lora_B.weight": up,
        f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_k.lora_down.weight": down,
        f"lora_unet_{BLOCK.replace('.', '_')}_attn1_to_k.lora_up.weight": up,
        f"{BLOCK}.attn1.to_v.diff": normal(128, 128, seed="v"),
        "bundle_emb.my.word.string_to_param.*": normal(2, 64, seed="e"),
        "bundle_emb.other.clip_l": normal(1, 64, seed="l"),
        "bundle_emb.other.clip_g": normal(1, 128, seed="g"),
    }
    path = write(tmp_path / "lora.safetensors", tensors, {"modelspec.architecture": "stable-diffusion-v1/lora"})
    lora = read_lora(path, targets_of("M15"))
    assert set(lora.updates["unet"]) == {f"{BLOCK}.attn1.{which}" for which in ("to_q", "to_k", "to_v")}
    assert lora.report.dialects == {"diffusers (PEFT)": 1, "kohya": 1, "dotted names": 1}
    assert lora.report.embeddings == ("my.word", "other")
    assert torch.equal(lora.embeddings["my.word"], tensors["bundle_emb.my.word.string_to_param.*"])
    assert set(lora.embeddings["other"]) == {"clip_l", "clip_g"}
    assert lora.updates["unet"][f"{BLOCK}.attn1.to_q"].down.dtype == torch.float16
    assert lora.size_bytes == sum(load_file(path)[name].nbytes for name in tensors if "bundle" not in name)
    assert lora.report.base.title == "Stable Diffusion 1"
    assert "header" in lora.report.base.evidence


def test_equal_files_are_equal_adapters(tmp_path):
    tensors = {f"{BLOCK}.attn1.to_v.diff": normal(128, 128, seed="v")}
    first, second = (write(tmp_path / f"{name}.safetensors", tensors) for name in ("a", "b"))
    other = write(tmp_path / "c.safetensors", {name: tensor + 1 for name, tensor in tensors.items()})
    hashes = [read_lora(path, targets_of("M15")).content_hash for path in (first, second, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_old_glora_called_its_halves_by_each_other_s_names(tmp_path):
    shape, rank = unet_of("M15").get_submodule(WIDE).weight.shape, 4
    new = {
        "a1": normal(shape[1], rank, seed="a1"),
        "a2": normal(rank, shape[1], seed="a2"),
        "b1": normal(shape[0], rank, seed="b1"),
        "b2": normal(rank, shape[1], seed="b2"),
    }
    found = []
    for swap in ({}, {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}):
        tensors = {f"{WIDE}.{swap.get(leaf, leaf)}.weight": tensor for leaf, tensor in new.items()}
        lora = read_lora(write(tmp_path / f"{len(swap)}.safetensors", tensors), targets_of("M15"))
        found.append(lora.updates["unet"][WIDE].weight(unet_of("M15").get_submodule(WIDE).weight, 1.0))
    assert torch.equal(*found)


def test_a_folder_with_one_file_is_enough(tmp_path):
    write(tmp_path / "mine.safetensors", {f"{BLOCK}.attn1.to_v.diff": normal(128, 128, seed="v")})
    assert describe_lora(tmp_path).layers == 1
    assert isinstance(read_lora(str(tmp_path), targets_of("M15")).path, Path)


def slider(path: Path, preset: str, wanted: Callable[[str], bool]) -> Path:
    """A file of a published model's layers, as sd-scripts writes it, that says nothing of its base."""
    layers = targets_of_config(PRESETS[preset]()).layers["unet"]
    renaming = unet_renaming(BlockLayout.of_config(PRESETS[preset]()))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, target in layers.items():
        if wanted(name) and len(target.shape) == 2:
            stem = f"lora_unet_{flatten(renaming.to_foreign(name))}"
            shapes |= {
                f"{stem}.lora_down.weight": (4, target.shape[1]),
                f"{stem}.lora_up.weight": (target.shape[0], 4),
                f"{stem}.alpha": (),
            }
    return sparse_file(path, shapes)


def test_a_base_is_found_by_what_fits_when_nothing_else_tells(tmp_path):
    """SDXL's sliders change its 70 self-attentions: 280 layers, 840 tensors, and none that reads text."""
    report = describe_lora(slider(tmp_path / "xl.safetensors", "sdxl", lambda name: ".attn1." in name))
    assert (report.layers, len(report.unmatched)) == (280, 0)
    assert report.base.title == "Stable Diffusion XL"
    assert report.base.evidence == "its 280 layers fit it, and no other family"
    # The self-attentions of SD1 and SD2 are alike.
    both = describe_lora(slider(tmp_path / "both.safetensors", "sd15", lambda name: ".attn1." in name)).base
    assert both.title == "Stable Diffusion 1 or Stable Diffusion 2"
    with pytest.raises(AdapterMismatch, match="it was made for Stable Diffusion XL: its 280 layers fit it"):
        read_lora(tmp_path / "xl.safetensors", targets_of_config(PRESETS["sd15"]()))
