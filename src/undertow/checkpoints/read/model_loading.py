"""A whole model from one source, or with its VAE and text encoders from others.

Everything is opened and every type decided before any weight is read; then each tensor is read, looked at, converted
and copied before the next, so that the peak of memory is the model and one tensor.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from undertow.attention.policy import AttentionPolicy
from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions, PartSource
from undertow.checkpoints.identify.opening import open_checkpoint, open_parts
from undertow.checkpoints.keymap.prefixes import TITLES, Component, TextKind
from undertow.checkpoints.read.dtypes import PartDType, choose_dtypes, require_dtype, stored_dtype
from undertow.checkpoints.read.home import FileHome, let_go
from undertow.checkpoints.read.loading import LoadOptions, build_on_meta, load_network
from undertow.checkpoints.read.model import LoadedModel, LoadReport
from undertow.checkpoints.read.model_sources import ModelSources
from undertow.checkpoints.read.quantizing import FoundQuantization, find_quantization
from undertow.checkpoints.read.text_loading import read_text, require_text_width
from undertow.checkpoints.read.unet_loading import read_unet
from undertow.diffusion.parameterizations import PARAMETERIZATIONS, Parameterization
from undertow.errors import UnsupportedModel
from undertow.free_memory import naming_memory
from undertow.nn.memory_order import order_of
from undertow.quantization import Quantization
from undertow.shortage import address_room, address_words, size_in_words
from undertow.state_dicts import require_layers
from undertow.unet.config import UNetConfig
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig


@naming_memory("loading this model", "load it in a type of half the size (dtype=torch.float16, --precision f16)")
def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    ema: bool = False,
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
    config: UNetConfig | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    mmap: bool = False,
    lazy: bool = False,
    channels_last: bool = False,
    validate: bool = True,
    allow_pickle: bool = False,
    attention: str | AttentionPolicy = "auto",
    quantization: Quantization | Literal["stored"] | None = None,
) -> LoadedModel:
    """A model from a single file, a diffusers folder or a Hub id; parts that it does not have are absent.

    dtype, vae_dtype: of the parameters; `None` keeps the file's, for the VAE `dtype`'s. Where the device does not
    compute in it, or the VAE would overflow, the parameters are in float32 and the report says so
    (`dtypes.choose_dtypes`). Where the process may address less than all weights take (`ulimit -v`), they stay on disk
    as with `lazy`, and the report says that. vae, text: other sources for these parts: a file, a pipeline folder, which
    needs no U-Net, or the network's own folder. lazy: weights are read and checked, and absent afterwards
    (`FileHome`), if their file stays. quantization: of linear layers, while they are read; "stored" is what the files
    were written with, and `None` gives back the numbers that they stand for. For the rest see `OpenOptions` and
    `LoadOptions`. Errors: every kind of `CheckpointError`, `ConfigError`, `InvalidInput`, `MissingDependency`.
    """
    require_dtype("dtype", dtype)
    require_dtype("vae_dtype", vae_dtype)
    options = LoadOptions(device=device, mmap=mmap, channels_last=channels_last, validate=validate, attention=attention)
    opening = OpenOptions(
        config=config,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        ema=ema,
        variant=variant,
        prefer_plain=dtype == torch.float32,
        allow_pickle=allow_pickle,
    )
    parts_only = replace(opening, config=None, prediction=None, ema=False)
    with ExitStack() as stack:
        main = stack.enter_context(open_checkpoint(source, opening))
        parameterization = _parameterization(main)
        sources = ModelSources.of(
            main,
            None if vae is None else stack.enter_context(open_parts(vae, "vae", parts_only)),
            None if text is None else stack.enter_context(open_parts(text, "text", parts_only)),
        )
        dtypes = choose_dtypes(
            {component: stored_dtype(part) for component, part in sources.parts().items()},
            dtype=dtype,
            vae_dtype=vae_dtype,
            device=device,
            vae_config=sources.vae_config,
        )
        quantized = find_quantization(quantization, sources.parts(), sources.shapes)
        quantized.require(device)
        note = "" if lazy else _too_large(sources, dtypes)
        return _read(
            sources,
            parameterization,
            dtypes,
            options,
            asked=dtype,
            lazy=lazy or bool(note),
            note=note,
            quantized=quantized,
        )


def _parameterization(checkpoint: Checkpoint) -> Parameterization:
    """What the U-Net predicts. Errors: `UnsupportedModel` for a checkpoint that is no model that undertow runs."""
    found = checkpoint.identification
    parameterization = PARAMETERIZATIONS.get(found.prediction.value)
    if parameterization is None or parameterization.path != checkpoint.schedule.path:
        raise UnsupportedModel(
            checkpoint.path,
            f"{found.title} trained with EDM preconditioning ({found.prediction.evidence})",
            "its U-Net alone loads with undertow.load_unet",
        )
    if not checkpoint.parts.keys() - {"controlnet"}:
        raise UnsupportedModel(checkpoint.path, "a ControlNet", "load it beside a base model as an adapter")
    return parameterization


def _read(
    sources: ModelSources,
    parameterization: Parameterization,
    dtypes: Mapping[Component, PartDType],
    options: LoadOptions,
    *,
    asked: torch.dtype | None,
    lazy: bool,
    note: str,
    quantized: FoundQuantization,
) -> LoadedModel:
    """Reads the parts of the main checkpoint, then those from elsewhere; damage is reported with its own file. note:
    of a decision that was made before."""
    main, health, parts = sources.main, Health(), sources.parts()
    found, device = main.identification, torch.device("cpu" if options.device is None else options.device)
    # On a CPU weights that lie otherwise than the autoencoder's maps would turn every map around and back, which takes
    # an eighth to a quarter of a decode.
    options_of = {
        component: replace(
            options,
            dtype=chosen.dtype,
            compute_dtype=chosen.compute_dtype,
            channels_last=options.channels_last
            and (
                component != "vae"
                or device.type != "cpu"
                or order_of(chosen.compute_dtype, device) == torch.channels_last
            ),
            quantized=quantized.layers.get(component, {}),
        )
        for component, chosen in dtypes.items()
    }
    homes: dict[Component, FileHome] = {
        component: FileHome(source=part, options=options_of[component]) for component, part in parts.items()
    }
    if lazy and (lazy := all(home.is_there for home in homes.values())):
        options_of = {component: replace(one, device=None) for component, one in options_of.items()}
    text_options: dict[TextKind, LoadOptions] = {kind: options_of[kind] for kind in sources.kinds if kind in options_of}
    unet = read_unet(main, options_of["unet"], health) if "unet" in options_of else None
    if lazy and unet is not None:
        let_go(unet, options.device)
    vae = text = None
    for checkpoint in {id(one): one for one in (main, sources.vae, sources.text)}.values():
        if checkpoint is sources.vae and sources.vae_config is not None:
            vae = _read_vae(sources.vae_config, checkpoint.parts["vae"], options_of["vae"], health)
            if lazy:
                let_go(vae, options.device)
        if checkpoint is sources.text and text_options:
            text = read_text(checkpoint, text_options, health)
            for encoder in text.encoders if lazy else ():
                let_go(encoder, options.device)
        health.require(checkpoint.path)
    require_text_width(sources.text.path, found.config, text)
    notes = [*_notes(sources, dtypes, asked), *_damage(health)]
    notes += [note] if note and lazy else []
    notes += quantized.notes
    notes += dict.fromkeys(chosen.note for chosen in dtypes.values() if chosen.note is not None)
    return LoadedModel(
        path=main.path,
        schedule=main.schedule,
        parameterization=parameterization,
        latent_space=sources.latent_space,
        family=found.family,
        report=LoadReport(identification=found, health=health, notes=tuple(notes)),
        sampler=main.sampler,
        unet=unet,
        vae=vae,
        text=text,
        missing_text=sources.missing,
        homes=homes,
    )


def _too_large(sources: ModelSources, dtypes: Mapping[Component, PartDType]) -> str:
    """Why not all weights can be in memory at once; empty where they can be, or nothing limits it."""
    room = address_room()
    if room is None:
        return ""
    needed = 0
    for component, part in sources.parts().items():
        numbers = sum(part.weights.tensors[name].count for name in part.mappings)
        needed += numbers * dtypes[component].compute_dtype.itemsize
    if needed + ADDRESSED_BYTES <= room:
        return ""
    return (
        f"weights stay on disk and come when they are needed: they take {size_in_words(needed)}, and {address_words()}"
    )


ADDRESSED_BYTES = 2**29
"""Left for what work takes beside weights: libraries that are mapped when they are first used, and activations."""


def _read_vae(config: VAEConfig, source: PartSource, options: LoadOptions, health: Health) -> AutoencoderKL:
    require_layers(source.weights.path, config.layers, len(source.weights.tensors))
    return load_network(build_on_meta(lambda: AutoencoderKL(config)), source, options, health)


def _notes(sources: ModelSources, dtypes: Mapping[Component, PartDType], asked: torch.dtype | None) -> Iterator[str]:
    """What was assumed, in words."""
    found = sources.main.identification.prediction
    if found.confidence != "certain":
        yield f"prediction {found.value}: {found.confidence}, {found.evidence}"
    for component, source in sources.parts().items():
        stored = {source.weights.tensors[name].dtype for name in source.mappings}
        floats = {dtype for dtype in stored if dtype.is_floating_point}
        if asked is None and len(floats) > 1:
            yield f"{TITLES[component]}: stored in {len(floats)} types, all became {dtypes[component].dtype}"


def _damage(health: Health) -> Iterator[str]:
    """What is damaged and was loaded all the same, in words."""
    yield from (f"damaged, but never read: {finding}" for finding in health.unused)
    for finding in health.problems:
        if finding.use is not None:
            yield f"damaged, read up to clip skip {finding.use}: {finding}"
