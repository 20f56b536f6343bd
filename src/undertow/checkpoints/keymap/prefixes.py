"""The prefixes under which community files keep the parts of a pipeline, and a tensor that each part always has."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.keymap.text_names import ROOT

Component = Literal["unet", "vae", "clip_l", "openclip_h", "openclip_g", "controlnet"]
TextKind = Literal["clip_l", "openclip_h", "openclip_g"]
Dialect = Literal["ldm", "diffusers", "transformers", "openclip"]

TITLES: Mapping[Component, str] = {
    "unet": "U-Net",
    "vae": "VAE",
    "clip_l": "text encoder (CLIP-L)",
    "openclip_h": "text encoder (OpenCLIP-H)",
    "openclip_g": "text encoder (OpenCLIP-bigG)",
    "controlnet": "ControlNet",
}

UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
CONTROL_PREFIXES = ("control_model.", "controlnet.", "")
SGM_FIRST = "conditioner.embedders.0.model."
"""SD2's encoder in SGM's form, or that of SDXL's refiner."""
TEXT_PREFIXES: Mapping[str, TextKind | None] = {
    "cond_stage_model.transformer.": "clip_l",
    "cond_stage_model.model.": "openclip_h",
    "conditioner.embedders.0.transformer.": "clip_l",
    SGM_FIRST: None,
    "conditioner.embedders.1.model.": "openclip_g",
    "text_encoders.clip_l.transformer.": "clip_l",
    "text_encoders.clip_h.transformer.": "openclip_h",
    "text_encoders.clip_g.transformer.": "openclip_g",
    "clip_l.transformer.": "clip_l",
    "clip_h.transformer.": "openclip_h",
    "clip_g.transformer.": "openclip_g",
    "clip_l.": "clip_l",
    "clip_h.": "openclip_h",
    "clip_g.": "openclip_g",
    "text_encoder_2.": "openclip_g",
    "text_encoder.": None,
    "": None,
}
TEXT_WIDTHS: Mapping[int, TextKind] = {768: "clip_l", 1024: "openclip_h", 1280: "openclip_g"}


def find_prefixes(
    names: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> Iterator[tuple[Component, str, Dialect]]:
    """Every part with its prefix and dialect. Parts without a prefix come last: they take all remaining names."""
    found: list[tuple[Component, str, Dialect]] = []
    for prefixes, search in ((CONTROL_PREFIXES, _control), (UNET_PREFIXES, _unet), (VAE_PREFIXES, _vae)):
        for prefix in prefixes:
            match = search(prefix, names)
            if match is not None and not (prefix == "" and any(p == "" for _, p, _ in found)):
                found.append((match[0], prefix, match[1]))
                break
    for prefix, kind in TEXT_PREFIXES.items():
        dialect, embedding = _text(prefix, names)
        if dialect is not None and not (prefix == "" and any(p == "" for _, p, _ in found)):
            known = _text_kind(prefix, tensors[names[embedding]].shape[-1], names) if kind is None else kind
            if known is not None:
                found.append((known, prefix, dialect))
    yield from sorted(found, key=lambda part: (part[1] == "", -len(part[1])))


def _text_kind(prefix: str, width: int, names: Collection[str]) -> TextKind | None:
    """The kind of a text encoder under a shared prefix: by its width, or, if that is unpublished, by the U-Net."""
    if width in TEXT_WIDTHS or prefix != SGM_FIRST:
        return TEXT_WIDTHS.get(width)
    return "openclip_g" if f"{UNET_PREFIXES[0]}label_emb.0.0.weight" in names else "openclip_h"


def _control(prefix: str, names: Collection[str]) -> tuple[Component, Dialect] | None:
    if f"{prefix}zero_convs.0.0.weight" in names:
        return "controlnet", "ldm"
    if f"{prefix}controlnet_cond_embedding.conv_in.weight" in names:
        return "controlnet", "diffusers"
    return None


def _unet(prefix: str, names: Collection[str]) -> tuple[Component, Dialect] | None:
    if f"{prefix}input_blocks.0.0.weight" in names:
        return "unet", "ldm"
    if f"{prefix}conv_in.weight" in names and f"{prefix}down_blocks.0.resnets.0.conv1.weight" in names:
        return "unet", "diffusers"
    return None


def _vae(prefix: str, names: Collection[str]) -> tuple[Component, Dialect] | None:
    if f"{prefix}decoder.mid.block_1.norm1.weight" in names or f"{prefix}encoder.mid.block_1.norm1.weight" in names:
        return "vae", "ldm"
    if f"{prefix}decoder.mid_block.resnets.0.norm1.weight" in names:
        return "vae", "diffusers"
    return None


def _text(prefix: str, names: Collection[str]) -> tuple[Dialect | None, str]:
    for root in (ROOT, ""):
        embedding = f"{prefix}{root}embeddings.token_embedding.weight"
        if embedding in names:
            return "transformers", embedding
    embedding = f"{prefix}token_embedding.weight"
    return ("openclip", embedding) if embedding in names else (None, "")
