"""A labeled set of pictures in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Int64, UInt8
from torch import Tensor

from undertow.errors import InvalidInput

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures of one size with a class each.

    Kept as bytes in memory: 100,000 RGB pictures of 64x64 take 1.2 GB. class_names: by label. skipped: files that could
    not be read and were left out because the caller allowed it.
    """

    pixels: UInt8[Tensor, "count channels height width"]
    labels: Int64[Tensor, "count"]
    class_names: tuple[str, ...]
    skipped: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]


def find_class(wanted: str, class_names: tuple[str, ...]) -> int:
    """The label of a class given by its number or its name. Errors: `InvalidInput`."""
    if wanted in class_names:
        return class_names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(class_names):
        return int(wanted)
    known = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise InvalidInput(
        "class", repr(wanted), f"a number from 0 to {len(class_names) - 1} or a name", f"there are {known}"
    )
