"""Text encoders: open_clip's names and transformers' CLIPTextModel.

Source: https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/transformer.py. It keeps q, k and v in one
matrix (`in_proj_weight`, torch.nn.MultiheadAttention) and multiplies by `text_projection` from the right.
"""

import re
from collections.abc import Collection, Iterator

from undertow.checkpoints.keymap.mapping import TensorMapping
from undertow.checkpoints.keymap.renaming import Pair, Renaming

ROOT = "text_model."
"""transformers' prefix of everything but the projection. Files written by transformers 5.6 and later may lack it."""

CLIP_NAMES = re.compile(
    r"(text_model\.)?(embeddings\.(token_embedding|position_embedding)\.weight|final_layer_norm\.(weight|bias)"
    r"|encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2)|layer_norm[12])\.(weight|bias))"
    r"|text_projection\.weight"
)
"""transformers' own names, with or without the prefix."""

_LAYER = Renaming(
    [
        Pair("ln_1", "layer_norm1"),
        Pair("ln_2", "layer_norm2"),
        Pair("mlp.c_fc", "mlp.fc1"),
        Pair("mlp.c_proj", "mlp.fc2"),
        Pair("attn.out_proj", "self_attn.out_proj"),
    ]
)
_OUTSIDE = {
    "positional_embedding": f"{ROOT}embeddings.position_embedding.weight",
    "token_embedding.weight": f"{ROOT}embeddings.token_embedding.weight",
    "ln_final.weight": f"{ROOT}final_layer_norm.weight",
    "ln_final.bias": f"{ROOT}final_layer_norm.bias",
}
_PROJECTION = TensorMapping("text_projection", ("text_projection.weight",), transposed=True)
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


def openclip_to_ours(name: str) -> TensorMapping | None:
    """The mapping of one open_clip tensor to transformers' names."""
    if name in _OUTSIDE:
        return TensorMapping(name, (_OUTSIDE[name],))
    if name == _PROJECTION.foreign:
        return _PROJECTION
    match = _RESBLOCK.fullmatch(name)
    if match is None:
        return None
    layer, inside = f"{ROOT}encoder.layers.{match[1]}", match[2]
    if inside in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = inside.removeprefix("attn.in_proj_")
        return TensorMapping(name, tuple(f"{layer}.self_attn.{part}.{kind}" for part in _QUERY_KEY_VALUE))
    ours = _LAYER.to_ours(inside)
    return None if ours is None else TensorMapping(name, (f"{layer}.{ours}",))


def openclip_from_ours(names: Collection[str]) -> Iterator[TensorMapping]:
    """The mappings from the tensors `names`, named as in transformers with the prefix, to open_clip's."""
    layers = {int(match[1]) for name in names if (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.", name))}
    yield from (TensorMapping(foreign, (ours,)) for foreign, ours in _OUTSIDE.items() if ours in names)
    if _PROJECTION.ours[0] in names:
        yield _PROJECTION
    inside = [
        *(f"attn.in_proj_{kind}" for kind in ("weight", "bias")),
        *(
            f"{module}.{kind}"
            for module in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj")
            for kind in ("weight", "bias")
        ),
    ]
    for layer in sorted(layers):
        for name in inside:
            mapping = openclip_to_ours(f"transformer.resblocks.{layer}.{name}")
            if mapping is not None:
                yield mapping
