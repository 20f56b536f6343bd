import pytest

from undertow.encoders.prompts.resolve import composed, resolve, varies
from undertow.encoders.prompts.tree import (
    Alternate,
    Blend,
    Composed,
    Edit,
    Joined,
    ParsedPrompt,
    Sequence,
    Swap,
    Text,
    Weighted,
    When,
    fragments,
)
from undertow.errors import InvalidInput

A, B, C = Text("a"), Text("b"), Text("c")
EDIT = Edit(before=A, after=B, when=When(value=2, fraction=False))


def at(tree, step, steps=4):
    ((prompt, weight),) = resolve(ParsedPrompt(tree=tree), step, steps)
    assert weight == 1.0
    return prompt.tree


def test_decisions_reach_everywhere():
    for wrap in (
        lambda node: Weighted(node, 1.3),
        lambda node: Sequence((C, node)),
        lambda node: Blend(parts=(node, C), weights=(1.0, 2.0), normalize=False),
        lambda node: Joined((C, node), (1.0, 2.0)),
        lambda node: Alternate((node,)),
        lambda node: Edit(before=node, after=node, when=When(value=1, fraction=False)),
    ):
        assert varies(ParsedPrompt(tree=wrap(EDIT)))
        assert [at(wrap(EDIT), step) for step in range(4)] == [at(wrap(node), 0) for node in (A, A, B, B)]


def test_a_fraction_is_of_the_steps():
    edit = Edit(before=A, after=B, when=When(value=0.5, fraction=True))
    assert [at(edit, step, 5) for step in range(5)] == [A, A, B, B, B]


def test_alternation_goes_round():
    assert [at(Alternate((A, B, C)), step) for step in range(4)] == [A, B, C, A]


def test_swap_has_a_window():
    swap = Swap(original=A, edited=B, start=0.25, end=0.75)
    assert [at(swap, step) for step in range(4)] == [A, B, B, A]


def test_a_composition_is_taken_apart_and_keeps_its_dialect():
    prompt = ParsedPrompt(tree=Composed((EDIT, C), (1.0, 0.5)), dialect="a1111", notes=("n",))
    assert composed(prompt)
    assert resolve(prompt, 3, 4) == (
        (ParsedPrompt(tree=B, dialect="a1111", notes=("n",)), 1.0),
        (ParsedPrompt(tree=C, dialect="a1111", notes=("n",)), 0.5),
    )


def test_plain_text_stays():
    prompt = ParsedPrompt(tree=A)
    assert not varies(prompt)
    assert not composed(prompt)
    assert resolve(prompt, 0, 1) == ((prompt, 1.0),)


@pytest.mark.parametrize(("step", "steps"), [(-1, 4), (4, 4), (0, 0)])
def test_steps_that_are_not_there_are_refused(step, steps):
    with pytest.raises(InvalidInput, match="step"):
        resolve(ParsedPrompt(tree=A), step, steps)


def test_unresolved_trees_have_no_fragments():
    with pytest.raises(InvalidInput, match="resolve"):
        fragments(Sequence((A, EDIT)))


def test_weights_that_multiply_beyond_numbers_are_refused():
    with pytest.raises(InvalidInput, match="finite"):
        fragments(Weighted(Weighted(A, 1e300), 1e300))
