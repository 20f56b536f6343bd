"""The types of tensors in safetensors files, as torch has them."""

from collections.abc import Mapping

import torch

from undertow.checkpoints.files.header import TensorInfo

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the format's names; the same as in `header.ITEM_BYTES`."""

KINDS: Mapping[torch.dtype, str] = {dtype: kind for kind, dtype in DTYPES.items()}
"""The format's names."""


def tensor_info(dtype: torch.dtype, shape: tuple[int, ...]) -> TensorInfo:
    """What a header says of a tensor of this type."""
    return TensorInfo(KINDS[dtype], shape)
