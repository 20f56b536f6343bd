"""The Python facade: models and U-Nets, loaded."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from undertow.adapters.lora.bank import AdapterCapacity
from undertow.attention.policy import AttentionPolicy
from undertow.checkpoints.read.dtypes import require_device, require_dtype
from undertow.checkpoints.read.loading import LoadOptions
from undertow.checkpoints.read.model import LoadedModel
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.doors import checked
from undertow.embedded import located
from undertow.engine.loaded_as import computing_of
from undertow.errors import InvalidInput
from undertow.nn.packed import packs_anything
from undertow.nn.quantized import quantized_layers
from undertow.quantization import Quantization, as_quantization
from undertow.service import UNetService
from undertow.unet.choose_backend import backend_for
from undertow.unet.compiled import CompiledUNet
from undertow.unet.config import UNetConfig
from undertow.unet.runner import EAGER, Backend, PredictingRunner, runner_named
from undertow.unet.unet import UNet

logger = logging.getLogger(__name__)


@checked
def load_unet(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = "eager",
    attention: str | AttentionPolicy = "auto",
    quantize: Quantization | str | Mapping[str, str] | None = None,
) -> UNet:
    """A U-Net, ready to call, from a .safetensors or .gguf file, a diffusers model or pipeline folder, the name of an
    embedded model, or a Hub id (owner/name).

    dtype: `None` keeps the file's, also where the processor only imitates it: see `undertow.processor.computes`.
    backend: "eager", or "compile" for a `CompiledUNet`, by `torch.compile` (the first call of each size takes a minute
    or two, every other is faster), "packed" for one whose weights are packed once for the products of this CPU, and are
    in memory twice, "background" for one that computes eagerly until its graphs are made, or "openvino"
    for one that OpenVINO computes, on CPUs (the extra of that name), eagerly where adapters act. "auto" takes what
    `undertow bench backends` measured to be the fastest on this machine, and without a measurement "eager".
    attention: the kernel, a name of `attention.catalogue.KERNELS` ("sdpa" is PyTorch's fused one, "math" writes the
    scores out), or what one is chosen for at each call: "speed", "memory", "balanced", or an `AttentionPolicy` with a
    budget. "auto" is "speed": by what `undertow bench attention` measured on this machine, else by rules. Predictions
    are the same within rounding. quantize: as in `load`, for the U-Net.
    Errors: `CheckpointError` and its kinds, `ConfigError`, `InvalidInput`.

        unet = undertow.load_unet("digits-flow", dtype=torch.float32)
    """
    runner = None if backend == "auto" else runner_named(backend)
    require_dtype("dtype", dtype)
    require_device("device", device)
    # Channels-last memory: the layout that convolution libraries compute in, on CPUs and GPUs (benchmarks/unet.py).
    options = LoadOptions(dtype=dtype, device=device, channels_last=True, attention=attention)
    unet = load_unet_from(located(source), options, quantization=_wanted(quantize))
    _require_backend(backend, unet)
    if runner is None:
        choice = backend_for(unet, device)
        logger.info("%s", choice)
        runner = runner_named(choice.name)
    return CompiledUNet.of(unet, runner.graphs) if isinstance(runner, PredictingRunner) else unet


@checked
def load(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = "eager",
    *,
    vae_dtype: torch.dtype | None = None,
    validate_weights: bool = False,
    refiner: str | Path | None = None,
    adapter_capacity: AdapterCapacity | None = None,
    attention: str | AttentionPolicy = "auto",
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
    config: UNetConfig | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    ema: bool = False,
    mmap: bool = False,
    lazy: bool = False,
    allow_pickle: bool = False,
    quantize: Quantization | str | Mapping[str, str] | None = None,
) -> UNetService:
    """A service for the model in a .safetensors or .gguf file, a diffusers pipeline folder or at a Hub id (owner/name).

    dtype: `None` keeps the file's, but float16 becomes float32 on a CPU, as bfloat16 does, even if asked for, on a
    processor without instructions for it: the report says so. vae_dtype: `None` chooses one that does not overflow.
    validate_weights: refuse weights that are not numbers also where nothing reads them, or only some clip skip does.
    backend: as in `load_unet`, also of ControlNets and of the refiner; the report says what "auto" chose, and why.
    refiner: a second model, loaded alike, that draws the last steps (SDXL's refiner). adapter_capacity: slots for LoRA,
    so that requests with different ones share batches; without them LoRA are merged into the weights while they are
    drawn with. attention: as in `load_unet`, also of ControlNets. prediction, zero_terminal_snr, config: override what
    is found in the checkpoint. variant: of the weight files in a folder, such as "fp16". vae, text: other sources for
    these parts. ema: read the averaged weights. mmap: parameters stay views of the mapped file where type and device
    allow. lazy: weights are read, checked and left in their files until they are needed, for models that do not fit
    as a whole. allow_pickle: read pickles, in a process of their own. quantize: the weights of linear layers, while
    they are read: "int8-weights", "int8-dynamic", "float8", or patterns of layers' names with one of these or "none"
    each (`undertow.quantization`); `None` is what the files were written with, "none" gives back plain weights. LoRA
    then act in slots alone. Errors: every kind of `CheckpointError`, `ConfigError`, `InvalidInput`,
    `MissingDependency`.

        service = undertow.load("dreamshaper.safetensors", dtype=torch.float16, device="cuda")
    """
    runner, name = None if backend == "auto" else runner_named(backend), str(backend)
    require_device("device", device)
    options = {"dtype": dtype, "vae_dtype": vae_dtype, "device": device, "attention": attention}
    options |= {"validate_weights": validate_weights}
    model = _load(
        source,
        **options,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        config=config,
        variant=variant,
        vae=vae,
        text=text,
        ema=ema,
        mmap=mmap,
        lazy=lazy,
        allow_pickle=allow_pickle,
        quantization=_wanted(quantize),
    )
    _require_backend(backend, model.unet)
    if runner is None and model.unet is not None:
        choice = backend_for(model.unet, device)
        model = _with_note(model, str(choice))
        runner, name = runner_named(choice.name), choice.name
    if runner is None or (backend == "packed" and model.unet is not None and not packs_anything(model.unet)):
        if runner is not None:
            model = _with_note(model, f"nothing is packed for {model.require_unet().dtype} here: computed eagerly")
        runner, name = EAGER, "eager"
    computing = computing_of(
        source,
        dtype=dtype,
        used=None if model.unet is None else model.unet.dtype,
        vae_dtype=vae_dtype,
        prediction=prediction,
        quantize=quantize,
        backend=name,
        attention=attention,
        capacity=adapter_capacity,
    )
    options |= {"quantization": _wanted(quantize)}
    other = None if refiner is None else _load(refiner, lazy=lazy, **options)
    for part in (model, other):
        if part is not None:
            logger.info("loaded %s: %s", part.path, "; ".join((part.family, *part.report.notes)))
    return UNetService(model, other, adapter_capacity=adapter_capacity, runner=runner, computing=computing)


def _with_note(model: LoadedModel, note: str) -> LoadedModel:
    return replace(model, report=replace(model.report, notes=(*model.report.notes, note)))


def _wanted(
    quantize: Quantization | str | Mapping[str, str] | None,
) -> Quantization | Literal["stored"] | None:
    return "stored" if quantize is None else as_quantization(quantize)


def _require_backend(backend: str, unet: UNet | None) -> None:
    """Errors: `InvalidInput` for OpenVINO, which makes its own copy of plain weights, and a quantized network."""
    if backend == "openvino" and unet is not None and quantized_layers(unet):
        raise InvalidInput(
            "backend",
            "'openvino'",
            "'eager', 'compile' or 'background' for a quantized U-Net, whose products OpenVINO has none of",
            "or load it with quantize='none'",
        )


def _load(
    source: str | Path,
    *,
    dtype: torch.dtype | None,
    vae_dtype: torch.dtype | None,
    validate_weights: bool,
    **choices: Any,
) -> LoadedModel:
    model = load_model(located(source), dtype=dtype, vae_dtype=vae_dtype, channels_last=True, **choices)
    if validate_weights:
        model.report.health.require_all(model.path)
    return model
