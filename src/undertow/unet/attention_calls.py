"""The attention calls of one forward: what kernels are measured and chosen for."""

from collections import Counter
from collections.abc import Mapping

from undertow.attention.measurement import Call
from undertow.unet.config import CrossAttention, UNetConfig


def attention_calls(
    config: UNetConfig, height: int, width: int, *, rows: int = 2, tokens: int = 77, dtype: str = "float32"
) -> Mapping[Call, int]:
    """The calls of a forward of `rows` latents of this size, and how often each is made, from the largest on.

    tokens: of the text. dtype: its name without "torch.".
    """
    calls: Counter[Call] = Counter()
    for layer, kind, depth, channels in config.attention_layers():
        rows_of_map, columns = config.grid_of(layer, height, width)
        cells = rows_of_map * columns
        width_of_head = channels // kind.heads
        for keys in (cells, tokens) if isinstance(kind, CrossAttention) else (cells,):
            call = Call(rows=rows, heads=kind.heads, queries=cells, keys=keys, head_dim=width_of_head, dtype=dtype)
            calls[call] += depth if isinstance(kind, CrossAttention) else 1
    largest = sorted(calls, key=lambda call: (call.queries * call.keys, call.queries), reverse=True)
    return {call: calls[call] for call in largest}
