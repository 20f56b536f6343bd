"""The layers with weights of a U-Net, by their names: what an adapter can change. Imports no torch."""

from collections.abc import Iterator

from undertow.unet.config import CrossAttention, UNetConfig

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER = (
    *("norm1", "norm2", "norm3"),
    *(f"{attention}.{part}" for attention in ("attn1", "attn2") for part in _ATTENTION),
    *("ff.net.0.proj", "ff.net.2"),
)


def layers_with_weights(config: UNetConfig) -> list[str]:
    """Names of all of them, without the table of classes."""
    attentions = {
        name: list(_attention(isinstance(kind, CrossAttention), depth))
        for name, kind, depth, _ in config.attention_layers()
    }
    return [
        f"{name}.{leaf}" if leaf else name
        for name in config.layer_names()
        for leaf in (attentions[name] if name in attentions else _leaves(name, config))
    ]


def _leaves(name: str, config: UNetConfig) -> list[str]:
    stage, _, inside = name.partition(".")
    match stage:
        case "time_embedding":
            return ["linear_1", "linear_2", *(["cond_proj"] if config.guidance_dim is not None else [])]
        case "add_embedding":
            return ["linear_1", "linear_2"]
        case "class_embedding":
            return []
        case "conv_in" | "conv_norm_out" | "conv_out":
            return [""]
        case _ if "resnets" not in inside:
            return ["conv"]
        case _:
            widened = ["conv_shortcut"] if _is_widened(stage, inside, config) else []
            return ["norm1", "conv1", "time_emb_proj", "norm2", "conv2", *widened]


def _is_widened(stage: str, inside: str, config: UNetConfig) -> bool:
    """Whether a ResBlock's input has another width than its output."""
    if stage != "down_blocks":
        return stage == "up_blocks"  # whose input is joined with a skip
    level, _, layer = inside.partition(".resnets.")
    widths = [one.channels for one in config.levels]
    return layer == "0" and level != "0" and widths[int(level)] != widths[int(level) - 1]


def _attention(crosses: bool, depth: int) -> Iterator[str]:
    if not crosses:
        yield from ("group_norm", *_ATTENTION)
        return
    yield from ("norm", "proj_in")
    for block in range(depth):
        yield from (f"transformer_blocks.{block}.{leaf}" for leaf in _TRANSFORMER)
    yield "proj_out"
