"""The layers that an adapter can change, and every name by which files call them.

One table per model, built from its own layers: each layer is entered under our name (diffusers', transformers') and
under LDM's, dotted and flattened by underscores. Names in files are looked up whole, never taken apart: no two layers
of a published model share an entry, though "input_blocks_1_1" and "input_blocks_11" look alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from undertow.adapters.lora.names import SHARED_PREFIXES, UNET_PREFIXES, flatten
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions
from undertow.checkpoints.identify.families import ENCODERS, family_of_structure, find_family
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.keymap import BlockLayout, unet_renaming
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.read.loading import build_on_meta
from undertow.encoders.clip import TextEncoder
from undertow.encoders.clip_config import PUBLISHED, ClipTextConfig
from undertow.errors import MissingComponent
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

NetworkName = Literal["unet", "clip_l", "openclip_h", "openclip_g"]
Shapes = Mapping[str, Sequence[int]]

STRUCTURES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sdxl_refiner": "the Stable Diffusion XL refiner",
    "pixels": "a pixel U-Net",
}

_TABLES = ("class_embedding", "token_embedding", "position_embedding")
"""Look-up tables have a weight, and no adapter in use changes them."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer with a weight. shape: [outputs, inputs, (kh, kw)], or [channels] of a norm."""

    shape: tuple[int, ...]
    bias: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layer by its network and its name in it: diffusers' for the U-Net, transformers' for text encoders."""

    network: NetworkName
    module: str

    def __str__(self) -> str:
        return f"{self.network}.{self.module}"


class Targets:
    """The layers of a model that adapters can change. family: the model's name for messages. context_dim: width of the
    text tokens."""

    def __init__(self, config: UNetConfig, unet: Shapes, encoders: Mapping[NetworkName, Shapes]):
        """unet, encoders: shapes by our names of the parameters; encoders in the pipeline's order."""
        known = find_family(config)
        structure = family_of_structure(config)
        self.family = STRUCTURES.get(structure, structure) if known is None else known.title
        self.context_dim = config.context_dim
        self.in_channels = config.in_channels
        self.encoders: tuple[NetworkName, ...] = tuple(encoders)
        self._layout = BlockLayout.of_config(config)
        self.layers: Mapping[NetworkName, Mapping[str, Target]] = {
            "unet": _layers(unet),
            **{network: _layers(shapes) for network, shapes in encoders.items()},
        }

    @classmethod
    def of(cls, unet: UNet, encoders: Sequence[TextEncoder] = ()) -> "Targets":
        """The targets of loaded networks, which may be on the meta device."""
        return cls(
            unet.config,
            {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()},
            {
                encoder.kind: {name: tuple(tensor.shape) for name, tensor in encoder.tensors().items()}
                for encoder in encoders
            },
        )

    def __getitem__(self, place: Place) -> Target:
        return self.layers[place.network][place.module]

    def find(self, network: NetworkName | None, stem: str) -> tuple[NetworkName, str] | None:
        """The layer that a file calls `stem`, with or without a prefix. network: accept only layers of this one."""
        for place in self.candidates(stem):
            if network is None or place.network == network:
                return place.network, place.module
        return None

    def candidates(self, stem: str) -> tuple[Place, ...]:
        """Every layer that `stem` can refer to: several only without a prefix, if two text encoders have it."""
        found: dict[Place, None] = {}
        for prefix, networks in self._prefixes.items():
            if stem.startswith(prefix):
                for network in networks:
                    module = self._aliases[network].get(stem.removeprefix(prefix))
                    if module is not None:
                        found[Place(network=network, module=module)] = None
        return tuple(found)

    @cached_property
    def _prefixes(self) -> Mapping[str, tuple[NetworkName, ...]]:
        prefixes: dict[str, tuple[NetworkName, ...]] = {}
        for prefix in UNET_PREFIXES:
            prefixes[prefix] = ("unet",)
        for prefix in SHARED_PREFIXES:
            prefixes[prefix] = ("unet", *self.encoders)
        for network in self.encoders:
            for prefix in text_prefixes(network, self.encoders):
                prefixes[prefix] = (network,)
        return prefixes

    @cached_property
    def _aliases(self) -> Mapping[NetworkName, Mapping[str, str]]:
        tables: dict[NetworkName, dict[str, str]] = {}
        renaming = unet_renaming(self._layout)
        for network, layers in self.layers.items():
            table = tables[network] = {}
            for module in layers:
                ldm = renaming.to_foreign(module) if network == "unet" else None
                spellings = _unet_names(module, ldm) if network == "unet" else _text_names(module)
                for spelling in spellings:
                    for name in (spelling, flatten(spelling)):
                        assert table.setdefault(name, module) == module, f"{name} is {table[name]} and {module}"
        return tables


