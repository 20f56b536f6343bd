"""Walks the public functions with wrong values, as users meet them: without the type checker that tests run under.

`python -m tests.wrong_values` prints a line for each value that is neither taken nor refused by an `UndertowError`.
"""

import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch

import undertow
from undertow import (
    Adapter,
    AdapterCapacity,
    AdapterStack,
    AttentionConfig,
    AttentionPolicy,
    BatchLimits,
    Conditioning,
    Engine,
    GenerationRequest,
    HighResolution,
    PredictionContext,
    Region,
    RunOptions,
    StepForecast,
    UNet,
    UNetConfig,
    UNetService,
    UNetState,
    Views,
)
from undertow.errors import UndertowError

WRONG = (None, object(), -1, float("nan"), "banana", ["banana"])

PIXELS = UNetConfig.cifar10()

COMPILED = "compute"
"""Of `UNet.forward`: a hook of the compiled network's, which no user gives."""

Call = tuple[str, Callable[..., Any], dict[str, Any]]


def calls() -> Iterator[Call]:
    """Public functions with arguments that they take."""
    emoji = undertow.load("emoji", dtype=torch.float32)
    adapter, request = Adapter("mosaic"), GenerationRequest(prompt="owl", steps=1, size=(32, 32))
    yield "load", undertow.load, {"source": "digits-flow", "dtype": torch.float32}
    yield "load_unet", undertow.load_unet, {"source": "digits-flow"}
    for record, given in (
        (GenerationRequest, {"prompt": ""}),
        (Region, {"prompt": "", "box": (0, 0, 1, 1)}),
        (Views, {}),
        (HighResolution, {}),
        (StepForecast, {}),
        (Adapter, {"source": "mosaic"}),
        (AdapterStack, {"adapters": (adapter,)}),
        (AdapterCapacity, {}),
        (BatchLimits, {}),
        (RunOptions, {}),
        (AttentionConfig, {"num_heads": 2, "head_dim": 4}),
        (AttentionPolicy, {}),
        (UNetConfig, {field.name: getattr(PIXELS, field.name) for field in fields(PIXELS)}),
        (UNet, {"config": PIXELS}),
        (Engine, {"model": emoji.model}),
        (UNetService, {"model": emoji.model}),
        (UNetState, {"unet": emoji.unet, "manager": emoji.adapters}),
        (
            PredictionContext,
            {
                "latents": torch.zeros(1, 8, 4, 4),
                "timestep": 5,
                "text_embeddings": torch.zeros(1, 77, 8),
                "guidance_scale": 1.0,
            },
        ),
    ):
        yield record.__name__, record, given
    small = {"prompt": "owl", "steps": 1, "size": (32, 32), "guidance_scale": 1.0}
    yield "generate", emoji.generate, small
    yield "run", emoji.run, {"request": request}
    yield "generate_many", emoji.generate_many, {"requests": [request]}
    yield "predict_noise", emoji.predict_noise, {"context": []}
    yield "submit", emoji.engine.submit, {"request": request}
    yield "submit_together", emoji.engine.submit_together, {"requests": [request]}
    yield "result", emoji.engine.submit(request).result, {}
    yield "save", emoji.run(request).save, {"path": "/nowhere/else.png"}
    yield "restore", emoji.state.restore, {"snapshot": emoji.state.snapshot()}
    stack = AdapterStack((adapter,))
    yield "with_enabled", stack.with_enabled, {"name": "mosaic", "enabled": True}
    yield "with_scales", stack.with_scales, {"scales": {}}
    yield "add", stack.add, {"adapter": Adapter("edges")}
    yield "remove", stack.remove, {"name": "mosaic"}
    digits = UNet(PIXELS)
    inputs = {"timesteps": torch.tensor([5]), "conditioning": Conditioning(class_labels=torch.tensor([1]))}
    yield "unet", digits.forward, {"latents": torch.zeros(1, 3, 32, 32), **inputs}


def arguments(function: Callable[..., Any]) -> list[str]:
    """Its own, and the settings that `generate` passes on."""
    parameters = inspect.signature(function).parameters
    named = [one.name for one in parameters.values() if one.kind is not one.VAR_KEYWORD and one.name != COMPILED]
    others = [one.name for one in parameters.values() if one.kind is one.VAR_KEYWORD]
    fields = [name for name in GenerationRequest.__dataclass_fields__ if name != "prompt"]
    return named + (fields if others else [])


def problem(function: Callable[..., Any], given: Mapping[str, Any]) -> str | None:
    """How a call goes wrong otherwise than by refusing."""
    try:
        function(**given)
    except UndertowError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:  # "banana" is a folder that a picture can be saved to
        os.chdir(folder)
        walk()
    print("walked")


def walk() -> None:
    for name, function, given in calls():
        for argument in arguments(function):
            for value in WRONG:
                if found := problem(function, {**given, argument: value}):
                    print(f"{name}({argument}={value!r:.60}): {found}")
        if "config" in arguments(function) and (found := problem(function, {**given, "config": UNetConfig.sd15})):
            print(f"{name}(config=UNetConfig.sd15): {found}")
        for argument in ("no_such_name", "callback", "torch_dtype"):
            if found := problem(function, {**given, argument: 3}):
                print(f"{name}({argument}=3): {found}")
        for argument in given:
            if found := problem(function, {one: given[one] for one in given if one != argument}):
                print(f"{name}() without {argument}: {found}")


if __name__ == "__main__":
    main()
