import pytest
import torch

from undertow.errors import InvalidInput
from undertow.sampling import NoiseSource


def test_an_images_noise_is_that_of_its_seed_alone():
    together, alone = NoiseSource([3, 1, 3]), NoiseSource([1])
    for _ in range(2):  # also the second draw
        drawn = together.draw((4, 5))
        assert drawn.shape == (3, 4, 5)
        assert torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[1], alone.draw((4, 5))[0])


def test_the_stream_is_torchs_for_that_seed():
    expected = torch.randn(4, 5, generator=torch.Generator().manual_seed(42))
    assert torch.equal(NoiseSource([42]).draw((4, 5))[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_does_not_change_the_draw(dtype: torch.dtype):
    noise = NoiseSource([1, 2]).like(torch.zeros(2, 3, dtype=dtype))
    assert noise.dtype == dtype
    assert torch.equal(noise, NoiseSource([1, 2]).draw((3,)).to(dtype))


def test_consecutive_draws_differ():
    source = NoiseSource([1])
    assert not torch.equal(source.draw((8,)), source.draw((8,)))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    NoiseSource([1]).draw((8,))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seeds", [[], [-1], [2**64]])
def test_impossible_seeds_are_refused(seeds: list[int]):
    with pytest.raises(InvalidInput, match="seed"):
        NoiseSource(seeds)


def test_another_batch_size_is_refused():
    with pytest.raises(InvalidInput, match="2 seeds, expected 3"):
        NoiseSource([1, 2]).like(torch.zeros(3, 4))
