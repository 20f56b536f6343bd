"""The suite's own guard: the annotations of `undertow` are checked while tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from undertow.diffusion.paths import VariancePreserving
from undertow.errors import InvalidInput


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(TypeCheckError, match="parameter argument=3"):
        InvalidInput(argument=3, value=0, expected="a string")


def test_a_tensor_of_the_wrong_shape_is_refused():
    """One sigma per row is asked for; a column of them would broadcast to nonsense instead of failing."""
    x0 = torch.zeros(2, 3)
    with pytest.raises(TypeCheckError, match="parameter sigma="):
        VariancePreserving().add_noise(x0, x0, torch.ones(2, 1))
