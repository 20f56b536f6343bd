import numpy as np
import pytest
import torch

from undertow.errors import InvalidInput
from undertow.sampling import NoiseSource
from undertow.sampling.generators import generator_for


def test_an_images_noise_is_that_of_its_seed_alone():
    together, alone = NoiseSource([3, 1, 3]), NoiseSource([1])
    for _ in range(2):  # also the second draw
        drawn = together.draw((4, 5))
        assert drawn.shape == (3, 4, 5)
        assert torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[1], alone.draw((4, 5))[0])


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_the_stream_is_torchs_for_that_seed(seed: int):
    expected = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(NoiseSource([seed]).draw((4, 5))[0], expected)


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


def brownian(seeds: list[int], low: float = 0.03, high: float = 14.6):
    return NoiseSource(seeds).brownian(torch.zeros(len(seeds), 3, 5), [high, low, 0.0])


def test_a_brownian_path_belongs_to_its_image():
    together, alone = brownian([3, 1]), brownian([1])
    like = torch.zeros(2, 3, 5)
    assert torch.equal(together.between(5.0, 2.0, like)[1], alone.between(5.0, 2.0, like[:1])[0])


def test_increments_add_up_whatever_the_order_of_asking():
    path, other = brownian([7]), brownian([7])
    like = torch.zeros(1, 3, 5)
    late = path.between(4.0, 1.0, like) * 3**0.5
    early = path.between(9.0, 4.0, like) * 5**0.5
    whole = other.between(9.0, 1.0, like) * 8**0.5
    torch.testing.assert_close(early + late, whole, rtol=0, atol=1e-2)  # the path is known to steps of 1e-6


def test_brownian_noise_is_standard_normal():
    noise = NoiseSource([5]).brownian(torch.zeros(1, 20_000), [10.0, 0.1]).between(7.0, 3.0, torch.zeros(1, 20_000))
    assert noise.mean().abs() < 0.03
    assert noise.std().item() == pytest.approx(1, abs=0.03)


def test_asking_for_paths_leaves_the_stream_of_draws_alone():
    source = NoiseSource([5])
    source.brownian(torch.zeros(1, 4), [2.0, 1.0]).between(2.0, 1.0, torch.zeros(1, 4))
    assert torch.equal(source.draw((4,)), NoiseSource([5]).draw((4,)))


def test_a_path_without_a_range_is_refused():
    with pytest.raises(InvalidInput, match="two positive numbers"):
        NoiseSource([5]).brownian(torch.zeros(1, 4), [2.0, 0.0])


@pytest.mark.parametrize("seed", [2**32, 7 + 2**32, 2**63 + 5, 2**64 - 1])
def test_all_64_bits_of_a_seed_count(seed: int):
    """PyTorch's generator would read the lower 32 alone. The words are those of Matsumoto and Nishimura's
    `init_by_array`, which NumPy has too."""
    large, small = (NoiseSource([one]).draw((4, 8, 8)) for one in (seed, seed % 2**32))
    assert not torch.equal(large, small)
    assert abs((large * small).mean()) < 0.25
    drawn = torch.empty(1000, dtype=torch.int64).random_(0, 2**31, generator=generator_for(seed))
    reference = np.random.RandomState([seed % 2**32, seed >> 32]).randint(0, 2**32, size=2000, dtype=np.uint32)
    # Each of PyTorch's takes two words, and here shows the lower bits of the second.
    assert drawn.tolist() == (reference[1::2].astype(np.int64) % 2**31).tolist()
