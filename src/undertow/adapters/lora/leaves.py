"""Names in LoRA files: the layer (the stem), and which of its tensors this is (the leaf).

Files of all trainers are read by one table of endings, longest first; a file may mix dialects, so each layer has its
own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_ENDINGS: Mapping[str, str] = {
    # LoRA: kohya, LyCORIS; diffusers since 0.22, its processors before, its text encoders; some trainers' PEFT.
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    # LyCORIS.
    **{
        f".{leaf}": leaf
        for leaf in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("dora_scale", "diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "rescale", "on_input"),
        )
    },
    **{f".{leaf}.weight": leaf for leaf in ("a1", "a2", "b1", "b2", "bm")},
    ".weight": "weight",
}
_PEFT = re.compile(
    r"(?P<stem>.+)\.lora_(?P<which>A|B|magnitude_vector)(\.(?!weight$|bias$)[^.]+)?(\.(?P<kind>weight|bias))?"
)
"""PEFT writes the adapter's name in between, if it is asked to."""

_PEFT_LEAVES = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}

UNREAD_ENDINGS: Mapping[str, str] = {
    ".set_weight": "whole weights in place of changes",
    ".reshape_weight": "layers that change their size",
    ".bias_indices": "sparse residuals of LyCORIS' extraction",
    ".bias_values": "sparse residuals of LyCORIS' extraction",
    ".bias_size": "sparse residuals of LyCORIS' extraction",
    ".oft_diag": "OFT of LyCORIS before version 2",
    ".ia3_l": "IA3 in PEFT's form",
    ".oft_r": "OFT in PEFT's form",
    ".oft_R.weight": "OFT in PEFT's form",
    ".lora_embedding_A": "LoRA of token embeddings",
    ".lora_embedding_B": "LoRA of token embeddings",
    ".lora_E": "AdaLoRA",
}
"""Endings that are recognized and not read, and the algorithm that they show."""

_EMBEDDING = re.compile(r"bundle_emb\.(?P<name>.+?)\.(?P<inside>string_to_param\.\*|clip_l|clip_g)")

_NUMBERED = re.compile(r"(?P<stem>(unet|text_encoder):\d+):(?P<leaf>up|down)")
"""cloneofsimo/lora numbers the layers, see `numbered.py`, and marks textual inversions in the header."""
EMBEDDING_MARK = "<embed>"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The tensors of one layer: the file's names by leaf. dialect: who writes such names."""

    stem: str
    dialect: str
    leaves: Mapping[str, str]

    @property
    def from_peft(self) -> bool:
        """Whether its names are PEFT's, whose strength is written elsewhere."""
        return ".lora_A" in self.leaves.get("down", "")


@dataclass(kw_only=True)
class LoraNames:
    """A file's names in order. embeddings: of bundled textual inversions, by name and encoder ("*" for the only one).
    unread: recognized and not read, with what they belong to. unknown: the rest."""

    layers: dict[str, Layer] = field(default_factory=dict)
    embeddings: dict[str, dict[str, str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def read_lora_names(names: Iterable[str], metadata: Mapping[str, str] | None = None) -> LoraNames:
    """Sorts the names of a file's tensors. metadata: the file's, which may call some of them textual inversions."""
    marked = () if metadata is None else {name for name, value in metadata.items() if value == EMBEDDING_MARK}
    found = LoraNames()
    leaves: dict[str, dict[str, str]] = {}
    dialects: dict[str, str] = {}
    for name in names:
        bundled = _EMBEDDING.fullmatch(name)
        if bundled is not None:
            inside = bundled["inside"].removeprefix("string_to_param.")
            found.embeddings.setdefault(bundled["name"], {})[inside] = name
            continue
        if name in marked:
            found.embeddings[name] = {"*": name}
            continue
        unread = next((what for ending, what in UNREAD_ENDINGS.items() if name.endswith(ending)), None)
        if unread is not None:
            found.unread[name] = unread
            continue
        split = split_name(name)
        if split is None:
            found.unknown.append(name)
            continue
        stem, leaf, ending = split
        leaves.setdefault(stem, {})[leaf] = name
        if leaf != "alpha":
            dialects.setdefault(stem, _dialect(stem, ending))
    for stem, own in leaves.items():
        # An IA3 vector is called as any weight is; only its mark tells it.
        if own.keys() == {"weight"}:
            found.unknown += own.values()
        else:
            found.layers[stem] = Layer(stem=stem, dialect=dialects.get(stem, _dialect(stem, ".alpha")), leaves=own)
    return found


def split_name(name: str) -> tuple[str, str, str] | None:
    """Stem, leaf and the ending as the file spells it; `None` for a name with no known ending."""
    match = _PEFT.fullmatch(name)
    if match is not None:
        leaf = _PEFT_LEAVES[match["which"]]
        if match["kind"] == "bias":
            return None if leaf != "up" else (match["stem"], "up_bias", ".lora_B.bias")
        return match["stem"], leaf, f".lora_{match['which']}"
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        return numbered["stem"], numbered["leaf"], f":{numbered['leaf']}"
    for ending in _LONGEST_FIRST:
        if name.endswith(ending) and len(name) > len(ending):
            return name.removesuffix(ending), _ENDINGS[ending], ending
    return None


_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)

_PREFIXES: Mapping[str, str] = {
    "lora_unet_": "kohya",
    "lora_te": "kohya",
    "lycoris_": "LyCORIS",
    "base_model.model.": "PEFT",
    "unet.base_model.model.": "PEFT",
    "text_encoder.base_model.model.": "PEFT",
    "text_encoder_2.base_model.model.": "PEFT",
    "diffusion_model.": "ComfyUI",
    "model.diffusion_model.": "ComfyUI",
    "text_encoders.": "ComfyUI",
}
LDM_LAYER = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)[._]\d.*")


def _dialect(stem: str, ending: str) -> str:
    for prefix, dialect in _PREFIXES.items():
        if stem.startswith(prefix):
            spelled = " (LDM names)" if dialect == "kohya" and LDM_LAYER.match(stem.removeprefix(prefix)) else ""
            return dialect + spelled
    if ending.startswith(":"):
        return "cloneofsimo/lora"
    if ending.startswith((".lora_A", ".lora_B", ".lora_magnitude")):
        return "diffusers (PEFT)"
    if ending.startswith((".lora.", "_lora.", ".lora_linear_layer.")):
        return "diffusers (before PEFT)"
    return "dotted names"
