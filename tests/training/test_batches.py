import torch

from undertow.training.augmentation import Augmentation
from undertow.training.batches import Batches, indices_at
from undertow.training.objective import Flow
from undertow.training.randomness import seed_for


def test_every_epoch_shows_every_picture_once_in_another_order():
    seen = torch.cat([indices_at(step, 4, 10, seed=0) for step in range(1, 6)])  # two epochs of 10
    assert seen[:10].sort().values.tolist() == list(range(10))
    assert seen[10:].sort().values.tolist() == list(range(10))
    assert not seen[:10].equal(seen[10:])


def test_a_batch_may_be_larger_than_the_set():
    seen = indices_at(1, 25, 10, seed=0)
    assert set(torch.bincount(seen).tolist()) == {2, 3}
    assert len(seen) == 25


def test_order_and_noise_follow_from_the_seed_and_the_step(tiny_pictures, tiny_config):
    batches = Batches(pictures=tiny_pictures, config=tiny_config())
    again = Batches(pictures=tiny_pictures, config=tiny_config())
    other = Batches(pictures=tiny_pictures, config=tiny_config(seed=1))
    batches.at(1)  # what was drawn before does not matter
    first, same = batches.at(5), again.at(5)
    for name in ("x0", "labels", "noise", "u"):
        assert getattr(first, name).equal(getattr(same, name)), name
        assert not getattr(first, name).equal(getattr(batches.at(6), name)), name
        assert not getattr(first, name).equal(getattr(other.at(5), name)), name


def test_several_devices_together_see_the_batch_of_one(tiny_pictures, tiny_config):
    config = tiny_config(augmentation=Augmentation(rotation=10, background=-1.0))
    whole = Batches(pictures=tiny_pictures, config=config).at(3)
    parts = [Batches(pictures=tiny_pictures, config=config, rank=rank, count=2).at(3) for rank in range(2)]
    for name in ("x0", "labels", "noise", "u"):
        joined = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        assert joined.equal(getattr(whole, name)), name


def test_pictures_are_in_minus_one_to_one_with_their_labels(tiny_pictures, tiny_config):
    config = tiny_config(batch_size=500, label_dropout=0.3)
    batch = Batches(pictures=tiny_pictures, config=config).at(1)
    assert batch.x0.min() == -1
    assert batch.x0.max() == 1
    chosen = tiny_pictures.labels[indices_at(1, 500, len(tiny_pictures), config.seed)]
    dropped = batch.labels == 10
    assert 0.2 < dropped.double().mean() < 0.4
    assert batch.labels[~dropped].equal(chosen[~dropped])


def test_levels_of_noise_are_drawn_as_the_objective_says(tiny_pictures, tiny_config):
    for objective, middle in ((Flow(mean=2.0, std=0.01), 0.8808), (Flow(mean=-2.0, std=0.01), 0.1192)):
        u = Batches(pictures=tiny_pictures, config=tiny_config(objective=objective)).at(1).u
        torch.testing.assert_close(u, torch.full_like(u, middle), rtol=0, atol=0.01)  # the sigmoid of the mean


def test_seeds_of_unlike_purposes_differ():
    seeds = {seed_for(seed, purpose, step) for seed in (0, 1) for purpose in ("batch", "order") for step in range(100)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
