"""The Python facade: loading a U-Net or a whole model, and the service that draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import undertow
from tests.adapters.beside import control_file, picture
from tests.adapters.lora.files import kohya, layers_of, write
from tests.golden.minis import MUNC, TIMESTEPS, build, latents_for
from tests.services import copy_pipeline, pipeline_folder, service_of
from tests.vae import minis as vae_minis
from tests.vae.allocations import with_peak
from undertow import Adapter, AdapterCapacity, GenerationRequest, PredictionContext, UNetService, embedded
from undertow.adapters.lora.kind import LoraKind
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.engine import decode
from undertow.engine.debug import Debug
from undertow.errors import DamagedWeights, InvalidInput, MissingComponent, UnknownCheckpoint
from undertow.unet import stored_graphs

ONE = {"sampler": "euler", "sigmas": (10.0, 0.0), "guidance_scale": 1.0}
"""A single evaluation."""

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def unet():
    return build(MUNC)


@torch.no_grad()
def test_a_model_folder_is_loaded_by_path(tmp_path, unet):
    save_unet(unet, tmp_path)
    for source in (tmp_path, str(tmp_path)):
        loaded = undertow.load_unet(source)
        latents = latents_for(MUNC)
        assert torch.allclose(loaded(latents, TIMESTEPS), unet(latents, TIMESTEPS), atol=1e-5)
        assert not loaded.training


def test_a_pipeline_folder_gives_its_unet(tmp_path, unet):
    save_unet(unet, tmp_path / "unet")
    assert undertow.load_unet(tmp_path).config == MUNC.config


def test_type_and_device_are_the_callers(tmp_path, unet):
    save_unet(unet, tmp_path, dtype=torch.float16)
    assert undertow.load_unet(tmp_path).dtype == torch.float16
    loaded = undertow.load_unet(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert undertow.load_unet(tmp_path, device="meta").device.type == "meta"


def test_an_embedded_model_is_loaded_by_name(tmp_path, unet, monkeypatch):
    save_unet(unet, tmp_path / "models" / "mini")
    monkeypatch.setattr(embedded, "files", lambda _package: tmp_path)
    assert list(embedded.embedded_models()) == ["mini"]
    assert undertow.load_unet("mini").config == MUNC.config


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UnknownCheckpoint, match="no-such-model") as caught:
        undertow.load_unet("no-such-model")
    for name in embedded.embedded_models():
        assert name in caught.value.remedy


def test_an_unknown_place_is_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match="no such"):
        undertow.load_unet(tmp_path / "nowhere")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match=r"config\.json"):
        undertow.load_unet(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64], ids=str)
def test_a_type_that_is_not_floating_point_is_refused(tmp_path, dtype):
    with pytest.raises(InvalidInput, match="floating-point") as caught:
        undertow.load_unet(tmp_path, dtype=dtype)
    assert caught.value.argument == "dtype"


def types_at_work(made: UNetService, **settings) -> dict[str, torch.dtype]:
    """What the U-Net and the decoder compute in while a picture is drawn, and the picture's latents."""
    found: dict[str, torch.dtype] = {}

    def note(name: str, network: nn.Module):
        return network.register_forward_hook(lambda module, inputs, output: found.update({name: output.dtype}))

    hooks = [note("unet", made.unet.mid_block), note("vae", made.vae.decoder.conv_in)]
    try:
        result = made.generate("red apple", **ONE, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    assert result.latents.isfinite().all()
    assert result.images[0].size == (32, 32)
    return found


@pytest.mark.parametrize(
    ("dtype", "vae_dtype", "unet", "vae"),
    [(F16, F32, F16, F32), (F16, F16, F16, F16), (F32, F16, F32, F16), (F32, None, F32, F32), (F16, None, F16, F32)],
)
def test_the_vae_computes_in_a_type_of_its_own(dtype, vae_dtype, unet, vae):
    """R135: in float32 beside a float16 U-Net, chosen or by itself, where float16 would overflow or crawl."""
    loaded = undertow.load(pipeline_folder("sd1"), dtype=dtype, vae_dtype=vae_dtype)
    assert types_at_work(loaded) == {"unet": unet, "vae": vae}
    chosen = [line for line in loaded.model.report.notes if line.startswith("VAE in torch.float32: ")]
    assert bool(chosen) == (dtype == F16 and vae_dtype is None)


def test_a_bfloat16_vae_decodes_a_float32_models_picture():
    """R135. What a processor without bfloat16 computes in is for it to say; the weights are stored so."""
    loaded = undertow.load(pipeline_folder("sd1"), dtype=F32, vae_dtype=BF16)
    exact, rounded = (each.generate("red apple", **ONE) for each in (service_of("sd1"), loaded))
    assert (loaded.unet.dtype, loaded.vae.dtype) == (F32, BF16)
    assert torch.equal(exact.latents, rounded.latents)
    difference = np.abs(np.asarray(exact.images[0], dtype=int) - np.asarray(rounded.images[0], dtype=int))
    assert 0 < difference.mean() < 3, "levels of 255: eight bits, and rounding all the same"


def test_what_is_stored_in_float16_computes_in_float32_on_a_cpu(tmp_path):
    """R135, mixed precision: float16's numbers, float32's arithmetic, in all three networks."""
    folder = copy_pipeline("sd1", tmp_path / "pipeline")
    for file in (path for part in ("unet", "vae", "text_encoder") for path in (folder / part).glob("*.safetensors")):
        stored = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(file).items()
        }
        save_file(stored, file, metadata={"format": "pt"})
    loaded = undertow.load(folder)
    assert types_at_work(loaded) == {"unet": F32, "vae": F32}
    networks = (loaded.unet, loaded.vae, *(encoder.clip for encoder in loaded.model.text.encoders))
    for parameter in (parameter for network in networks for parameter in network.parameters()):
        assert parameter.dtype == F32
        assert torch.equal(parameter, parameter.half().float())
    assert len([line for line in loaded.model.report.notes if "float16 weights compute in float32" in line]) == 1
    kept = undertow.load(folder, dtype=F16)
    assert not any("compute in float32" in line for line in kept.model.report.notes)


