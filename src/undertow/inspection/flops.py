"""Operations of a forward, counted by PyTorch's own counter, with the attention kernel that it leaves out on CPUs."""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of `softmax(q k^T) v`, from shapes [batch, heads, tokens, width]."""
    return sdpa_flop_count(query, key, value)


def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Of a matrix product, from the shapes [..., inputs] and [outputs, inputs]."""
    return 2 * prod(x) * weight[0]


class CountedFlops:
    """Counts multiplications and additions while it is entered, two for each pair of them.

    `FlopCounterMode` knows no rule for the fused attention of CPUs (PyTorch 2.13: its registry has those of GPUs only)
    and would count it as nothing: 16 % of Stable Diffusion 1.5 at 512 pixels. oneDNN's matrix product (`nn.matmul`) is
    another that it does not know.
    """

    def __init__(self) -> None:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # pyright: ignore[reportPrivateUsage]
        rules: dict[Any, Any] = {fused: _attention_flops}
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            rules[torch.ops.mkldnn._linear_pointwise] = _linear_flops  # pyright: ignore[reportPrivateUsage]
        self._mode = FlopCounterMode(display=False, custom_mapping=rules)

    @property
    def total(self) -> int:
        """Until now."""
        return self._mode.get_total_flops()

    def __enter__(self) -> "CountedFlops":
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
