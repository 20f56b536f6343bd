"""Which tensors of a file are textual inversions, and what prompts call them: by names and shapes alone, without torch
(`inversion_file` says which forms there are)."""

from collections.abc import Mapping
from pathlib import Path

from undertow.checkpoints.files.header import TensorInfo
from undertow.limits import EMBEDDING_BYTES

BUNDLED = "bundle_emb."
A1111 = "string_to_param."
ENCODERS: Mapping[str, str] = {
    "clip_l": "clip_l",
    "clip_g": "openclip_g",
    "text_encoders_0": "clip_l",
    "text_encoders_1": "openclip_g",
}
"""What files call an encoder, and its kind."""

WIDTHS: Mapping[int, str] = {768: "clip_l", 1024: "openclip_h", 1280: "openclip_g"}
"""The encoder that vectors of a width are for where the file names none (ViT-L/14, OpenCLIP's H and bigG)."""


def holds_inversions(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a file with these tensors holds textual inversions, and is no LoRA that brings some along."""
    return bool(inversions_in(tensors)) and not any(name.startswith(BUNDLED) for name in tensors)


def inversions_in(tensors: Mapping[str, TensorInfo], *, asked: bool = False) -> dict[tuple[str, str], dict[str, str]]:
    """The tensors of each inversion by encoder, under (form, name); an empty name is the file's. Nothing if these are
    not the tensors of inversions. asked: whether the file was given as one, so that vectors may have the width of any
    model."""
    bundles = {name.removeprefix(BUNDLED).partition(".")[0] for name in tensors if name.startswith(BUNDLED)}
    if bundles:
        found: dict[tuple[str, str], dict[str, str]] = {}
        for bundle in sorted(bundles):
            prefix = f"{BUNDLED}{bundle}."
            inside = {name.removeprefix(prefix): info for name, info in tensors.items() if name.startswith(prefix)}
            for keys in inversions_in(inside, asked=True).values():
                found["bundled with a LoRA", bundle] = {encoder: prefix + key for encoder, key in keys.items()}
        return found
    vectors = {name: info for name, info in tensors.items() if not name.startswith("string_to_token.")}
    if not vectors or not all(_is_vectors(info) for info in vectors.values()):
        return {}
    by_encoder = {kind: name for name, kind in ENCODERS.items() if name in vectors}
    if by_encoder:
        return {("named by encoder", ""): by_encoder}
    terms = [name for name in vectors if name.startswith(A1111)]
    if terms:
        return {("A1111's", ""): {"": terms[0]}} if len(terms) == 1 else {}
    if "emb_params" in vectors:
        return {("A1111's, as safetensors", ""): {"": "emb_params"}} if len(vectors) == 1 else {}
    # What names neither a tool nor an encoder is told by its width, or by a token's brackets in diffusers' scripts;
    # dots part the names of a network's parameters.
    plain = "." not in "".join(vectors)
    tokens = all(name.startswith("<") and name.endswith(">") for name in vectors)
    told = tokens or (asked and plain) or all(info.shape[-1] in WIDTHS for info in vectors.values())
    if not told or (len(vectors) > 1 and not plain):
        return {}
    return {("diffusers'", name): {"": name} for name in vectors}


def names_of(path: Path, name: str, *, alone: bool) -> tuple[str, ...]:
    """What prompts may call an inversion: by the name in its file, and if it is the only one there, by the file's."""
    return tuple(dict.fromkeys(one for one in ((name, path.stem) if alone else (name,)) if one.strip()))


def _is_vectors(info: TensorInfo) -> bool:
    return len(info.shape) in (1, 2) and "F" in info.kind and info.size_bytes <= EMBEDDING_BYTES.most
