"""The thread contract: requests come from any thread, and each is drawn with its own adapters and no others."""

import torch
from PIL import Image

import undertow
from tests.engine.threads import draw_in_threads
from undertow import Adapter, AdapterCapacity, BatchLimits, GenerationRequest
from undertow.engine.options import RunOptions

OUTLINE = Image.new("L", (64, 64), 0)
OUTLINE.paste(255, (16, 16, 48, 48))
REFERENCE = Image.new("RGB", (64, 64), "red")
KINDS = (
    (),
    (Adapter("mosaic"),),
    (Adapter("edges", image=OUTLINE),),
    (Adapter("references", image=REFERENCE), Adapter("line-drawing", residency="merged")),
)


def test_threads_draw_at_once_each_with_adapters_of_its_own_kind():
    """LoRA merged into the weights that all share, LoRA in slots, a ControlNet and an image prompt."""
    service = undertow.load("emoji", dtype=torch.float32, adapter_capacity=AdapterCapacity(slots=2, rank=16))
    requests = [
        GenerationRequest(
            prompt="owl",
            seed=seed,
            guidance_scale=1.0,
            sampler="euler",
            sigmas=(10.0, 5.0, 2.0, 0.0),
            adapters=adapters,
        )
        for seed, adapters in enumerate(KINDS)
    ]
    draw_in_threads(service, requests, RunOptions(limits=BatchLimits(padded_to=4)))
    assert service.state.active_adapters == ("mosaic",), "in a slot; nothing is merged"
