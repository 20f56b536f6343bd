"""The suite's own guard: annotations of `undertow` are checked while tests run."""

import pytest
from jaxtyping import TypeCheckError

from undertow.errors import InvalidInput


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(TypeCheckError):
        InvalidInput(argument=3, value=0, expected="a string")
