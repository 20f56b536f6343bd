"""`make mutants` changes what tests should hold and nothing else, and a changed function is the one that runs."""

from types import FunctionType

from benchmarks.mutants.mutations import places
from benchmarks.mutants.trial import swaps_between

SOURCE = '''
"""A docstring of 3 words."""

from math import sqrt

__all__ = ["Slope", "rise"]


class Slope:
    steps: int = 5

    @property
    def height(self) -> "Length[1]":
        if self.steps < 2:
            raise ValueError(f"{self.steps + 1} is too few")
        return rise(self.steps, scale=7)


def rise(steps: int, *, scale: float) -> float:
    """The height after 9 steps."""
    assert steps > 0
    return sqrt(steps) + scale
'''


def mutants(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "slope.py").write_text(SOURCE)
    return [one for place in places(tmp_path, "room") if (one := place.mutant())]


def test_fields_properties_and_functions_change_one_at_a_time(tmp_path):
    changes = {(one.lines, one.change) for one in mutants(tmp_path)}
    assert ((10, 10), "- steps: int = 5 + steps: int = 6") in changes
    assert ((14, 15), "- if self.steps < 2: + if self.steps <= 2:") in changes
    assert ((16, 16), "- return rise(self.steps, scale=7) + return rise(self.steps, )") in changes
    assert ((22, 22), "- return sqrt(steps) + scale + return sqrt(steps) - scale") in changes


def test_texts_annotations_errors_and_asserts_stay(tmp_path):
    found = mutants(tmp_path)
    assert {one.lines[0] for one in found} == {10, 14, 16, 22}
    for kept in ("3 words", "sqrt\n", '["Slope", "rise"]', "Length[1]", "self.steps + 1", "9 steps", "steps > 0"):
        assert all(kept in one.source for one in found), kept


def test_a_function_gets_its_new_code_and_a_new_field_needs_an_import():
    names = {}
    old = compile(SOURCE, "slope.py", "exec")
    exec(old, names)
    rise = names["rise"]
    assert isinstance(rise, FunctionType)
    swaps = swaps_between(old, compile(SOURCE.replace("sqrt(steps) +", "sqrt(steps) -"), "slope.py", "exec"))
    assert swaps is not None
    ((before, after),) = swaps
    assert before == rise.__code__
    rise.__code__ = after
    assert names["Slope"]().height == 5**0.5 - 7
    assert swaps_between(old, compile(SOURCE.replace("= 5", "= 6"), "slope.py", "exec")) is None
