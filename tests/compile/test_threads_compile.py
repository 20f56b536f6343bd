"""The thread contract in compiled graphs, with LoRA in slots and merged."""

from functools import partial

import pytest
import torch

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.engine.threads import draw_in_threads
from tests.services import fresh_service
from undertow import Adapter, AdapterCapacity, BatchLimits, GenerationRequest, UNetService
from undertow.engine.options import RunOptions
from undertow.unet.runner import CompiledRunner


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_threads_draw_at_once_in_compiled_graphs(tmp_path, monkeypatch):
    """Graphs are traced for real and run as they are; making kernels of them would take minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = fresh_service("sd1")
    layers = {name: shape for name, shape in layers_of(plain.unet).items() if is_attention(name)}
    lora = write(tmp_path / "lora.safetensors", kohya(layers, rank=2))
    service = UNetService(plain.model, adapter_capacity=AdapterCapacity(slots=2, rank=4), runner=CompiledRunner())
    kinds = ((), (Adapter(lora),), (Adapter(lora, residency="merged"),), (Adapter(lora, scale=0.5),))
    requests = [
        GenerationRequest(
            prompt="a", seed=seed, guidance_scale=1.0, sampler="euler", sigmas=(10.0, 3.0, 0.0), adapters=adapters
        )
        for seed, adapters in enumerate(kinds)
    ]
    draw_in_threads(service, requests, RunOptions(limits=BatchLimits(padded_to=4)))
