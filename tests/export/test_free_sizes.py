"""Files whose sizes are free: one for every number of rows, size of pictures and length of prompts.

They are exported by the command line in a process of its own, as annotations are checked here, and the checks ask sizes
for numbers that they do not have yet.
"""

import json
import subprocess
import sys

import pytest
import torch

from tests.export.test_exporting import CLOSE, onnx_of, relative
from tests.services import pipeline_folder
from undertow import Conditioning, Ports, Residuals, load

pytestmark = pytest.mark.slow


def export(model, to: str, folder, *options: str) -> str:
    """What the command line says."""
    command = [sys.executable, "-m", "undertow", "export", str(model), "--to", to, "--out", str(folder), "--dynamic"]
    return subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout


@torch.inference_mode()
def test_onnx_runtime_takes_every_size(tmp_path):
    """Odd sizes too, where the maps of the levels round up."""
    said = export("digits-flow", "onnx", tmp_path / "out")
    assert "unet: " in said
    assert "of its largest value (1e-04 allowed)" in said
    (listed,) = json.loads((tmp_path / "out" / "export.json").read_text())["parts"]
    assert [one["shape"] for one in listed["inputs"]] == [["rows", 1, "height", "width"], ["rows"], ["rows"]]
    run, unet = onnx_of(tmp_path / "out" / "unet.onnx"), load("digits-flow", dtype=torch.float32).unet
    for rows, height, width in ((1, 13, 10), (3, 8, 24)):
        given = {"latents": torch.randn(rows, 1, height, width), "timesteps": torch.rand(rows)}
        labels = torch.randint(0, 10, (rows,))
        expected = unet(*given.values(), Conditioning(class_labels=labels))
        assert relative(run(**given, class_labels=labels)[0], expected) < CLOSE


@torch.inference_mode()
def test_prompts_and_residuals_follow(tmp_path):
    folder = pipeline_folder("sd1")
    export(folder, "torch-export", tmp_path / "out", "--controlnet")
    service = load(folder, dtype=torch.float32)
    module = torch.export.load(tmp_path / "out" / "unet.pt2").module()
    shapes = service.config.skip_shapes(12, 8)
    latents, timesteps = torch.randn(1, 4, 12, 8), torch.tensor([500.0])
    context = torch.randn(1, 3, service.config.context_dim)
    skips, middle = tuple(torch.randn(1, *shape) for shape in shapes), torch.randn(1, *shapes[-1])
    ports = Ports(residuals=Residuals(skips=skips, middle=middle))
    expected = service.unet(latents, timesteps, Conditioning(context=context), ports)
    assert relative(module(latents, timesteps, context, *skips, middle), expected) < CLOSE

    pixels = torch.rand(2, 3, 4 * service.vae.config.factor, 6 * service.vae.config.factor) * 2 - 1
    mean, _ = torch.export.load(tmp_path / "out" / "vae_encoder.pt2").module()(pixels)
    assert relative(mean, service.vae.encode(pixels).mean * service.vae.config.latent_space.scale) < CLOSE
