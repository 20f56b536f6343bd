"""How good a class-conditional model of few pictures is: right classes, diverse, not copies. Measured in pixels.

The distance between two pictures is the Euclidean distance of their pixels in [-1, 1]; a nearest neighbor is another
picture of the same set, or a training picture where samples are compared with those.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.pictures.pixels import from_uint8
from undertow.training.pictures import Pictures

COPY_QUANTILE = 0.01
"""A sample counts as a copy when it is nearer to a training picture than all but 1 % of those are to each other."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What was measured on `count` samples.

    test_accuracy: of the classifier, on real pictures that it was not trained on. accuracy: share of samples that it
    labels as asked for. sample_distance, real_distance: mean distance to the nearest neighbor of the same class, among
    as many real training pictures as samples. copies: share of samples that count as copies; test_copies: the same for
    real test pictures, which are none. copy_distance: the threshold.
    """

    count: int
    test_accuracy: float
    accuracy: float
    sample_distance: float
    real_distance: float
    copies: float
    test_copies: float
    copy_distance: float

    @property
    def diversity(self) -> float:
        """1: samples of a class differ as much as real pictures do."""
        return self.sample_distance / self.real_distance


def evaluate_samples(
    pixels: UInt8[Tensor, "count channels height width"],
    labels: Int[Tensor, "count"],
    *,
    training: Pictures,
    test: Pictures,
) -> Fidelity:
    """The figures for samples that were asked to be of classes `labels`.

    The classifier is scikit-learn's SVC (RBF kernel, C = 10) on the training pictures. Errors: `InvalidInput` for a
    class with fewer than two samples or training pictures; `MissingDependency`.
    """
    samples, real, unseen = _flat(pixels), _flat(training.pixels), _flat(test.pixels)
    classes = labels.unique().tolist()
    counts = {label: min(int((labels == label).sum()), int((training.labels == label).sum())) for label in classes}
    if min(counts.values()) < 2:
        raise InvalidInput("labels", counts, "at least two samples and two training pictures of each class")
    classifier = _classifier(real, training.labels)
    own = nearest_within(real)
    threshold = own.quantile(COPY_QUANTILE).item()
    return Fidelity(
        count=len(labels),
        test_accuracy=_share(torch.from_numpy(classifier.predict(unseen.numpy())) == test.labels),
        accuracy=_share(torch.from_numpy(classifier.predict(samples.numpy())) == labels),
        sample_distance=_mean_within(samples, labels, counts),
        real_distance=_mean_within(real, training.labels, counts),
        copies=_share(torch.cdist(samples, real).amin(1) < threshold),
        test_copies=_share(torch.cdist(unseen, real).amin(1) < threshold),
        copy_distance=threshold,
    )


def nearest_within(rows: Float[Tensor, "count dim"]) -> Float[Tensor, "count"]:
    """Distance of each row to the nearest other row."""
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # exact for near rows
    return distances.fill_diagonal_(torch.inf).amin(1)


def _mean_within(rows: Tensor, labels: Tensor, counts: dict[int, int]) -> float:
    """Mean over classes, each with the first `counts[label]` rows."""
    means = [nearest_within(rows[labels == label][:count]).mean() for label, count in counts.items()]
    return torch.stack(means).mean().item()


def _classifier(rows: Tensor, labels: Tensor):
    with optional_package("scikit-learn", "train"):
        from sklearn.svm import SVC  # noqa: PLC0415  an extra, and slow to import
    return SVC(C=10).fit(rows.numpy(), labels.numpy())


def _flat(pixels: Tensor) -> Tensor:
    return from_uint8(pixels).flatten(1)


def _share(hits: Tensor) -> float:
    return hits.to(torch.float64).mean().item()
