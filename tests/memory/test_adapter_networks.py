"""ControlNets, IP-Adapters and their image encoders leave memory and come back as the model's own networks do."""

import gc

import pytest
import torch

from tests.adapters.beside import control_file, control_lora_file, picture, prompt_file
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import fresh_service, service_of
from undertow import Adapter, GenerationRequest, PredictionContext
from undertow.adapters.lora.kind import LoraKind
from undertow.checkpoints.read.home import is_stand_in
from undertow.errors import CorruptFile
from undertow.memory.component import READ_AT_EVERY_STEP, READ_ONCE
from undertow.memory.monitor import BudgetMemoryError


def drawn(*adapters, **more):
    return GenerationRequest(prompt="a cat", steps=2, seed=5, size=(32, 32), adapters=adapters, **more)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, unet = tmp_path_factory.mktemp("adapters"), service_of("sd1").model.unet
    with torch.random.fork_rng(devices=[]):
        found = {
            "ControlNet": control_file(folder / "control", unet, seed=1),
            "Control-LoRA": control_lora_file(folder / "control-lora.safetensors", unet, seed=2),
            "IP-Adapter": prompt_file(folder / "ip.safetensors", unet, seed=3),
        }
    layers = {name: shape for name, shape in layers_of(unet).items() if is_attention(name)}
    found["LoRA"] = write(folder / "style.safetensors", kohya(layers))
    return found


@pytest.fixture
def service():
    return fresh_service("sd1")


def acting(files, *kinds):
    return drawn(*(Adapter(files[kind], image=None if kind == "LoRA" else picture(4)) for kind in kinds))


@pytest.mark.parametrize("kind", ["ControlNet", "IP-Adapter", "Control-LoRA"])
def test_with_low_vram_the_pictures_are_the_same(service, files, kind):
    """A Control-LoRA is the U-Net's weights and the file's: it was NaN where the U-Net was not in memory."""
    request = acting(files, kind)
    service.run(GenerationRequest(prompt="b", steps=1, size=(32, 32)), low_vram=True)  # the U-Net has left
    less = service.run(request, low_vram=True)
    assert torch.equal(less.latents, service_of("sd1").run(request).latents)


def test_what_works_in_one_forward_stays_together_and_leaves_together(service, files):
    request, residency, seen = acting(files, "ControlNet", "IP-Adapter"), service.engine.memory.residency, []
    service.model.unet.register_forward_pre_hook(lambda *_: seen.append(residency.present))
    service.run(request, low_vram=True)
    control = next(name for name in residency._components if name.startswith("ControlNet"))
    assert [set(one) for one in seen] == [{"unet", control}] * 2, "the encoder and the IP-Adapter have left"
    assert residency.present == ("vae",)
    assert {one.priority for one in residency.further} == {READ_ONCE, READ_AT_EVERY_STEP}


def test_their_bytes_count_and_the_least_needed_leaves(service, files):
    memory = service.engine.memory
    service.run(acting(files, "ControlNet", "IP-Adapter"))
    parts = {name.split()[0]: one for name, one in memory.residency._components.items()}
    sizes = {name: one.present_bytes for name, one in parts.items()}
    assert min(sizes.values()) > 0
    assert memory.tracker.weights_bytes == sum(sizes.values())
    kept = sizes["unet"] + sizes["ControlNet"] + sizes["vae"]
    memory.tracker.limit_bytes = kept
    memory.residency.fit()
    assert {name for name, one in parts.items() if one.present_bytes} == {"unet", "ControlNet", "vae"}
    with pytest.raises(BudgetMemoryError), memory.residency.acquire("unet", parts["ControlNet"].name):
        memory.residency.acquire("text", "vae", parts["image"].name)
    memory.tracker.limit_bytes = None


def test_a_network_is_known_as_long_as_somebody_holds_it(service, files):
    memory, library = service.engine.memory, service.adapters.library
    service.run(acting(files, "ControlNet"))
    held = library.get(files["ControlNet"])
    memory.residency.evict_idle()
    assert len(library) == 0
    assert all(is_stand_in(one) for one in held.network.parameters() if one.numel() > 1)
    assert library.get(files["ControlNet"]) is held, "and is not read a second time"
    assert len(list(memory.residency.further)) == 1
    library.forget()
    del held
    gc.collect()
    assert list(memory.residency.further) == []


def test_a_file_that_changed_while_it_was_in_use_is_refused(service, tmp_path):
    control = control_file(tmp_path / "control", service.model.unet, seed=1)

    def observe(event):
        control_file(control, service.model.unet, seed=2)
        service.engine.memory.residency.evict_idle()

    asked = drawn(Adapter(control, image=picture(4)))
    with pytest.raises(CorruptFile, match="the file changed while it was in use; begin the request again"):
        service.engine.submit(asked, observe).result()


def test_a_control_lora_is_made_of_the_model_s_own_weights(service, files):
    """Also where it is read while another request's LoRA is merged into them."""
    merged = []

    def observe(event):
        merged.extend(service.adapters.kind(LoraKind).merged.present)
        if merged:
            service.adapters.read(files["Control-LoRA"])

    style = service.engine.submit(acting(files, "LoRA"), observe).result().latents
    assert merged
    assert torch.equal(style, service_of("sd1").run(acting(files, "LoRA")).latents)
    expected = service_of("sd1").run(acting(files, "Control-LoRA")).latents
    assert torch.equal(service.run(acting(files, "Control-LoRA")).latents, expected)


def test_predictions_of_a_step_have_networks_in_memory_that_had_left(service, files):
    asked = PredictionContext(
        latents=torch.ones(1, 4, 16, 16),
        timestep=3.0,
        text_embeddings=torch.zeros(1, 7, service.config.context_dim),
        adapters=(Adapter(files["ControlNet"], image=picture(4)),),
        guidance_scale=1.0,
    )
    expected = service.predict_noise(asked)
    service.engine.memory.residency.evict_idle()
    assert torch.equal(service.predict_noise(asked), expected)
