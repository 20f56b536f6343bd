"""Writes a pipeline as a GGUF file, as stable-diffusion.cpp's `convert` does: LDM's names, matrices quantized.

The package `gguf` writes the format and quantizes (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); which
tensors are quantized is `gguf_types.is_quantized`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from undertow.checkpoints.files.atomic import atomic_write
from undertow.checkpoints.files.dtypes import KINDS
from undertow.checkpoints.files.gguf_header import ENCODINGS, MOST_DIMENSIONS, Encoding
from undertow.checkpoints.files.gguf_types import is_quantized
from undertow.checkpoints.files.header import TensorInfo
from undertow.checkpoints.files.model_file import open_model_file
from undertow.checkpoints.write.export import ExportedPipeline
from undertow.checkpoints.write.ldm_file import LdmContent, ldm_content
from undertow.errors import ConfigError, DamagedWeights
from undertow.extras import optional_package
from undertow.shapes import AnyTensor

if TYPE_CHECKING:
    from gguf import GGUFWriter

PLAIN: Mapping[str, Encoding] = {one.kind: one for one in ENCODINGS.values() if one.kind is not None}
"""How types of one number each are stored, by what a safetensors file calls them."""

BY_NAME: Mapping[str, Encoding] = {one.name.lower(): one for one in ENCODINGS.values()}

QUANTIZATION_VERSION = 2
"""Of ggml's blocks, which the format asks for in a file that has any (`general.quantization_version`)."""

CLIP_WORDS = 49_408

WIDEST = torch.finfo(torch.float16).max
"""The scale of a block is a float16."""


class _Planned(NamedTuple):
    """One tensor of the file: how it is stored, and the shape that it has there, none of them empty."""

    shape: tuple[int, ...]
    encoding: Encoding

    @property
    def bytes_shape(self) -> tuple[int, ...]:
        """Of the stored bytes, as the package wants it."""
        *rows, last = self.shape
        return (*rows, last // self.encoding.numbers * self.encoding.block_bytes)


def write_gguf(pipeline: ExportedPipeline, path: Path, quantized: str | None) -> Path:
    """Writes the file atomically, with one tensor in memory at a time.

    quantized: a type of `QUANTIZED`; without one, every tensor keeps its own. Markers are one number here: a tensor of
    none is no GGUF. Errors: `ConfigError` for a network without LDM names, a text encoder with another tokenizer than
    CLIP's and a type that ggml does not have; `DamagedWeights` for numbers that blocks cannot hold;
    `MissingDependency`.
    """
    _require_known_text(pipeline)
    content = ldm_content(pipeline)
    planned = {name: _plan(name, info, quantized) for name, info in content.tensors.items()}
    planned |= {name: _Planned((1,), PLAIN["F32"]) for name in content.markers}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        writer = _writer()
        for key, value in content.metadata.items():
            writer.add_string(key, value)
        if quantized is not None:
            writer.add_quantization_version(QUANTIZATION_VERSION)
        _write(writer, draft, content, planned, path)
        open_model_file(draft)
    return path


def _require_known_text(pipeline: ExportedPipeline) -> None:
    """Readers of GGUF bring CLIP's tokenizer with them."""
    for kind, config in pipeline.text_configs.items():
        words = config.get("vocab_size", CLIP_WORDS)
        if words != CLIP_WORDS:
            rule = f"its tokenizer, of {words:,} words, has no place in a GGUF file: convert its folder unet alone"
            raise ConfigError("text encoder", kind, rule)


def _writer() -> "GGUFWriter":
    with optional_package("gguf", "gguf"):
        from gguf import GGUFWriter  # noqa: PLC0415  an extra
    writer = GGUFWriter(None, "")
    writer.kv_data[0].clear()  # of an architecture, by which language models are told apart: there is none to name
    return writer


def _plan(name: str, info: TensorInfo, quantized: str | None) -> _Planned:
    shape = info.shape or (1,)
    if len(shape) > MOST_DIMENSIONS:
        raise ConfigError(name, f"{len(shape)} dimensions", f"must have at most {MOST_DIMENSIONS} in a GGUF file")
    wanted = None if quantized is None else BY_NAME[quantized]
    if wanted is not None and info.dtype.is_floating_point and is_quantized(name, shape, wanted.numbers):
        return _Planned(shape, wanted)
    stored = PLAIN.get(info.kind)
    if stored is None:
        raise ConfigError(name, info.kind, f"has no place in a GGUF file, which holds {', '.join(PLAIN)}: give a dtype")
    return _Planned(shape, stored)


def _write(writer: "GGUFWriter", draft: Path, content: LdmContent, planned: Mapping[str, _Planned], path: Path) -> None:
    import numpy as np  # noqa: PLC0415  slow to import

    with optional_package("gguf", "gguf"):
        from gguf import GGMLQuantizationType  # noqa: PLC0415  an extra
    for name, one in planned.items():
        kind, stored = GGMLQuantizationType[one.encoding.name], one.bytes_shape
        size = int(np.prod(stored))
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file(draft)
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, one in planned.items():
            tensor = content.read(name) if name in content.tensors else torch.ones(1)
            writer.write_tensor_data(_stored(tensor.detach().cpu(), name, one, path))
    finally:
        writer.close()


def _stored(tensor: AnyTensor, name: str, planned: _Planned, path: Path) -> Any:
    """The bytes of a tensor, as an array of them."""
    import numpy as np  # noqa: PLC0415  slow to import

    with optional_package("gguf", "gguf"):
        from gguf import GGMLQuantizationType  # noqa: PLC0415  an extra
        from gguf.quants import quantize  # noqa: PLC0415  an extra
    if planned.encoding.kind is not None:
        assert KINDS[tensor.dtype] == planned.encoding.kind
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    if not max(-low, high) <= WIDEST:  # NaN compares false
        problem = f"numbers that {planned.encoding.name} cannot hold: {name} from {low:g} to {high:g}"
        raise DamagedWeights(path, [name], problem, "download the model again, or write it without quantizing")
    data: Any = quantize(np.ascontiguousarray(tensor.float().numpy()), GGMLQuantizationType[planned.encoding.name])
    return data
