"""Exported files compute what the service's own networks compute, in the programs that they are for."""

import copy
import json
import zipfile
from pathlib import Path

import pytest
import torch

import undertow
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.adapters.test_residencies import GRID
from tests.services import fresh_service, pipeline_folder, service_of
from undertow import Adapter, Conditioning, ImageTokens, InvalidInput, MissingDependency, Ports, Residuals, export_model
from undertow.cli import main
from undertow.export import onnx, torch_export
from undertow.export.check import TOLERANCES, largest_difference
from undertow.export.exporting import ExportedPart, _require_pristine
from undertow.export.parts import Choices, Types, parts_of

CLOSE = 1e-4
"""Of float32 networks whose operations are summed in another order, as a share of the largest number."""

FLOAT32 = Types(dtype=torch.float32, stored=torch.float32)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def part_named(service, name: str, **choices):
    return next(part for part in parts_of(service.model, Choices(**choices), FLOAT32) if part.name == name)


def onnx_of(file):
    """ONNX Runtime's own session, asked by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda **given: [
        torch.from_numpy(one) for one in session.run(None, {k: v.numpy() for k, v in given.items()})
    ]


def says_nothing_of_this_machine(file) -> bool:
    """Archives are looked into."""
    contents = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            contents += [archive.read(name) for name in archive.namelist()]
    places = str(Path(undertow.__file__).parent).encode(), str(Path(torch.__file__).parent).encode()
    return not any(place in content for place in places for content in contents)


@pytest.mark.slow
@torch.inference_mode()
def test_onnx_runtime_draws_as_the_service_does(service, tmp_path):
    told: list[ExportedPart] = []
    parts = export_model(service, "onnx", tmp_path / "out", written=told.append)
    assert tuple(told) == parts
    assert [part.name for part in parts] == ["unet", "text_encoder", "vae_decoder", "vae_encoder"]
    assert all(part.file.stat().st_size == part.bytes for part in parts)
    assert all(0 < part.difference < part.tolerance for part in parts)
    unet, text, decoder, encoder = (onnx_of(part.file) for part in parts)

    ids = torch.randint(0, 20, (2, 77))
    stack = service.model.text
    (context,) = text(ids=ids)
    assert relative(context, stack.encoders[0](ids, stack.selections[0]).tokens) < CLOSE

    cells, config = service.config.sample_size, service.config
    latents, timesteps = torch.randn(2, config.in_channels, cells, cells), torch.tensor([3.0, 871.5])
    expected = service.unet(latents, timesteps, Conditioning(context=context))
    assert relative(unet(latents=latents, timesteps=timesteps, context=context)[0], expected) < CLOSE

    vae, scale = service.vae, service.vae.config.latent_space.scale
    assert relative(decoder(latents=latents[:1])[0], vae.decode(latents[:1] / scale)) < CLOSE
    pixels = torch.rand(1, 3, cells * vae.config.factor, cells * vae.config.factor) * 2 - 1
    mean, deviation = encoder(pixels=pixels)
    posterior = vae.encode(pixels)
    assert relative(mean, posterior.mean * scale) < CLOSE
    assert relative(deviation, posterior.std * scale) < CLOSE


def test_the_listing_says_inputs_and_outputs_in_their_order(tmp_path):
    service = undertow.load("digits-flow", dtype=torch.float32)
    (part,) = export_model(service, "torch-export", tmp_path / "out", rows=3)
    listed = json.loads((tmp_path / "out" / "export.json").read_text())
    assert listed["format"] == "torch-export"
    assert listed["parts"] == [
        {
            "name": "unet",
            "inputs": [
                {"name": "latents", "shape": [3, 1, 16, 16], "dtype": "float32"},
                {"name": "timesteps", "shape": [3], "dtype": "float32"},
                {"name": "class_labels", "shape": [3], "dtype": "int64"},
            ],
            "outputs": ["prediction"],
        }
    ]
    latents, timesteps, labels = torch.randn(3, 1, 16, 16), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1, 2, 10])
    assert says_nothing_of_this_machine(part.file)
    found = torch.export.load(part.file).module()(latents, timesteps, labels)
    with torch.inference_mode():
        expected = service.unet(latents, timesteps, Conditioning(class_labels=labels))
    assert relative(found, expected) < CLOSE


@pytest.mark.slow
@torch.inference_mode()
def test_weights_may_be_stored_in_half(service, tmp_path):
    """The file is half as large, computes in float32, and gives what rounded weights give."""
    parts = {}
    for stored in (torch.float32, torch.float16):
        types = Types(dtype=torch.float32, stored=stored)
        part = next(one for one in parts_of(service.model, Choices(), types) if one.name == "vae_decoder")
        onnx.write(part, tmp_path / f"{stored}.onnx")
        parts[stored] = part
    full, half = (tmp_path / f"{stored}.onnx" for stored in parts)
    assert half.stat().st_size < 0.65 * full.stat().st_size
    assert says_nothing_of_this_machine(half)
    latents = part.inputs["latents"]
    (found,) = onnx_of(half)(latents=latents)
    exact = part.reference(latents)
    rounded = copy.deepcopy(part.module)  # the part's own weights are the service's
    for weight in rounded.state_dict().values():
        weight.copy_(weight.half() if weight.numel() >= onnx.LEAST_STORED else weight)
    assert relative(found, rounded(latents)) < CLOSE < relative(found, exact)


@torch.inference_mode()
def test_openvino_reads_the_autoencoder(service, tmp_path):
    import openvino

    from undertow.export.openvino import write

    part = part_named(service, "vae_decoder")
    write(part, tmp_path / "decoder.xml")
    model = openvino.Core().read_model(tmp_path / "decoder.xml")
    assert [port.any_name for port in (*model.inputs, *model.outputs)] == ["latents", "pixels"]
    assert says_nothing_of_this_machine(tmp_path / "decoder.xml")
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    latents = part.inputs["latents"]
    expected = service.vae.decode(latents / service.vae.config.latent_space.scale)
    assert relative(torch.from_numpy(compiled(latents.numpy())["pixels"].copy()), expected) < CLOSE


@pytest.mark.slow
@torch.inference_mode()
def test_adapters_are_inputs(service, tmp_path):
    """ControlNet's residuals, reference pictures and a LoRA at once, beside the network's ports and merged weights."""
    part = part_named(service, "unet", controlnet=True, reference_tokens=4, lora_rank=2)
    file = tmp_path / "unet.pt2"
    torch_export.write(part, file)
    (found,) = torch_export.read(file, 1)(list(part.inputs.values()))

    given, own = part.inputs, fresh_service("sd1").unet
    for name, layer in dict(own.named_modules()).items():
        if f"{name}.lora_up" in given:
            change = given[f"{name}.lora_up"] @ given[f"{name}.lora_down"]
            layer.weight.add_(change.reshape(layer.weight.shape))
    skips = tuple(given[f"residual_{index}"] for index in range(len(own.config.skip_shapes(8, 8))))
    gain = given["reference_gain"]
    image = {
        site: (ImageTokens(keys=given[f"{site}.keys"], values=given[f"{site}.values"], gain=gain),)
        for site in own.config.cross_attentions()
    }
    ports = Ports(residuals=Residuals(skips=skips, middle=given["residual_middle"]), image=image)
    expected = own(given["latents"], given["timesteps"], Conditioning(context=given["context"]), ports)
    assert relative(found, expected) < CLOSE
    plain = own(given["latents"], given["timesteps"], Conditioning(context=given["context"]))
    assert relative(plain, expected) > 100 * CLOSE


def test_a_file_that_is_off_is_refused(service):
    part = part_named(service, "text_encoder")
    answer = part.module(*part.inputs.values())[0]
    off = 2 * TOLERANCES[torch.float32] * answer.abs().max()
    assert largest_difference(part, lambda _: [answer]) < TOLERANCES[torch.float32]
    with pytest.raises(InvalidInput, match=r"the exported text_encoder is off by .* of its largest value"):
        largest_difference(part, lambda _: [answer + off])
    with pytest.raises(InvalidInput, match="off by nan"):
        largest_difference(part, lambda _: [answer * float("nan")])


def test_free_sizes_are_compared_at_another_size(service):
    part = part_named(service, "text_encoder", dynamic=True)
    run = part.module
    assert largest_difference(part, lambda inputs: list(run(*inputs))) < CLOSE
    with pytest.raises(InvalidInput, match="off by"):
        largest_difference(part, lambda inputs: [one if len(one) == 2 else one + 1 for one in run(*inputs)])


def test_a_merged_lora_is_named(tmp_path):
    service = fresh_service("sd1")
    lora = write(tmp_path / "style.safetensors", kohya(layers_of(service.unet, is_attention)))
    manager = service.adapters
    manager.prepare_weights([manager.tile(manager.resolve_each([Adapter(lora)]), GRID).row(0, 1)])
    with pytest.raises(InvalidInput, match="a model with style merged into its weights"):
        export_model(service, "torch-export", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manager.unmerge()
    _require_pristine(service)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"to": "tensorrt"}, "to is 'tensorrt', expected"),
        ({"to": "onnx", "dtype": torch.bfloat16}, "f32 or f16 for onnx; ONNX Runtime has no convolution in bf16"),
        ({"to": "openvino", "dtype": torch.bfloat16}, "OpenVINO decides when it compiles"),
        ({"to": "onnx", "dtype": torch.float64}, "dtype is torch.float64, expected f32 or f16"),
        ({"to": "web", "dtype": torch.float32}, "WebAssembly computes in f32"),
        ({"to": "onnx", "size": (65, 64)}, "size is 64x65, expected multiples of"),
        ({"to": "onnx", "rows": 0}, "rows is 0, expected at least 1"),
        ({"to": "web", "dynamic": True}, "dynamic is True, expected nothing for a page"),
        ({"to": "web", "lora_rank": 4}, "lora_rank is 4, expected nothing for a page"),
    ],
)
def test_what_cannot_be_exported_is_refused(choices, message, service, tmp_path):
    with pytest.raises(InvalidInput) as refused:
        export_model(service, folder=tmp_path / "out", **choices)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_models_that_a_format_cannot_hold(tmp_path):
    digits = undertow.load("digits-flow", dtype=torch.float32)
    with pytest.raises(InvalidInput, match="controlnet is True, expected nothing for a model without text"):
        export_model(digits, "torch-export", tmp_path / "a", controlnet=True)
    with pytest.raises(undertow.MissingComponent, match="no text encoder"):
        export_model(digits, "web", tmp_path / "b")
    with pytest.raises(InvalidInput, match="which reads two texts or a pooled vector"):
        export_model(service_of("sdxl"), "web", tmp_path / "c")


def test_nothing_is_written_over(service, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert main(["export", "digits-flow", "--to", "torch-export", "--out", str(tmp_path / "full")]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    with pytest.raises(InvalidInput, match="which is read for it"):
        export_model(service, "torch-export", pipeline_folder("sd1") / "out")


def test_a_missing_package_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("undertow.extras.is_installed", lambda module: module != "onnxscript")
    assert main(["export", "digits-flow", "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "this needs the package 'onnxscript': pip install 'undertow[export]'" in capsys.readouterr().err
    monkeypatch.setattr("undertow.extras.is_installed", lambda module: module != "openvino")
    with pytest.raises(MissingDependency, match=r"pip install 'undertow\[openvino\]'"):
        export_model(service_of("sd1"), "openvino", tmp_path / "out")
