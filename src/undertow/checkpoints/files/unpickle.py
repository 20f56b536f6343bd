"""A program that `pickled.py` runs in a separate process: pickle in, safetensors out. It imports nothing of undertow.

    python -I unpickle.py SOURCE TARGET

Nested dictionaries become dotted names; levels called "state_dict" or "model" are removed; integers among the top
entries (global_step) become metadata; everything else that is not a tensor is dropped.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save_file

STUB = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
PARAMETERS = "torch.nn.modules.container.ParameterDict"
WRAPPERS = ("state_dict", "model")
MAX_DEPTH = 6


class ModelCheckpoint:
    """Stands for the trainer's class of that name: keeps nothing and does nothing."""

    def __setstate__(self, _state: object) -> None:
        pass


class ParameterDict(dict[str, torch.Tensor]):
    """Stands for torch's class of that name, of which old textual inversions are made: keeps its tensors."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state.get("_parameters", {}))


def main(source: str, target: str) -> None:
    """Reads `source` and writes its tensors to `target`."""
    torch.serialization.add_safe_globals([(ModelCheckpoint, STUB), (ParameterDict, PARAMETERS)])
    content = load(source)
    numbers = {
        str(name): str(value)
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, int) and not isinstance(value, bool)
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in named_tensors(unwrap(content), "", 0):
        if tensor.is_sparse or tensor.is_quantized:
            raise SystemExit(f"the tensor {name!r} is sparse or quantized")
        tensors[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    if not tensors:
        raise SystemExit("no tensors in it")
    save_file(tensors, target, metadata={"format": "pt", **numbers})


def load(source: str) -> Any:
    """The pickle's content, memory-mapped where its format allows. Exits when it contains more than tensors."""
    try:
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as err:
            if "mmap" not in str(err):
                raise
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as err:
        raise SystemExit(reason(str(err))) from None


def reason(message: str) -> str:
    """The relevant line of torch's long message."""
    telling = [line.strip() for line in message.splitlines() if "GLOBAL" in line or "Unsupported" in line]
    lines = telling or [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:300] if lines else "unreadable"


def unwrap(content: Any) -> Any:
    """The dictionary of tensors inside what trainers wrap around it."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def named_tensors(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor with its dotted name."""
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and depth < MAX_DEPTH:
        for name, value in content.items():
            yield from named_tensors(value, f"{prefix}{name}.", depth + 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
