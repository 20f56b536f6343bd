"""A program that `pickled.py` runs in a separate process: pickle in, safetensors out. It imports nothing of undertow.

    python -I unpickle.py SOURCE TARGET MOST_TENSORS MOST_BYTES

Nested dictionaries become dotted names; levels called "state_dict" or "model" are removed; integers among the top
entries (global_step) become metadata; everything else that is not a tensor is dropped. A file of a kilobyte can hold
views of its few numbers as large as memory, or dictionaries that hold each other: what is more than MOST_TENSORS
entries, or than MOST_BYTES of tensors, ends it before anything is copied.
"""

import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file

STUB = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
PARAMETERS = "torch.nn.modules.container.ParameterDict"
WRAPPERS = ("state_dict", "model")
MAX_DEPTH = 6

TOO_MANY, TOO_LARGE = 3, 4
"""Exit codes of what is more than the limits that it was given."""


class ModelCheckpoint:
    """Stands for the trainer's class of that name: keeps nothing and does nothing."""

    def __setstate__(self, _state: object) -> None:
        pass


class ParameterDict(dict[str, torch.Tensor]):
    """Stands for torch's class of that name, of which old textual inversions are made: keeps its tensors."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state.get("_parameters", {}))


def main(source: str, target: str, most_tensors: int, most_bytes: int) -> None:
    """Reads `source` and writes its tensors to `target`."""
    require_size(source, most_bytes)
    torch.serialization.add_safe_globals([(ModelCheckpoint, STUB), (ParameterDict, PARAMETERS)])
    content = load(source)
    numbers = {
        str(name): str(value)
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, int) and not isinstance(value, bool)
    }
    tensors: dict[str, torch.Tensor] = {}
    total = 0
    for entries, (name, tensor) in enumerate(entries_of(unwrap(content), "", 0), 1):
        if entries > most_tensors:
            refuse(f"it has more than {most_tensors:,} entries", TOO_MANY)
        if tensor is None:
            continue
        if tensor.is_sparse or tensor.is_quantized:
            raise SystemExit(f"the tensor {name!r} is sparse or quantized")
        tensors[name] = tensor.detach()
        total += tensor.numel() * tensor.element_size()
        if total > most_bytes:
            refuse(f"its tensors have more than {most_bytes:,} bytes", TOO_LARGE)
    if not tensors:
        raise SystemExit("no tensors in it")
    tensors = {name: one.to("cpu").clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
    save_file(tensors, target, metadata={"format": "pt", **numbers})


def refuse(reason: str, code: int) -> NoReturn:
    """Ends the program with one of its own exit codes."""
    sys.stderr.write(reason)
    raise SystemExit(code)


def require_size(source: str, most_bytes: int) -> None:
    """Exits for an archive whose files would be larger than that when they are decompressed."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > most_bytes:
            refuse(f"it has {size:,} bytes when it is decompressed", TOO_LARGE)


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
    """The dictionary of tensors inside what trainers wrap around it; a pickled dictionary may contain itself."""
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def entries_of(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Every entry with its dotted name; `None` for what is no tensor."""
    if isinstance(content, Mapping) and depth < MAX_DEPTH:
        for name, value in content.items():
            yield from entries_of(value, f"{prefix}{name}.", depth + 1)
    else:
        yield prefix.removesuffix("."), content if isinstance(content, torch.Tensor) else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
