"""A LoRA from two models: held against PyTorch's singular values, and drawn with."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.services import copy_pipeline, fresh_service, pipeline_folder, service_of
from undertow.adapters.lora.beside import differences_beside, without_text
from undertow.adapters.lora.extraction import as_lora, extract_lora, nearest, networks_of
from undertow.adapters.lora.lora_file import read_lora
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.write import write_lora
from undertow.cli import main
from undertow.errors import InvalidInput


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (6, 8, 3, 3), (40, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 64])
def test_updates_are_the_best_of_their_rank(shape, rank):
    difference = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    update = nearest(difference, rank)
    u, s, v = torch.linalg.svd(difference.flatten(1), full_matrices=False)
    held = min(rank, len(s))
    assert update.down.shape == (held, shape[1], *shape[2:])
    assert update.up.shape == (shape[0], held, *[1] * (len(shape) - 2))
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert torch.allclose(update.matrix().double(), best, atol=1e-5)
    ups, downs = update.up.flatten(1).norm(dim=0), update.down.flatten(1).norm(dim=1)
    assert torch.allclose(ups, downs, rtol=1e-3), "equally large, so that float16 holds both"


def test_a_change_of_low_rank_is_found_whole_and_what_no_lora_holds_is_named():
    base, tuned = _networks(), _networks()
    with torch.no_grad():
        tuned["unet"][0].weight += torch.outer(torch.arange(4.0), torch.arange(3.0))
        tuned["unet"][1].bias += 1
        tuned["unet"][2].weight += torch.randn(2, 4, 3, 3)
    found = extract_lora(base, tuned, 1)
    assert set(found.updates["unet"]) == {"0", "2"}
    assert found.left_out == ("unet.1.bias",)
    exact = found.updates["unet"]["0"].matrix()
    assert torch.allclose(exact, torch.outer(torch.arange(4.0), torch.arange(3.0)), atol=1e-6)
    difference = (tuned["unet"][2].weight - base["unet"][2].weight).detach().flatten(1)
    missed = difference.square().sum() - torch.linalg.matrix_norm(difference, 2).square()
    changed = difference.square().sum() + exact.square().sum()
    assert found.kept == pytest.approx(1 - float(missed / changed), rel=1e-5)


def test_no_layer_is_given_a_rank_that_it_cannot_have():
    base, tuned = _networks(), _networks()
    with torch.no_grad():
        for layer in (tuned["unet"][0], tuned["unet"][2]):
            layer.weight += torch.randn_like(layer.weight)
    found = extract_lora(base, tuned, 10**30)
    assert found.ranks == (3, 2)
    assert found.kept == pytest.approx(1)


def test_what_cannot_be_compared_is_refused():
    base = _networks()
    with pytest.raises(InvalidInput, match="equal to base in every layer"):
        extract_lora(base, _networks(), 4)
    with pytest.raises(InvalidInput, match="rank is 0"):
        extract_lora(base, base, 0)
    with pytest.raises(InvalidInput, match=r"0\.weight \[5, 3\] instead of \[4, 3\]"):
        extract_lora(base, {"unet": nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 4), nn.Conv2d(4, 2, 3))}, 4)
    with pytest.raises(InvalidInput, match="a model with unet, text_encoder"):
        extract_lora(base, {**base, "text_encoder": nn.Linear(1, 1)}, 4)


@pytest.mark.parametrize(("family", "form"), [("sd1", "kohya"), ("sdxl", "peft")])
def test_the_file_makes_the_tuned_model_of_the_base_in_undertow_and_diffusers(family, form, tmp_path):
    base, tuned = fresh_service(family), fresh_service(family)
    with torch.no_grad():
        for network in networks_of(tuned.model).values():
            for layer in network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
                    change = torch.randn(outputs, 2) @ torch.randn(2, inputs) * 0.1 * layer.weight.std()
                    layer.weight += change.view_as(layer.weight)
    found = extract_lora(networks_of(base.model), networks_of(tuned.model), 2)
    assert found.kept == pytest.approx(1, abs=1e-6)
    path = tmp_path / "tuned.safetensors"
    write_lora(as_lora(found, base.model, tuned.model, "tuned"), path, format=form, dtype=torch.float32)

    ask = {"prompt": "red apple", "seed": 3, "steps": 1}
    apart = base.generate(**ask).latents - tuned.generate(**ask).latents
    same = base.generate(**ask, adapters=[str(path)]).latents - tuned.generate(**ask).latents
    assert same.abs().max() < 1e-3 * apart.abs().max()
    if family == "sd1":
        assert _loaded_by_diffusers(path) == {"unet", "text_encoder"}


# diffusers looks for kohya's alphas of the text encoder under names of older transformers; those of real encoders are
# alike, and theirs needs no pattern.
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_layers_of_unlike_ranks_are_read_as_they_were_written(form, tmp_path):
    base, tuned = fresh_service("sd1"), fresh_service("sd1")
    with torch.no_grad():
        for network in networks_of(tuned.model).values():
            for layer in network.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.weight += torch.randn_like(layer.weight) * 0.01
    found = extract_lora(networks_of(base.model), networks_of(tuned.model), 1000)
    assert len(set(found.ranks)) > 1
    path = tmp_path / "tuned.safetensors"
    write_lora(as_lora(found, base.model, tuned.model, "tuned"), path, format=form, dtype=torch.float32)
    read = read_lora(path, Targets.of(base.unet, base.model.text.encoders))
    for layers in read.updates.values():
        assert [update.scale for update in layers.values()] == pytest.approx([1.0] * len(layers))
    theirs = _merged_by_diffusers(path)
    for name, weight in tuned.unet.state_dict().items():
        assert torch.allclose(theirs[name], weight, atol=1e-5), name


def test_the_command_writes_a_lora_and_says_what_it_holds(tmp_path, capsys):
    folder = copy_pipeline("sd1", tmp_path / "tuned")
    service = fresh_service("sd1")
    place = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(place)
    changed = [name for name in tensors if name.endswith(("attn2.to_k.weight", "conv_in.weight"))]
    for name in (*changed, "conv_in.bias"):
        tensors[name] = tensors[name] + torch.randn(tensors[name].shape)
    save_file(tensors, place, {"format": "pt"})
    base, out = str(pipeline_folder("sd1")), tmp_path / "made.safetensors"
    assert main(["extract", base, str(folder), str(out), "--rank", "99999999999999999999"]) == 0
    printed = capsys.readouterr()
    said = " ".join(printed.out.split())
    narrow = f"note: --rank 99999999999999999999 is more than {len(changed)} layers can have"
    assert f"{narrow}, whose change is held exactly" in printed.err
    assert f"{len(changed)} layers of ranks " in said
    assert "holds 100.0% of their change" in said
    assert "note: 1 tensor changed and fits into no LoRA, such as unet.conv_in.bias\n" in printed.err
    assert service.generate("a", steps=1, adapters=[str(out)]).images

    assert main(["extract", base, str(folder), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["extract", base, base, str(tmp_path / "none.safetensors")]) == 2
    assert "equal to base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"unet": ("conv_in.bias", "conv_norm_out.weight")},
         "2 tensors changed and fit into no LoRA, such as unet.conv_in.bias"),
        ({"vae": ("encoder.conv_in.weight",)}, "the VAE differs too, and a LoRA does not hold it"),
        ({"unet": ("conv_in.bias",), "vae": ("encoder.conv_in.weight",)},
         "1 tensor changed and fits into no LoRA, such as unet.conv_in.bias; the VAE differs too"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_model_in_which_nothing_changed_that_a_lora_holds_is_refused_with_what_did(changed, said, tmp_path, capsys):
    folder = copy_pipeline("sd1", tmp_path / "tuned")
    for part, names in changed.items():
        _change(folder / part / "diffusion_pytorch_model.safetensors", names)
    out = tmp_path / "made.safetensors"
    assert main(["extract", str(pipeline_folder("sd1")), str(folder), str(out)]) == 2
    error = capsys.readouterr().err
    assert "tuned is equal to base in all that a LoRA holds, expected a model whose linear layers or" in error
    assert said in error
    assert not out.exists()


def test_what_differs_besides_the_weights_is_noted(tmp_path, capsys):
    folder = copy_pipeline("sd1", tmp_path / "tuned")
    _change(folder / "unet" / "diffusion_pytorch_model.safetensors", ["conv_in.weight"])
    _change(folder / "vae" / "diffusion_pytorch_model.safetensors", ["encoder.conv_in.weight"])
    place = folder / "scheduler" / "scheduler_config.json"
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    place.write_text(json.dumps(json.loads(place.read_text()) | scheduler))
    out = tmp_path / "made.safetensors"
    assert main(["extract", str(pipeline_folder("sd1")), str(folder), str(out)]) == 0
    noted = capsys.readouterr().err
    assert "note: the VAE differs too, and a LoRA does not hold it\n" in noted
    assert "base predicts epsilon and tuned v, which a LoRA does not hold: draw with --prediction v\n" in noted
    assert "trained on other levels of noise (up to a sigma of 14.61 and of 4096), which a LoRA does not hold" in noted
    with safe_open(out, "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v", "what the LoRA makes of its base"


def test_equal_models_differ_in_nothing():
    model = service_of("sd1").model
    assert not list(differences_beside(model, model))
    assert without_text(model, model) == ""


def test_of_models_without_text_encoders_the_u_nets_alone_are_compared(tmp_path, capsys):
    base = pipeline_folder("sd1")
    folder = shutil.copytree(base / "unet", tmp_path / "tuned")
    _change(folder / "diffusion_pytorch_model.safetensors", ["conv_in.weight"])
    for one, lack in ((base, "tuned has no text encoders"), (base / "unet", "base and tuned have no text encoders")):
        out = tmp_path / f"{one.name}.safetensors"
        assert main(["extract", str(one), str(folder), str(out)]) == 0
        assert load_file(out).keys() == {f"lora_unet_conv_in.{leaf}" for leaf in
                                         ("lora_down.weight", "lora_up.weight", "alpha")}  # fmt: skip
        assert f"note: {lack}: the U-Nets alone are compared" in capsys.readouterr().err
    assert main(["extract", "digits-ddpm", "digits-ddpm", str(tmp_path / "none.safetensors")]) == 2
    assert "it reads no words" in capsys.readouterr().err


def _change(place, names):
    """Changes some tensors of a file."""
    tensors = load_file(place)
    for name in names:
        tensors[name] = tensors[name] + torch.randn(tensors[name].shape)
    save_file(tensors, place, {"format": "pt"})


def _networks():
    torch.manual_seed(0)
    return {"unet": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Conv2d(4, 2, 3))}


def _loaded_by_diffusers(path):
    """The components that an adapter of a file acts on."""
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))
    pipeline.load_lora_weights(path)
    return set(pipeline.get_list_adapters())


def _merged_by_diffusers(path):
    """The weights of the U-Net with those of a file merged into them."""
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    return {name.replace(".base_layer", ""): weight for name, weight in pipeline.unet.state_dict().items()}
