"""Missing, unexpected and reshaped tensors, found and told in one place."""

import pytest

from undertow.errors import KeyMismatch
from undertow.state_dicts import Differences, compare_names, compare_shapes, same_but_for_trailing_ones

EXPECTED = {"a": (2, 3), "b": (4,), "c": (5, 6)}


def test_equal_shapes_have_no_differences():
    assert compare_shapes(EXPECTED, dict(EXPECTED)) == Differences()
    compare_shapes(EXPECTED, dict(EXPECTED)).require_none("model.safetensors")


def test_every_kind_of_difference_is_named():
    found = compare_shapes(EXPECTED, {"a": (3, 2), "c": (5, 6), "z": (1,), "d": (1,)})
    assert found == Differences(missing=("b",), unexpected=("d", "z"), reshaped=("a [3, 2] instead of [2, 3]",))
    with pytest.raises(KeyMismatch, match=r"1 missing \(b\); 2 unexpected \(d, z\); 1 of another shape") as caught:
        found.require_none("model.safetensors")
    assert (caught.value.missing, caught.value.unexpected) == (("b",), ("d", "z"))
    assert caught.value.path.name == "model.safetensors"


def test_names_can_be_compared_before_shapes_are_known():
    assert compare_names(EXPECTED, ["a", "z"]) == Differences(missing=("b", "c"), unexpected=("z",))


def test_names_are_shown_as_the_file_has_them():
    found = compare_shapes({"a": (1,)}, {"a": (2,)}, written=lambda name: f"text_model.{name}")
    assert found.reshaped == ("text_model.a [2] instead of [1]",)


def test_a_convolution_of_one_pixel_is_a_linear_layer_where_that_is_said():
    expected, found = {"a": (2, 3)}, {"a": (2, 3, 1, 1)}
    assert compare_shapes(expected, found).reshaped == ("a [2, 3, 1, 1] instead of [2, 3]",)
    assert compare_shapes(expected, found, same=same_but_for_trailing_ones) == Differences()
    assert compare_shapes({"a": (2, 3)}, {"a": (2, 3, 3, 3)}, same=same_but_for_trailing_ones).reshaped