_COMFY_NAMES: Mapping[NetworkName, str] = {"clip_l": "clip_l", "openclip_h": "clip_h", "openclip_g": "clip_g"}


def text_prefixes(network: NetworkName, encoders: Sequence[NetworkName]) -> Iterator[str]:
    """Prefixes that mean `network` in a model with these text encoders."""
    if len(encoders) == 1:
        yield "lora_te_"
    if network == encoders[0]:
        yield "text_encoder."
        yield "text_encoder.base_model.model."
        # sd-scripts writes lora_te_ for one encoder and lora_te1_ for the first of two; other trainers do the reverse.
        if network != "openclip_g":
            yield "lora_te_"
            yield "lora_te1_"
    # The refiner has SDXL's second encoder alone, and files call it the second.
    if network == "openclip_g" or network in encoders[1:]:
        yield "lora_te2_"
        yield "text_encoder_2."
        yield "text_encoder_2.base_model.model."
    for wrapper in ("transformer.", ""):
        yield f"text_encoders.{_COMFY_NAMES[network]}.{wrapper}"


def _layers(shapes: Shapes) -> dict[str, Target]:
    return {
        module: Target(shape=tuple(shape), bias=f"{module}.bias" in shapes)
        for name, shape in shapes.items()
        if name.endswith(".weight") and (module := name.removesuffix(".weight")).rpartition(".")[2] not in _TABLES
    }


def _unet_names(module: str, ldm: str | None) -> Iterator[str]:
    yield module
    if ldm is not None:
        yield ldm
    attention, _, projection = module.rpartition(".")
    if module.endswith(".to_out.0"):
        attention, projection = module.removesuffix(".to_out.0"), "to_out"
        yield f"{attention}.to_out"
    # diffusers kept LoRA in attention processors before 0.22.
    if projection in ("to_q", "to_k", "to_v", "to_out"):
        yield f"{attention}.processor.{projection}"


_OLD_TEXT_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _text_names(module: str) -> Iterator[str]:
    attention, _, projection = module.rpartition(".")
    names = [module]
    if projection in _OLD_TEXT_NAMES:
        names.append(f"{attention}.{_OLD_TEXT_NAMES[projection]}")
    for name in names:
        yield name
        # Files of transformers 5.6 and later lack it.
        if name.startswith(ROOT):
            yield name.removeprefix(ROOT)


def targets_of_source(source: str | Path, opening: OpenOptions | None = None) -> Targets:
    """The targets of a model's file, folder or Hub id, without reading weights. Errors: kinds of `CheckpointError`,
    `ConfigError`."""
    with open_checkpoint(source, opening) as checkpoint:
        return targets_of_checkpoint(checkpoint)


def targets_of_checkpoint(checkpoint: Checkpoint) -> Targets:
    """The targets of an opened checkpoint. Errors: `MissingComponent` for one without a U-Net."""
    found = checkpoint.identification
    if found.config is None:
        raise MissingComponent(checkpoint.path, "U-Net", "give a model with one")
    encoders: dict[NetworkName, Shapes] = {}
    for kind in ENCODERS[found.family]:
        if kind in checkpoint.parts:
            located = checkpoint.parts[kind]
            encoders[kind] = located.part.shapes(located.weights.tensors)
    return Targets(found.config, _unet_shapes(found.config), encoders)


def targets_of_config(config: UNetConfig) -> Targets:
    """The targets of an architecture; for a published one, including its family's text encoders."""
    family = find_family(config)
    kinds = () if family is None else ENCODERS[family.name]
    return Targets(config, _unet_shapes(config), {kind: dict(_clip_shapes(PUBLISHED[kind])) for kind in kinds})


def _unet_shapes(config: UNetConfig) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in build_on_meta(lambda: UNet(config)).state_dict().items()}


def _clip_shapes(config: ClipTextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers of a CLIP text network under transformers' names."""
    width, inner = config.width, config.intermediate
    layers = {
        **{f"self_attn.{projection}": (width, width) for projection in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
        "layer_norm1": (width,),
        "layer_norm2": (width,),
    }
    for index in range(config.layers):
        for name, shape in layers.items():
            yield f"{ROOT}encoder.layers.{index}.{name}.weight", shape
            yield f"{ROOT}encoder.layers.{index}.{name}.bias", shape[:1]
    yield f"{ROOT}final_layer_norm.weight", (width,)
    yield f"{ROOT}final_layer_norm.bias", (width,)
    yield "text_projection.weight", (config.projection, width)
