"""Draws every case and prints the SHA-256 of what comes of each; run by `benchmarks.bits` on the code of a revision.

Only public names are used, so that it runs with the code of earlier revisions.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import undertow
from tests.golden.pipelines import save_pipeline
from undertow import (
    Adapter,
    AdapterCapacity,
    AdapterStack,
    GenerationRequest,
    HighResolution,
    PredictionContext,
    Region,
    Views,
)

from .files import write_files

SIDE = 128
APPLE, CAT, TWO = (
    "red apple on white background",
    "cat face on blue background",
    "rocket left of owl on pink background",
)
HALVES = (Region(prompt=APPLE, box=(0, 0, 0.5, 1)), Region(prompt=CAT, box=(0.5, 0, 1, 1), weight=2.0))
SHIPPED = Path(undertow.__file__).parent / "models" / "emoji" / "adapters"


def picture(side: int = SIDE, color: str = "red") -> Image.Image:
    """A disc on white."""
    drawn = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(drawn).ellipse((side // 5, side // 4, side * 4 // 5, side * 3 // 4), fill=color, outline="black")
    return drawn


def half(side: int = SIDE) -> Image.Image:
    """A mask whose right half is white."""
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rectangle((side // 2, 0, side, side), fill=255)
    return mask


def requests(made: Path) -> dict[str, dict[str, Any]]:
    """The fields of each request."""
    edges, mosaic, references = (str(next(SHIPPED.glob(f"{name}*"))) for name in ("edges", "mosaic.s", "references"))
    lora = Adapter(made / "lora.safetensors", scale=0.7)
    return {
        "plain": {},
        "two pictures, euler_ancestral": {"count": 2, "sampler": "euler_ancestral", "seed": 3},
        "dpmpp_3m_sde, exponential": {
            "sampler": "dpmpp_3m_sde",
            "schedule": "exponential",
            "sampler_options": {"eta": 0.8},
        },
        "heun, rescale": {"sampler": "heun", "guidance_method": "cfg+rescale", "negative_prompt": "cat"},
        "euler_cfg_pp": {"sampler": "euler_cfg_pp", "guidance_scale": 1.4},
        "pag and FreeU": {"guidance_method": "cfg+pag(scale=2)+free_u(b1=1.2,b2=1.3,s1=0.9,s2=0.8)"},
        "sag": {"guidance_method": "cfg+sag", "sampler": "ddim", "schedule": "ddim"},
        "apg, seg from the middle on": {"guidance_method": "apg+seg(start=0.5)"},
        "weights and AND": {"prompt": "(red:1.2) apple on white background AND cat face on blue background :0.6"},
        "editing in steps": {"prompt": "[red:green:0.5] apple on white background", "clip_skip": 1},
        "image to image": {"image": picture(), "strength": 0.7},
        "inpainting": {"image": picture(), "mask": half(), "strength": 1.0, "sampler": "euler"},
        "high resolution": {"high_resolution": HighResolution(scale=1.5, strength=0.5)},
        "high resolution of latents": {"high_resolution": HighResolution(scale=2.0, steps=3, upscale="latent")},
        "views": {"size": (SIDE, 2 * SIDE), "views": Views(overlap=0.5), "prompt": TWO},
        "regions": {"size": (SIDE, 2 * SIDE), "regions": HALVES, "prompt": TWO},
        "regions by attention": {"size": (SIDE, 2 * SIDE), "regions": HALVES, "regions_by": "attention"},
        "seamless, variation": {"seamless": "both", "variation_seed": 9, "variation_strength": 0.3},
        "LoRA on a schedule": {"adapters": (Adapter(mosaic, scale=(0.2, 1.0), start=0.0, end=0.8), lora)},
        "LoHa, LoKr, DoRA, full": {
            "adapters": tuple(Adapter(made / f"{name}.safetensors") for name in ("loha", "lokr", "dora", "full"))
        },
        "stack by TIES": {
            "adapters": AdapterStack((lora, Adapter(made / "rank-2.safetensors", priority=1)), strategy="ties")
        },
        "two ControlNets": {
            "adapters": (
                Adapter(edges, image=picture(), scale=0.8, control_mode="prompt"),
                Adapter(edges, name="left", image=picture(color="blue"), mask=half(), end=0.75),
            )
        },
        "image prompt": {"adapters": (Adapter(references, image=picture(color="green"), scale=0.6),)},
        "adapters in regions": {
            "size": (SIDE, 2 * SIDE),
            "regions": (
                Region(prompt=APPLE, box=(0, 0, 0.5, 1), adapters=(Adapter(mosaic),)),
                Region(prompt=CAT, box=(0.5, 0, 1, 1), adapters=(lora,)),
            ),
        },
    }


def cases(made: Path) -> dict[str, Callable[[], Tensor]]:
    """Every case by its name, not yet drawn."""
    emoji = undertow.load("emoji", dtype=torch.float32)
    write_files(made, emoji.unet)
    common = {"prompt": APPLE, "steps": 5, "seed": 1}
    asked = {name: GenerationRequest(**common | fields) for name, fields in requests(made).items()}
    found: dict[str, Callable[[], Tensor]] = {
        name: lambda request=request: emoji.run(request).latents for name, request in asked.items()
    }
    found["all together"] = lambda: torch.cat(
        [each.latents.flatten() for each in emoji.generate_many(list(asked.values()))]
    )
    slots = undertow.load("emoji", dtype=torch.float32, adapter_capacity=AdapterCapacity(slots=3, rank=16, per_row=2))
    few = [asked[name] for name in ("plain", "LoRA on a schedule", "adapters in regions", "two ControlNets")]
    found["in slots"] = lambda: torch.cat([each.latents.flatten() for each in slots.generate_many(few)])
    for family in ("sd1", "sd2", "sdxl"):
        found[f"predict_noise of {family}"] = lambda family=family: predicted(family)
    return found


def predicted(family: str) -> Tensor:
    """Guided noise for two contexts with prompts of unequal lengths, in one forward."""
    with tempfile.TemporaryDirectory() as folder:
        service = undertow.load(save_pipeline(family, Path(folder) / "pipeline"), dtype=torch.float32)
    random, width = torch.Generator().manual_seed(4), service.config.context_dim
    assert width is not None
    contexts = [
        PredictionContext(
            latents=torch.randn(1, 4, 16, 16, generator=random),
            timestep=timestep,
            text_embeddings=torch.randn(1, 77, width, generator=random),
            negative_embeddings=torch.randn(1, tokens, width, generator=random),
            pooled=torch.randn(1, 1280, generator=random) if family == "sdxl" else None,
            negative_pooled=torch.randn(1, 1280, generator=random) if family == "sdxl" else None,
            time_ids=torch.tensor([[32.0, 32, 0, 0, 32, 32]]) if family == "sdxl" else None,
        )
        for timestep, tokens in ((981.0, 77), (20.5, 154))
    ]
    return torch.cat([each.flatten() for each in service.predict_noise(contexts)])


def main() -> None:
    torch.set_num_threads(1)
    made, only = Path(sys.argv[1]), sys.argv[2]
    found = {}
    for name, draw in cases(made).items():
        if only in name:
            print(name, file=sys.stderr, flush=True)
            tensor = draw().contiguous()
            assert bool(tensor.isfinite().all()), name
            found[name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
