"""Textual inversions (arXiv:2208.01618) as people share them.

    {"<token>": [dim] or [vectors, dim], ...}         diffusers' learned_embeds, pickled or safetensors
    {"emb_params": [vectors, dim]}                    A1111's, as safetensors
    {"string_to_param": {"*": [vectors, dim]}}        A1111's, and that of the paper's own code, pickled
    {"clip_l": ..., "clip_g": ...}                    SDXL, of kohya's scripts, ComfyUI, OneTrainer
    {"text_encoders_0": ..., "text_encoders_1": ...}  SDXL, of diffusers' pivotal tuning
    bundle_emb.NAME. before any of these              in a LoRA (A1111's pull request 13568): named by NAME
    a picture                                         A1111's: see `inversion_picture`

diffusers' are named by their token, the others by their file. Pickles are read in a process of their own that can make
nothing but tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.checkpoints.files.locate import locate
from undertow.checkpoints.files.pickled import as_safetensors, is_pickle
from undertow.checkpoints.files.weights import WeightFile
from undertow.checkpoints.read.inversion_names import WIDTHS, inversions_in, names_of
from undertow.checkpoints.read.inversion_picture import is_picture, read_inversion_picture
from undertow.encoders.text_stack import TextStack
from undertow.errors import InvalidInput, UnknownCheckpoint

IN_FOLDERS = ("learned_embeds.safetensors", "learned_embeds.bin")
MODELS: Mapping[frozenset[str], str] = {
    frozenset({"clip_l"}): "Stable Diffusion 1",
    frozenset({"openclip_h"}): "Stable Diffusion 2",
    frozenset({"clip_l", "openclip_g"}): "SDXL",
    frozenset({"openclip_g"}): "SDXL's refiner",
}

Vectors = Float[Tensor, "vectors dim"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextualInversion:
    """names: what a prompt may call it, the file's own name first. vectors: by kind of encoder, in float32; "" where
    nothing tells the encoder. form: how the file says it."""

    path: Path
    names: tuple[str, ...]
    vectors: Mapping[str, Vectors]
    form: str

    @property
    def made_for(self) -> str:
        """The family of models, or "unknown"."""
        return MODELS.get(frozenset(self.vectors), "unknown")


def read_inversions(source: str | Path, *, asked: bool = True) -> tuple[TextualInversion, ...]:
    """Those in a file, a picture or a folder of diffusers'; several in a bundle or in a file with several tokens.

    asked: whether the file was given as one, so that vectors may have any width, and not only a published model's.

    Errors: `UnknownCheckpoint` for a file that holds none, `UnsafeFile`, `CorruptFile`, `InvalidInput` for a picture.
    """
    path = _file(locate(source))
    if is_picture(path):
        name, vectors = read_inversion_picture(path)
        tensors = {encoder: torch.from_numpy(numbers) for encoder, numbers in vectors.items()}
        return (_inversion(path, tensors, "a picture of A1111's", names_of(path, name, alone=True)),)
    if is_pickle(path):
        with as_safetensors(path) as converted:
            return _read(path, WeightFile(converted), asked=asked)
    return _read(path, WeightFile(path), asked=asked)


def require_made_for(inversion: TextualInversion, text: TextStack) -> None:
    """Errors: `InvalidInput` for an inversion with vectors for other encoders than these."""
    kinds = set(text.kinds)
    if set(inversion.vectors) not in (kinds, {""} if len(kinds) == 1 else kinds):
        known = MODELS.get(frozenset(kinds), "another model")
        raise InvalidInput(
            f"the embedding in {inversion.path}",
            f"made for {inversion.made_for} ({', '.join(filter(None, inversion.vectors)) or 'one encoder'})",
            f"one for {known} ({', '.join(text.kinds)})",
            "use one that was trained on a model of this family",
        )


def vectors_for(inversion: TextualInversion, text: TextStack) -> dict[str, Vectors]:
    """Its vectors by the kinds of these encoders."""
    return {kind: inversion.vectors[kind if kind in inversion.vectors else ""] for kind in text.kinds}


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
    if found is None:
        raise UnknownCheckpoint(path, "a folder without a textual inversion", f"it would be {' or '.join(IN_FOLDERS)}")
    return found


def _read(path: Path, file: WeightFile, *, asked: bool) -> tuple[TextualInversion, ...]:
    groups = inversions_in(file.tensors, asked=asked)
    if not groups:
        shown = ", ".join(list(file.tensors)[:3])
        problem = f"no textual inversion: {len(file.tensors)} tensors ({shown[:120]})"
        raise UnknownCheckpoint(path, problem, "give a file with the vectors of a word")
    found: list[TextualInversion] = []
    with file.reader() as reader:
        for (form, name), keys in groups.items():
            tensors = {encoder: reader.read(key).float().clone() for encoder, key in keys.items()}
            found.append(_inversion(path, tensors, form, names_of(path, name, alone=len(groups) == 1)))
    return tuple(found)


def _inversion(path: Path, tensors: Mapping[str, Tensor], form: str, names: tuple[str, ...]) -> TextualInversion:
    vectors = {key: value[None] if value.ndim == 1 else value for key, value in tensors.items()}
    by_kind = {key or WIDTHS.get(value.shape[1], ""): value.to(torch.float32) for key, value in vectors.items()}
    return TextualInversion(path=path, names=names, vectors=by_kind, form=form)
