"""LoRA on quantized weights: the same as on the numbers that codes stand for, in slots; merging is refused."""

import pytest
import torch

import undertow
from tests.adapters.lora.files import is_attention, kohya, layers_of, low_rank, write
from tests.services import pipeline_folder
from undertow import Adapter, AdapterCapacity, InvalidInput
from undertow.adapters.control.controlnet import ControlNet
from undertow.nn.quantized import dequantize_layers, quantized_layers

CLOSE = 1e-4
"""Of latents in float32, after two steps: sums in another order."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A quantized tiny pipeline in slots, and a LoRA of its U-Net and its text encoder."""
    with torch.random.fork_rng():
        service = undertow.load(
            pipeline_folder("sd1"), dtype=torch.float32, quantize="int8-weights", adapter_capacity=AdapterCapacity()
        )
    file = tmp_path_factory.mktemp("lora") / "change.safetensors"
    tensors = kohya(layers_of(service.unet, is_attention))
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    down, up = low_rank(name, (768, 768), 4)
    flat = f"lora_te_{name.replace('.', '_')}"
    text = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(2.0)}
    return service, write(file, {**tensors, **text})


def plain_service(**options):
    """The numbers that codes stand for, as plain weights."""
    service = undertow.load(pipeline_folder("sd1"), dtype=torch.float32, quantize="int8-weights", **options)
    dequantize_layers(service.unet)
    dequantize_layers(service.vae)
    dequantize_layers(service.model.text.encoders[0].clip)
    assert not quantized_layers(service.unet)
    return service


def test_a_lora_in_slots_is_the_same_as_on_plain_weights(source):
    service, file = source
    assert quantized_layers(service.unet)
    without = service.generate("a", steps=2, seed=1).latents
    found = service.generate("a", steps=2, seed=1, adapters=[Adapter(file)]).latents
    plain = plain_service().generate("a", steps=2, seed=1, adapters=[Adapter(file)]).latents
    assert (found - plain).norm() <= CLOSE * plain.norm()
    assert (found - without).norm() > 100 * CLOSE * plain.norm()
    assert torch.equal(service.generate("a", steps=2, seed=1).latents, without)


def test_merging_is_refused(source):
    service, file = source
    with pytest.raises(InvalidInput, match=r"merged, because it is asked for.*quantized weights.*rounded to them anew"):
        service.generate("a", steps=1, adapters=[Adapter(file, residency="merged")])
    merging = undertow.load(pipeline_folder("sd1"), dtype=torch.float32, quantize="int8-weights")
    with pytest.raises(InvalidInput, match=r"loaded without slots.*--adapter-slots.*quantize='none'"):
        merging.generate("a", steps=1, adapters=[Adapter(file)])


def test_a_lora_of_plain_layers_is_merged(source):
    _, file = source
    service = undertow.load(
        pipeline_folder("sd1"), dtype=torch.float32, quantize={"*": "none", "vae.*": "int8-weights"}
    )
    assert quantized_layers(service.vae)
    without, merged = (
        service.generate("a", steps=1, seed=1, adapters=adapters).latents for adapters in ((), [Adapter(file)])
    )
    assert not torch.equal(without, merged)


def test_networks_made_of_a_quantized_one_have_plain_weights(source):
    service, _ = source
    control = ControlNet.from_unet(service.unet)
    name = next(name for name in quantized_layers(service.unet) if name.startswith("mid_block.attentions"))
    assert not quantized_layers(control)
    assert torch.equal(control.get_submodule(name).weight, service.unet.get_submodule(name).dequantized())
