"""The residual block against its formula (arXiv:2006.11239, appendix B), written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.minis import randomize
from undertow.nn.resnet import ResBlock

TOLERANCE = 1e-5
"""float32 against float64: two convolutions of 3x3x12 products."""

GROUPS, EPS = 3, 0.5
"""An epsilon that is felt: of 1e-5 a wrong one would not show."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(inputs: int, outputs: int, embedding_dim: int | None = 8, dropout: float = 0.0) -> ResBlock:
    made = ResBlock(inputs, outputs, embedding_dim, norm_groups=GROUPS, norm_eps=EPS, dropout=dropout)
    randomize(made, 1)
    return made.eval()


def by_hand(made: ResBlock, x: Tensor, embedding: Tensor | None) -> Tensor:
    w = {name: value.double() for name, value in made.state_dict().items()}

    def normed(hidden: Tensor, name: str) -> Tensor:
        groups = hidden.unflatten(1, (GROUPS, -1)).flatten(2)
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        hidden = ((groups - mean) / (variance + EPS).sqrt()).view_as(hidden)
        hidden = hidden * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]
        return hidden * torch.sigmoid(hidden)

    x = x.double()
    hidden = F.conv2d(normed(x, "norm1"), w["conv1.weight"], w["conv1.bias"], padding=1)
    if embedding is not None:
        projected = embedding.double() @ w["time_emb_proj.weight"].T + w["time_emb_proj.bias"]
        hidden = hidden + projected[:, :, None, None]
    hidden = F.conv2d(normed(hidden, "norm2"), w["conv2.weight"], w["conv2.bias"], padding=1)
    if "conv_shortcut.weight" in w:
        x = F.conv2d(x, w["conv_shortcut.weight"], w["conv_shortcut.bias"])
    return x + hidden


@pytest.mark.parametrize("outputs", [6, 12])
@pytest.mark.parametrize("embedded", [True, False])
@torch.no_grad()
def test_a_block_equals_the_formula(outputs, embedded):
    made = block(6, outputs, 8 if embedded else None)
    x, embedding = normal(2, 6, 5, 4, seed=2), normal(2, 8, seed=3) if embedded else None
    torch.testing.assert_close(made(x, embedding).double(), by_hand(made, x, embedding), rtol=0, atol=TOLERANCE)


def test_only_unequal_widths_have_a_shortcut_and_only_embedded_blocks_a_projection():
    names = {name.split(".")[0] for name in block(6, 6, None).state_dict()}
    assert names == {"norm1", "conv1", "norm2", "conv2"}
    assert {name.split(".")[0] for name in block(6, 12).state_dict()} - names == {"time_emb_proj", "conv_shortcut"}


@torch.no_grad()
def test_dropout_is_before_the_second_convolution():
    """Dropping everything leaves its bias and the input."""
    made = block(6, 6, dropout=1.0 - 1e-7)
    x, embedding = normal(2, 6, 5, 4, seed=2), normal(2, 8, seed=3)
    torch.testing.assert_close(made(x, embedding).double(), by_hand(made, x, embedding), rtol=0, atol=TOLERANCE)
    torch.manual_seed(0)
    assert torch.equal(made.train()(x, embedding), x + made.conv2.bias[:, None, None])
