"""Models are quantized while they are read or written, to the same bits, whichever way their names go."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import undertow
from tests.services import pipeline_folder
from undertow.checkpoints.files.weights import write_tensors
from undertow.checkpoints.identify.outline import outline
from undertow.checkpoints.report import report_on
from undertow.checkpoints.write.convert import convert
from undertow.engine.planning import quantized_weights
from undertow.errors import CorruptFile, DamagedWeights, InvalidInput
from undertow.memory.forecast import component_bytes
from undertow.memory.subjects import named_model
from undertow.memory.work import Work
from undertow.nn.quantized import quantized_layers
from undertow.quantization import METADATA, Quantization, as_quantization

RULES = Quantization(rules=(("*", "int8-weights"), ("unet.time_embedding.*", "none"), ("unet.mid_block.*", "none")))


def weights_of(service):
    model = service.model
    networks = {"unet": model.unet, "vae": model.vae} | {one.kind: one.clip for one in model.text.encoders}
    return {f"{key}.{name}": one for key, net in networks.items() for name, one in net.state_dict().items()}


def equal(one, other):
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tiny SDXL pipeline, quantized, as a folder and as one file."""
    place = tmp_path_factory.mktemp("quantized")
    folder, file = place / "model", place / "model.safetensors"
    convert(pipeline_folder("sdxl"), folder, "diffusers", quantization=RULES)
    convert(pipeline_folder("sdxl"), file, "ldm", quantization=RULES)
    return folder, file


@pytest.fixture(scope="module")
def loaded():
    return undertow.load(pipeline_folder("sdxl"), dtype=torch.float32, quantize=RULES)


def test_rules_choose_the_layers(loaded):
    layers = quantized_layers(loaded.unet)
    assert layers
    assert not any(name.startswith(("time_embedding", "mid_block")) for name in layers)
    assert quantized_layers(loaded.vae)
    assert all(quantized_layers(encoder.clip) for encoder in loaded.model.text.encoders)
    assert "linear layers of" in loaded.model.report.notes[-1]


@pytest.mark.parametrize("which", [0, 1], ids=["folder", "file"])
def test_a_quantized_model_loads_to_the_same_bits(written, loaded, which):
    text = pipeline_folder("sdxl") if which else None  # whose letters no file names
    again = undertow.load(written[which], dtype=torch.float32, text=text)
    assert not equal(again, loaded)
    assert torch.equal(again.generate("a", steps=2).latents, loaded.generate("a", steps=2).latents)


def test_none_gives_back_the_numbers_that_codes_stand_for(written, loaded):
    plain = undertow.load(written[0], dtype=torch.float32, quantize="none")
    assert not quantized_layers(plain.unet)
    for name in quantized_layers(loaded.unet):
        layer = loaded.unet.get_submodule(name)
        assert torch.equal(plain.unet.get_submodule(name).weight, layer.dequantized())
    a, b = plain.generate("a", steps=2).latents, loaded.generate("a", steps=2).latents
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_files_hold_plain_tensors_as_comfyui_does(written):
    """Names and shapes that ComfyUI reads: codes, a scale for each row, and what they are."""
    with safe_open(written[1], "pt") as file:
        rules = Quantization.from_json(file.metadata()[METADATA])
        names = [name for name in file.keys() if name.endswith(".comfy_quant")]  # noqa: SIM118  no mapping
        for name in names:
            layer = name.removesuffix(".comfy_quant")
            weight, scale = file.get_tensor(f"{layer}.weight"), file.get_tensor(f"{layer}.weight_scale")
            assert (weight.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (len(weight), 1))
            assert json.loads(bytes(file.get_tensor(name).tolist())) == {
                "format": "int8_tensorwise",
                "full_precision_matrix_mult": True,
            }
    assert rules == RULES
    assert {name.partition(".")[0] for name in names} == {"model", "conditioner"}


