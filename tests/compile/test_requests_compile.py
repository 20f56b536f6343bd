"""Forty unlike requests, in shared batches: no graph but those for their kinds of call."""

from functools import partial
from random import Random

import pytest
import torch

from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.compile.test_unet_compile import Counter
from tests.services import fresh_service
from undertow import Adapter, AdapterCapacity, BatchLimits, GenerationRequest, UNetService
from undertow.unet.runner import CompiledRunner
from undertow.unet.tensor_trees import kind_of

WORDS = ("a", "red", "apple", "on", "white", "background")
GRIDS = ("karras", "exponential", "normal", "simple")
SAMPLERS = ("euler", "heun", "dpmpp_2m", "euler_ancestral", "ddim", "lcm", "dpmpp_sde")


class Watched(CompiledRunner):
    """Notes of which kinds its calls are."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[object] = []

    def run(self, network, *inputs):
        self.kinds.append(kind_of(inputs))
        return super().run(network, *inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_forty_unlike_requests_make_two_graphs(tmp_path, monkeypatch):
    """With LoRA in slots and without; who asks for what is values: words, seeds, samplers, steps, guidance, strength of
    guidance and of adapters, and how many rows of whom share a forward."""
    counter, random = Counter(), Random(0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    plain = fresh_service("sd1")
    layers = {name: shape for name, shape in layers_of(plain.unet).items() if is_attention(name)}
    loras = [write(tmp_path / f"{rank}.safetensors", kohya(layers, rank=rank)) for rank in (1, 2, 4)]
    runner = Watched()
    service = UNetService(plain.model, adapter_capacity=AdapterCapacity(slots=3, rank=4, per_row=2), runner=runner)

    def unlike() -> GenerationRequest:
        chosen = random.sample(loras, random.choice((0, 0, 1, 2)))
        return GenerationRequest(
            prompt=" ".join(random.sample(WORDS, random.randint(1, 6))),
            negative_prompt=random.choice(WORDS),
            seed=random.randrange(1000),
            steps=random.randint(1, 3),
            sampler=random.choice(SAMPLERS),
            schedule=random.choice(GRIDS),
            guidance_scale=random.choice((1.0, 3.0, 7.5)),
            adapters=tuple(Adapter(one, scale=random.uniform(0.1, 1)) for one in chosen),
        )

    results = service.generate_many([unlike() for _ in range(40)], limits=BatchLimits(padded_to=4))
    assert len({result.latents.sum().item() for result in results}) == 40
    assert len(runner.kinds) > 40
    assert counter.graphs == len(set(runner.kinds)) == 2
