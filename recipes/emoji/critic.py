"""A critic of parts of pictures (PatchGAN, arXiv:1611.07004), which decoders of latents learn from (arXiv:2012.09841).

An error per pixel is least for the mean of all that a picture may be, which is a blurred one. The critic learns to tell
decoded parts from rendered ones, and the decoder to be taken for a renderer: flat colors and sharp edges.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

LEVELS = (32, 64, 128)
"""Channels after each halving; a judgment is of 70x70 pixels."""

GROUPS = 8


class Critic(nn.Module):
    """Judges parts of pictures in [-1, 1]: above 0 for rendered ones, below for decoded ones."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, LEVELS[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for stride, inside, outside in ((2, *LEVELS[:2]), (2, *LEVELS[1:]), (1, LEVELS[-1], LEVELS[-1])):
            layers += [nn.Conv2d(inside, outside, 4, stride, padding=1), nn.GroupNorm(GROUPS, outside)]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(LEVELS[-1], 1, 4, padding=1))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 rows columns"]:
        """A judgment of each part."""
        return self.layers(x).float()

    def lesson(
        self, rendered: Float[Tensor, "batch 3 height width"], decoded: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, ""]:
        """The hinge loss by which it learns (arXiv:1705.02894, section 2.2); nothing that decodes learns from it."""
        return F.relu(1 - self(rendered)).mean() + F.relu(1 + self(decoded.detach())).mean()

    def displeasure(self, decoded: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, ""]:
        """The loss by which a decoder learns; the critic does not learn from it."""
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return -functional_call(self, fixed, (decoded,)).mean()


def balanced(
    loss: Float[Tensor, ""], other: Float[Tensor, ""], decoded: Float[Tensor, "batch 3 height width"], share: float
) -> Float[Tensor, ""]:
    """The sum of two losses of a decoded picture, the other scaled so that its gradient there is `share` of the first's
    (arXiv:2012.09841, eq. 7, at the picture in place of the last layer)."""
    pulls = [torch.autograd.grad(each, decoded, retain_graph=True)[0].norm() for each in (loss, other)]
    return loss + share * (pulls[0] / (pulls[1] + 1e-8)).detach() * other
