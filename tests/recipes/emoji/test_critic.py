"""Who learns from which loss, and how two losses are balanced at a picture."""

import pytest
import torch
import torch.nn.functional as F

from recipes.emoji.critic import Critic, balanced


@pytest.fixture
def critic():
    torch.manual_seed(0)
    return Critic()


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_judgment_is_of_70_pixels_a_side(critic):
    x = torch.rand(1, 3, 128, 128).requires_grad_()
    norms_out_of_the_way = torch.nn.Sequential(*[m for m in critic.layers if not isinstance(m, torch.nn.GroupNorm)])
    norms_out_of_the_way(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_only_the_critic_learns_from_its_lesson(critic):
    decoded = pictures(1).requires_grad_()
    critic.lesson(pictures(0), decoded).backward()
    assert decoded.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_only_what_decodes_learns_from_its_displeasure(critic):
    decoded = pictures(1).requires_grad_()
    critic.displeasure(decoded).backward()
    assert decoded.grad is not None
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_it_learns_to_tell_smooth_pictures_from_noise(critic):
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    for step in range(30):
        optimizer.zero_grad()
        critic.lesson(F.avg_pool2d(pictures(2 * step), 9, 1, 4), pictures(2 * step + 1)).backward()
        optimizer.step()
    with torch.no_grad():
        smooth, noisy = F.avg_pool2d(pictures(100), 9, 1, 4), pictures(101)
        assert critic(smooth).mean() > 0.5 > -0.5 > critic(noisy).mean()
        assert critic.displeasure(smooth) < critic.displeasure(noisy), "what looks rendered pleases it"


def test_the_other_loss_pulls_by_its_share():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first, other = (2 * x).sum(), (1e4 * x[0]).sum()
    (own,) = torch.autograd.grad(first, x, retain_graph=True)
    (pull,) = torch.autograd.grad(balanced(first, other, x, 0.5), x)
    more = pull - own
    assert more.norm() == pytest.approx(float(0.5 * own.norm()))
    assert (more[0] > 0).all(), "the way the other loss pulls"
    assert torch.equal(pull[1], own[1])
