"""Which parts of a pipeline a file holds, and which of our tensors each of its tensors fills.

Community files are pipelines, single networks, or anything between. A part is recognized by one tensor that it always
has, under one of the known prefixes. Every other tensor is then covered by the rules of a part, on the list of names
that are safe to ignore, or unknown.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.keymap import (
    CLIP_NAMES,
    OLD_ATTENTION,
    BlockLayout,
    TensorMapping,
    control_renaming,
    openclip_to_ours,
    unet_renaming,
    vae_mapping,
    vae_renaming,
)
from undertow.checkpoints.keymap.prefixes import Component, Dialect, find_prefixes
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.keymap.vae_names import vae_levels

WRAPPERS = re.compile(r"((state_dict|module|_orig_mod)\.)+")
"""Prefixes that training code leaves in front of every name."""

MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "global_step")
"""Tensors, mostly empty, whose presence shows how the network was trained."""

IGNORED = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_.*|posterior_.*|logvar|lvlb_weights|denoiser\.sigmas"
    r"|model_ema\..*|embedding_manager.*|epoch|callbacks|pytorch-lightning_version"
    r"|(cond_stage_model|conditioner\.embedders\.\d+)\..*(logit_scale|position_ids|attn_mask)"
)
"""What training leaves in pipeline files (schedule tables, EMA weights, counters); matched against whole names."""

IGNORED_INSIDE: Mapping[Component, re.Pattern[str]] = {
    "vae": re.compile(r"loss\..*|model_ema\..*"),
    **dict.fromkeys(
        ("clip_l", "openclip_h", "openclip_g"),
        re.compile(
            r"(text_model\.)?embeddings\.position_ids|logit_scale|attn_mask|vision_model\..*|visual\..*"
            r"|visual_projection\.weight"
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component of a file. mappings: what each of the file's tensors fills, by name; unexpected: names without a
    rule."""

    component: Component
    dialect: Dialect
    prefix: str
    mappings: Mapping[str, TensorMapping]
    unexpected: tuple[str, ...] = ()

    def shapes(self, tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that the part fills, by our names."""
        return {
            ours: shape
            for name, mapping in self.mappings.items()
            for ours, shape in mapping.split_shape(tensors[name].shape)
        }


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The parts of a file. All names are the file's own."""

    parts: Mapping[Component, Part]
    markers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """The file's names, by their form without the prefixes of training code."""


def read_contents(tensors: Mapping[str, TensorInfo]) -> Contents:
    """Sorts a file's tensors into parts."""
    bare = {WRAPPERS.sub("", name, count=1) if WRAPPERS.match(name) else name: name for name in tensors}
    left = dict(bare)
    markers = tuple(left.pop(name) for name in MARKERS if name in left)
    parts: dict[Component, Part] = {}
    for component, prefix, dialect in find_prefixes(bare, tensors):
        if component in parts:
            continue
        inside = {name.removeprefix(prefix): name for name in left if name.startswith(prefix)}
        if prefix == "":
            inside = {short: name for short, name in inside.items() if not IGNORED.fullmatch(name)}
        part = make_part(component, prefix, dialect, {short: left.pop(name) for short, name in inside.items()})
        parts[component] = part
    ignored = [left.pop(name) for name in list(left) if IGNORED.fullmatch(name)]
    return Contents(parts=parts, markers=markers, ignored=tuple(ignored), unknown=tuple(left.values()), names=bare)


def make_part(component: Component, prefix: str, dialect: Dialect, inside: Mapping[str, str]) -> Part:
    """Maps the tensors of one component. inside: the file's names, by their form without the prefix."""
    ignored = IGNORED_INSIDE.get(component)
    translate = _translator(component, dialect, inside)
    mappings: dict[str, TensorMapping] = {}
    unexpected: list[str] = []
    for short, name in inside.items():
        if ignored is not None and ignored.fullmatch(short):
            continue
        mapping = translate(short)
        if mapping is None:
            unexpected.append(name)
        else:
            mappings[name] = mapping
    return Part(component=component, dialect=dialect, prefix=prefix, mappings=mappings, unexpected=tuple(unexpected))


def _translator(
    component: Component, dialect: Dialect, names: Collection[str]
) -> Callable[[str], TensorMapping | None]:
    match component, dialect:
        case "unet", "ldm":
            renaming = unet_renaming(BlockLayout.of_ldm_names(names))
            return lambda name: None if (ours := renaming.to_ours(name)) is None else TensorMapping(name, (ours,))
        case "controlnet", "ldm":
            renaming = control_renaming(names)
            return lambda name: None if (ours := renaming.to_ours(name)) is None else TensorMapping(name, (ours,))
        case "vae", "ldm":
            renaming = vae_renaming(vae_levels(names))
            return lambda name: None if (ours := renaming.to_ours(name)) is None else vae_mapping(name, ours)
        case "vae", "diffusers":
            return lambda name: vae_mapping(name, OLD_ATTENTION.to_ours(name) or name)
        case _, "transformers":
            return _transformers_name
        case _, "openclip":
            return openclip_to_ours
        case _:
            return lambda name: TensorMapping(name, (name,))


def _transformers_name(name: str) -> TensorMapping | None:
    if not CLIP_NAMES.fullmatch(name):
        return None
    rooted = name if name.startswith((ROOT, "text_projection.")) else f"{ROOT}{name}"
    return TensorMapping(name, (rooted,))
