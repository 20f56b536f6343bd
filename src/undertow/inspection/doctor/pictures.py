"""Pictures that autoencoders are tried on."""

import torch
from jaxtyping import Float
from torch import Tensor


def plain_picture(side: int) -> Float[Tensor, "1 3 side side"]:
    """White, in [-1, 1]: every model has seen white, and its own pictures may be spoilt."""
    return torch.ones(1, 3, side, side)


def shapes_picture(side: int) -> Float[Tensor, "1 3 side side"]:
    """A red disc and a blue bar before white, in [-1, 1]: large shapes with sharp edges."""
    ramp = torch.linspace(-1, 1, side)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    picture = plain_picture(side)
    disc = (rows**2 + (columns + 0.2) ** 2) < 0.25
    bar = (rows.abs() < 0.7) & ((columns - 0.6).abs() < 0.12)
    picture[0, :, disc] = torch.tensor([0.8, -0.7, -0.6])[:, None]
    picture[0, :, bar] = torch.tensor([-0.7, -0.4, 0.7])[:, None]
    return picture