@pytest.fixture(scope="module")
def large():
    """With an autoencoder whose activations are most of what a picture takes: 8 pixels to a cell, as in published
    models. Its networks were read from no file and stay, so that activations are all that is counted."""
    vae = vae_minis.build(vae_minis.MVAE).requires_grad_(False)
    return UNetService(replace(service_of("sd1").model, vae=vae, homes={}))


def test_low_vram_holds_less_and_draws_the_same_picture(large, monkeypatch):
    """R145, by the allocator's own account; trap T18: never another picture."""
    plain, whole = with_peak(lambda: large.generate("a", **ONE))
    monkeypatch.setattr(decode, "LOW_VRAM_DECODE_BYTES", whole // 3)
    low, least = with_peak(lambda: large.generate("a", low_vram=True, **ONE))
    again, unchanged = with_peak(lambda: large.generate("a", **ONE))
    assert least < 0.6 * whole
    assert unchanged > 0.9 * whole, "only when it is asked for"
    assert any("tiled" in line for line in low.report.decisions)
    assert not any("tiled" in line for result in (plain, again) for line in result.report.decisions)
    assert torch.equal(plain.latents, low.latents)
    difference = np.abs(np.asarray(plain.images[0], dtype=int) - np.asarray(low.images[0], dtype=int))
    assert difference.max() <= 1
    assert np.asarray(plain.images[0]).std() > 10, "a flat picture compares nothing"


def test_low_vram_of_many_requests_goes_as_low_as_a_picture_needs(monkeypatch):
    monkeypatch.setattr(decode, "LOW_VRAM_DECODE_BYTES", 1)
    request = GenerationRequest(prompt="a", size=(64, 64), **ONE)
    (low,), (plain,) = (service_of("sd1").generate_many([request], low_vram=low) for low in (True, False))
    assert any("tiled" in line for line in low.report.decisions)
    assert not any("tiled" in line for line in plain.report.decisions)


def test_low_vram_leaves_alone_what_fits(large):
    plain, low = large.generate("a", **ONE), large.generate("a", low_vram=True, **ONE)
    assert plain.report.decisions == low.report.decisions
    assert plain.images[0].tobytes() == low.images[0].tobytes()


def test_a_refiner_is_loaded_as_the_model_is():
    loaded = undertow.load(pipeline_folder("sd1"), dtype=F16, vae_dtype=F32, refiner=pipeline_folder("sd1"))
    assert loaded.refiner.unet is not loaded.unet
    assert (loaded.refiner.unet.dtype, loaded.refiner.vae.dtype) == (F16, F32)
    assert undertow.load(pipeline_folder("sd1"), device="meta").refiner is None


def test_weights_that_nobody_reads_are_refused_when_asked_to_validate(tmp_path):
    folder = copy_pipeline("sdxl", tmp_path / "pipeline")
    file = next((folder / "text_encoder").glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("final_layer_norm.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, file, metadata={"format": "pt"})
    loaded = undertow.load(folder)
    assert len(loaded.model.report.health.unused) == 1
    with pytest.raises(DamagedWeights, match="final_layer_norm"):
        undertow.load(folder, validate_weights=True)
    assert undertow.load(pipeline_folder("sd1"), validate_weights=True, device="meta").model.unet is not None


def test_a_compiled_service_runs_all_its_networks_compiled_and_changes_none(monkeypatch):
    """What torch.compile makes of them is for tests/compile."""
    computed = []

    def compile_nothing(function, **_options):
        return lambda network, *inputs: computed.append(network) or function(network, *inputs)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(stored_graphs, "_graph", lambda *_: None)
    folder = pipeline_folder("sd1")
    service, eager = undertow.load(folder, dtype=F32, backend="compile"), undertow.load(folder, dtype=F32)
    assert type(service.unet) is undertow.UNet
    settings = {"steps": 2, "guidance_scale": 1.0, "seed": 3}
    latents = service.generate("red apple", **settings).latents
    assert computed == 2 * [service.unet]
    assert torch.equal(latents, eager.generate("red apple", **settings).latents)
    many = service.generate_many([undertow.GenerationRequest(prompt="red apple", **settings)])
    assert torch.equal(many[0].latents, latents)
    context = undertow.PredictionContext(
        latents=latents,
        timestep=500.0,
        text_embeddings=torch.zeros(1, 77, service.config.context_dim),
        guidance_scale=1.0,
    )
    assert torch.equal(service.predict_noise(context), eager.predict_noise(context))
    assert computed == 5 * [service.unet]
    assert isinstance(undertow.load_unet(folder, dtype=F32, backend="compile"), undertow.UNet)


def test_slots_are_there_before_the_first_forward_when_there_is_room_for_them():
    capacity = AdapterCapacity(slots=2, rank=4, per_row=1)
    model = undertow.load(pipeline_folder("sd1"), dtype=F32).model
    made = UNetService(model, adapter_capacity=capacity)
    assert model.unet.conv_in.slots is not None
    assert made.adapters.kind(LoraKind).bank is not None
    assert service_of("sd1").adapters.kind(LoraKind).bank is None
    assert service_of("sd1").unet.conv_in.slots is None


def test_a_service_without_a_part_says_so():
    model = service_of("sd1").model
    with pytest.raises(MissingComponent, match="U-Net"):
        _ = UNetService(replace(model, unet=None)).unet
    with pytest.raises(MissingComponent, match="VAE"):
        _ = UNetService(replace(model, vae=None)).vae
    made = UNetService(model)
    assert (made.unet, made.vae, made.config) == (model.unet, model.vae, model.unet.config)


def test_pictures_and_settings_reach_the_request():
    image = Image.new("RGB", (48, 32), (200, 30, 30))
    mask = Image.new("L", (48, 32), 255)
    found = service_of("sd1").generate("a", image=image, mask=mask, strength=0.0, seed=4, guidance_scale=2.0)
    request = found.report.request
    assert (request.image, request.mask) == (image, mask)
    assert (request.prompt, request.strength, request.seed, request.guidance_scale) == ("a", 0.0, 4, 2.0)
    with pytest.raises(InvalidInput, match="brightness"):
        service_of("sd1").generate("a", brightness=2)


@pytest.mark.parametrize("debug", ["shapes", Debug(shapes=True)])
def test_watches_are_named_or_given(debug):
    drawn = service_of("sd1")
    request = GenerationRequest(prompt="a", **ONE)
    found = [drawn.generate("a", debug=debug, **ONE), drawn.run(request, debug=debug)]
    found += drawn.generate_many([request], debug=debug)
    for result in found:
        assert result.report.debug == found[0].report.debug
    assert found[0].report.debug
    assert drawn.run(request).report.debug == ()


def test_options_of_a_run_are_those_of_many(monkeypatch):
    monkeypatch.setattr(decode, "CLAMP", 0.5)
    request, events = GenerationRequest(prompt="a", **ONE), []
    found = [
        service_of("sd1").run(request, vae_clamp=True, observe=events.append),
        *service_of("sd1").generate_many([request], vae_clamp=True, observe=events.append),
        service_of("sd1").generate("a", vae_clamp=True, observe=events.append, **ONE),
    ]
    assert len(events) == 3
    for result in found:
        assert result.report.decisions == found[0].report.decisions
    assert "clamped" in found[0].report.decisions[-1]


def prediction(**settings) -> PredictionContext:
    generator = torch.Generator().manual_seed(0)
    return PredictionContext(
        latents=torch.randn(1, 4, 16, 16, generator=generator),
        timestep=500.0,
        text_embeddings=torch.randn(1, 7, 768, generator=generator),
        guidance_scale=1.0,
        **settings,
    )


def test_one_context_is_one_prediction_and_a_list_is_a_list():
    drawn = service_of("sd1")
    one = drawn.predict_noise(prediction())
    (listed,) = drawn.predict_noise([prediction()])
    assert one.shape == (1, 4, 16, 16)
    assert torch.equal(one, listed)
    assert drawn.predict_noise([]) == []
    assert one.is_inference()


def test_control_maps_are_as_large_as_the_models_own_pixels(tmp_path):
    """Two pixels to a cell of this autoencoder; eight where there is none, as in Stable Diffusion's."""
    drawn = service_of("sd1")
    without = UNetService(replace(drawn.model, vae=None))
    paths = {cell: control_file(tmp_path / f"edges{cell}", drawn.unet, seed=1, cell=cell) for cell in (2, 8)}
    for made, own, other in ((drawn, 2, 8), (without, 8, 2)):
        right, wrong = (prediction(adapters=(Adapter(paths[cell], image=picture(1)),)) for cell in (own, other))
        assert made.predict_noise(right).isfinite().all()
        with pytest.raises(InvalidInput, match="for 16x16 cells"):
            made.predict_noise(wrong)


def test_adapters_are_looked_for_in_the_folder_of_the_model(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "pipeline")
    model = replace(service_of("sd1").model, path=folder)
    (folder / "adapters").mkdir()
    write(folder / "adapters" / "own.safetensors", kohya(layers_of(model.unet), rank=2))
    for path in (folder, folder / "model.safetensors"):
        assert UNetService(replace(model, path=path)).adapters.resolve_each([Adapter("own")])


def test_a_service_prints_as_one_line_of_what_it_is():
    assert repr(service_of("sd1")) == "<UNetService: pipeline on cpu in float32>"
    assert repr(service_of("sd1", refiner="sd1")) == "<UNetService: pipeline with pipeline on cpu in float32>"
    slots = AdapterCapacity(slots=1, rank=16, per_row=1)
    emoji = undertow.load("emoji", dtype=torch.float32, adapter_capacity=slots)
    bundled = "adapters that came with it: edges, line-drawing, mosaic, references, turbo"
    assert repr(emoji) == f"<UNetService: emoji on cpu in float32; {bundled}>"
    emoji.generate("owl", **ONE, adapters=(Adapter("mosaic"),))
    assert repr(emoji).endswith(f"; {bundled}; in its weights and slots: mosaic>")
    assert "conv" not in repr(emoji.model), "weights and layers are not printed"
