"""The unit of batching: a row of a U-Net's batch."""

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from jaxtyping import Float, Float32
from torch import Tensor, nn

from undertow.adapters.kind import RowAdapters
from undertow.diffusion.guidance import Perturbation
from undertow.encoders.reading import Reading
from undertow.engine.layout import Layout
from undertow.errors import RequestFailed, UndertowError
from undertow.unet.conditioning import Conditioning
from undertow.unet.free_u import FreeU
from undertow.unet.unet import UNet

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a row comes from: the request's number in its engine, the picture of the request, the branch of guidance,
    the step over all passes, and the window of the latents. All count from 0. mark: of `RunOptions`, by which probes
    know the rows of a run; 0 is nobody's."""

    request: int = 0
    picture: int = 0
    branch: str = ""
    step: int = 0
    window: int = 0
    mark: int = 0

    def __str__(self) -> str:
        return (
            f"request {self.request}, picture {self.picture}, step {self.step}, branch {self.branch or 'none'}, "
            f"window {self.window}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One evaluation that a picture waits for.

    unet: the network that is evaluated. latents: scaled, with the extra channels of models that have some.
    conditioning: of one row. adapters: what acts in this row, if anything does. perturbation,
    free_u: what guidance does to the network in this row. observed: names of modules, as in guidance's `Branch`.
    origin: where the row comes from. reading: what each token of its context says. layout: how the picture was divided
    into windows, of which the row is one.
    """

    unet: UNet
    latents: Float[Tensor, "1 channels height width"]
    timestep: Float32[Tensor, "1"]
    conditioning: Conditioning
    adapters: RowAdapters | None = None
    perturbation: Perturbation | None = None
    free_u: FreeU | None = None
    observed: tuple[str, ...] = ()
    origin: Origin = Origin()
    reading: Reading | None = None
    layout: Layout | None = None

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward: the same network with the same weights merged, and every tensor of
        the same shape or absent.

        Contexts of unequal token counts go apart. Padding them would need a mask, and with it another graph and
        other roundings than the row has alone.
        """
        given = (getattr(self.conditioning, field.name) for field in fields(self.conditioning))
        shapes = tuple(None if value is None else tuple(value.shape[1:]) for value in given)
        return id(self.unet), tuple(self.latents.shape[1:]), self.latents.dtype, shapes, self.merged

    @property
    def padding(self) -> "Row":
        """The row as it is repeated to fill a forward up: nobody reads what comes of it."""
        return self if self.adapters is None else replace(self, adapters=self.adapters.padding)

    @property
    def merged(self) -> Hashable:
        """Equal for rows that need the same weights merged."""
        return () if self.adapters is None else self.adapters.key

    @property
    def shape(self) -> Hashable:
        """Equal for rows that pad nothing of each other."""
        return frozenset[Hashable]() if self.adapters is None else self.adapters.shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What came of a row. finite: whether every number of the prediction is. observations: by the names in the row's
    `observed`, how much attention each cell receives."""

    prediction: Float[Tensor, "1 channels height width"]
    finite: bool = True
    observations: Mapping[str, Float[Tensor, "1 _height _width"]] = field(default_factory=dict)


def networks_beside(rows: Sequence[Row]) -> list[nn.Module]:
    """The networks that run in a forward of these rows, beside their U-Net."""
    return list(dict.fromkeys(one for row in rows if row.adapters is not None for one in row.adapters.networks))


def attributed(error: BaseException, origin: object, tried: str = "", least_bytes: int | None = None) -> Exception:
    """The error with where it comes from: in a note where it is one of undertow's own, else as a `RequestFailed`.
    tried: what was done to need less memory. least_bytes: that the request needs at least."""
    if isinstance(error, UndertowError):
        error.add_note(str(origin))
        return error
    failed = RequestFailed(origin, error, tried, least_bytes)
    failed.__cause__ = error
    return failed


Steps = Generator[Sequence[Row], Sequence[Outcome], T]
"""Yields rows, receives an outcome for each, returns a T."""
