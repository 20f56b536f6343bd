"""Running out of memory, recognized in the errors of those who ran out. Imports nothing but the standard library."""

import re

WORDS = (
    *("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory", "std::bad_alloc"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "Invalid buffer size", "could not create a memory"),
    *("Storage size calculation overflowed", "numel: integer multiplication overflow"),
)
"""What PyTorch's allocators and libraries say when there is no more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the processor or of an accelerator. By names and words, so that this module needs no
    torch: `torch.OutOfMemoryError`, `MemoryError` and NumPy's, and plain `RuntimeError`s of PyTorch's CPU allocator
    (Linux, Windows), of cuBLAS and cuDNN, of MPS, and of sizes that no address counts."""
    return "Memory" in type(error).__name__ or any(words in str(error) for words in WORDS)


def asked_memory(error: BaseException | None) -> str:
    """How much was asked for when memory ran out, as the error says it; empty where it does not."""
    found = re.search(r"(?i)(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error or ""))
    if found is None:
        return ""
    amount, unit = found.groups()
    return size_in_words(int(amount)) if unit == "bytes" else f"{amount} {unit}"


def size_in_words(count: int) -> str:
    """Bytes with a unit: 3.0 GiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    size, power = float(count), 0
    while size >= 1024 and power < len(units) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.0f} {units[power]}" if power == 0 else f"{size:.1f} {units[power]}"
