"""scikit-learn's handwritten digits: 1,797 real pictures of 8x8, bundled with the library, nothing to download.

They are the test half of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998,
https://doi.org/10.24432/C50P49): 43 people's digits, 4x4-cell counts from 0 to 16.
"""

import torch
import torch.nn.functional as F

from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.pictures.pixels import to_uint8
from undertow.training.pictures import Pictures, Split

SIZES = (8, 16, 32)
TEST_EVERY = 5
"""Of every class, in the order of the file, each fifth picture is for testing: 1,442 to train, 355 to test."""


def load_digits(*, size: int = 16, split: Split = "train") -> Pictures:
    """The digits at `size` x `size`, one channel, white ink on black, upsampled bicubically.

    Errors: `InvalidInput` for another size; `MissingDependency` without scikit-learn.
    """
    if size not in SIZES:
        raise InvalidInput("size", size, "8, 16 or 32", "the digits are 8x8 pictures")
    with optional_package("scikit-learn", "train"):
        from sklearn import datasets  # noqa: PLC0415  an extra, and slow to import
    counts, targets = datasets.load_digits(return_X_y=True)
    ink = torch.from_numpy(counts).to(torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    if size != ink.shape[-1]:
        ink = F.interpolate(ink, size=(size, size), mode="bicubic", align_corners=False)
    labels = torch.from_numpy(targets).to(torch.int64)
    chosen = is_test(labels) if split == "test" else ~is_test(labels)
    return Pictures(pixels=to_uint8(ink[chosen]), labels=labels[chosen], class_names=tuple("0123456789"))


def is_test(labels: torch.Tensor) -> torch.Tensor:
    """The fixed stratified split: True for each fifth picture of its class."""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    return rank % TEST_EVERY == TEST_EVERY - 1
