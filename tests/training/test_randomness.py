"""Random numbers that follow from what they are for."""

import torch

from undertow.training.randomness import seeded


def test_inside_random_numbers_are_those_of_the_purpose_and_outside_nothing_has_changed():
    torch.manual_seed(3)
    undisturbed = torch.randn(4)
    torch.manual_seed(3)
    drawn = []
    for seed, purpose in ((0, "weights"), (0, "weights"), (1, "weights"), (0, "student")):
        with seeded(seed, purpose):
            drawn.append(torch.randn(4))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    assert not drawn[0].equal(drawn[3])
    assert torch.randn(4).equal(undisturbed)
