"""What was done for a request."""

from dataclasses import dataclass

from undertow.engine.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done for one request, so that it can be understood and repeated.

    sampler, schedule: what drew, and along which grid, by our names. sigmas: of the (last) pass. decisions: what the
    engine chose by itself and why. seconds: time by stage; of batches shared with other requests, its rows' part. rows:
    of the largest U-Net batch that its rows were in. cancelled: by an observer, before the end. debug: what the watches
    noted.
    """

    request: GenerationRequest
    model: str
    size: tuple[int, int]
    sigmas: tuple[float, ...]
    seconds: dict[str, float]
    sampler: str = ""
    schedule: str = ""
    rows: int = 0
    cancelled: bool = False
    decisions: tuple[str, ...] = ()
    debug: tuple[str, ...] = ()