def test_a_u_net_alone_is_read_as_it_was_written(written, loaded):
    unet = undertow.load_unet(written[0], dtype=torch.float32)
    assert quantized_layers(unet) == quantized_layers(loaded.unet)
    assert not quantized_layers(undertow.load_unet(written[0], quantize="none"))


def test_what_is_not_quantized_keeps_its_type(written):
    service = undertow.load(written[0])
    assert service.unet.dtype == torch.float32  # as stored
    assert undertow.load(written[0], dtype=torch.bfloat16).unet.conv_in.weight.dtype == torch.bfloat16


def test_convert_makes_a_plain_model_again(written, tmp_path):
    plain = convert(written[0], tmp_path / "plain", "diffusers")
    tensors = load_file(plain / "unet" / "diffusion_pytorch_model.safetensors")
    assert not [name for name in tensors if name.endswith(("weight_scale", "comfy_quant"))]
    assert all(tensor.is_floating_point() for tensor in tensors.values())


def test_weights_leave_memory_and_come_back(written, loaded):
    lazy = undertow.load(written[0], dtype=torch.float32, lazy=True)
    seen = lazy.generate("a", steps=2, low_vram=True).latents
    assert torch.allclose(seen, loaded.generate("a", steps=2).latents, atol=1e-5)
    assert not equal(lazy, loaded)


def test_quantizing_twice_is_refused(written, tmp_path):
    for again in (RULES, as_quantization("int8-dynamic")):
        with pytest.raises(InvalidInput, match=r"quantized already.*quantize the model that it was made from"):
            convert(written[0], tmp_path / "twice", "diffusers", quantization=again)
    with pytest.raises(InvalidInput, match=r"quantized already"):
        undertow.load(written[1], quantize="int8-weights")


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    rules = RULES.keeping(["unet.no_such_layer"])
    with pytest.raises(InvalidInput, match=r"'unet.no_such_layer'.*matches linear layers of this model; e.g. unet"):
        convert(pipeline_folder("sd1"), tmp_path / "model", "diffusers", quantization=rules)
    with pytest.raises(InvalidInput, match=r"'unet.no_such_layer'"):
        undertow.load(pipeline_folder("sd1"), quantize=rules)
    with pytest.raises(InvalidInput, match=r"this CPU has no instructions for it"):
        undertow.load(pipeline_folder("sd1"), quantize="float8")


def test_weights_that_overflowed_are_refused(tmp_path):
    folder = shutil.copytree(pipeline_folder("sd1"), tmp_path / "overflowed")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"][0, 0] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(DamagedWeights, match=r"attn1.to_q.weight"):
        undertow.load(folder, quantize="int8-weights")


def test_a_header_that_says_nothing_is_refused(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "broken")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    write_tensors(load_file(file), file, {METADATA: "{}"})
    with pytest.raises(CorruptFile, match=r"undertow.quantization in its header"):
        undertow.load(folder)


@pytest.mark.parametrize("which", [0, 1], ids=["folder", "file"])
def test_headers_alone_tell_what_it_takes(written, loaded, which):
    named = named_model(str(written[which]))
    held = component_bytes(named.subject, Work(dtype="float32", text_dtype="float32", vae_dtype="float32"))
    assert held["unet"] == sum(one.nbytes for one in loaded.unet.parameters())
    kinds = {one.component for one in named.subject.quantized}
    assert {"unet", "text"} <= kinds
    assert [one.component for one in quantized_weights(loaded.model)] == ["unet", "vae", "clip_l", "openclip_g"]
    assert outline(str(written[which])).stored == "F32"


def test_the_report_says_what_was_done(written, loaded):
    report = report_on(written[0])
    assert report.quantization == RULES
    unet = report.components[0]
    assert unet.quantized_layers == len(quantized_layers(loaded.unet))
    assert unet.size_bytes(torch.float32) == sum(one.nbytes for one in loaded.unet.parameters())
