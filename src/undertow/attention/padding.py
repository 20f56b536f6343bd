"""Head widths that a kernel takes: zeros are added in front of it and cut off behind it (R138)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

AnyHeads = Float[Tensor, "batch heads tokens _head_dim"]


def pad_head_dim(heads: AnyHeads, multiple: int) -> AnyHeads:
    """`heads` with zeros up to the next multiple of the kernel's width, 40 -> 64 for 32; itself where nothing lacks.

    Zeros change no score, and add columns of zeros to the output. The scale must stay that of the true width.
    """
    lacking = -heads.shape[-1] % multiple
    return F.pad(heads, (0, lacking)) if lacking else heads


def cut_head_dim(heads: AnyHeads, head_dim: int) -> AnyHeads:
    """The first `head_dim` columns."""
    return heads[..., :head_dim]
