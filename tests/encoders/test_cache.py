import pytest

from undertow.encoders.cache import RecentlyUsed
from undertow.errors import InvalidInput


def test_the_least_recently_used_is_forgotten():
    cache = RecentlyUsed[int](2)
    cache.keep("a", 1)
    cache.keep("b", 2)
    assert cache.find("a") == 1
    cache.keep("c", 3)
    assert [cache.find(key) for key in "abc"] == [1, None, 3]
    assert len(cache) == 2


def test_size_zero_keeps_nothing():
    cache = RecentlyUsed[int](0)
    cache.keep("a", 1)
    assert cache.find("a") is None


def test_a_negative_size_is_refused():
    with pytest.raises(InvalidInput):
        RecentlyUsed(-1)


def test_clear():
    cache = RecentlyUsed[int](1)
    cache.keep("a", 1)
    cache.clear()
    assert cache.find("a") is None
