"""The record: order, on and off, scales, JSON and refusals."""

import pytest

from undertow import Adapter, InvalidInput
from undertow.adapters.stack import AdapterStack

STYLE = Adapter("style.safetensors", priority=1)
CHARACTER = Adapter("character.safetensors", scale=(0.0, 0.8), priority=2)
POSE = Adapter("pose.safetensors", priority=1)


def names(stack):
    return [adapter.title for adapter in stack]


def test_higher_priorities_come_first_and_equal_ones_keep_their_order():
    assert names(AdapterStack((STYLE, CHARACTER, POSE))) == ["character", "style", "pose"]
    assert names(AdapterStack((POSE, CHARACTER, STYLE))) == ["character", "pose", "style"]
    assert names(AdapterStack((STYLE,)).add(POSE).add(CHARACTER)) == ["character", "style", "pose"]


def test_what_is_off_stays_in_the_stack():
    stack = AdapterStack((STYLE, CHARACTER))
    without = stack.with_enabled("character", False)
    assert names(without) == ["style"]
    assert len(without) == 1
    assert without.names == ("character", "style")
    assert names(without.with_enabled("character", True)) == names(stack) == ["character", "style"]
    assert without.with_enabled("character", True) == stack
    assert without["character"] == CHARACTER
    assert names(without.remove("character").add(CHARACTER)) == ["character", "style"]


def test_scales_of_a_call():
    stack = AdapterStack((STYLE, CHARACTER)).with_scales({"style": 0.25, "character": (1.0, 0.0)})
    assert [adapter.scales for adapter in stack] == [(1.0, 0.0), (0.25,)]
    assert AdapterStack((STYLE,)).with_scales({})["style"].scales == (1.0,)


def test_json_gives_the_same_stack_back():
    stack = AdapterStack(
        (STYLE, CHARACTER), strategy="weighted", weights={"style": 0.5}, budget_bytes=7, off=frozenset({"style"})
    )
    assert AdapterStack.from_json(stack.to_json()) == stack
    assert AdapterStack.from_json({}) == AdapterStack()
    ties = AdapterStack((STYLE,), strategy="ties", density=0.5)
    assert AdapterStack.from_json(ties.to_json()) == ties


def test_weights_go_with_their_adapter():
    stack = AdapterStack((STYLE, POSE), strategy="weighted", weights={"style": 0.5, "pose": 2.0})
    assert stack.remove("style").weights == {"pose": 2.0}
    assert stack.add(CHARACTER).weights == stack.weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapters": (STYLE, STYLE)}, "style twice"),
        ({"weights": {"style": 1.0}}, "none with strategy 'sum'"),
        ({"strategy": "weighted", "weights": {"poses": 1.0}}, "'poses', expected a name in the stack: style"),
        ({"strategy": "weighted", "weights": {"style": float("nan")}}, "a finite number"),
        ({"density": 0.0}, "above 0 and at most 1"),
        ({"budget_bytes": -1}, "at least 0"),
        ({"off": frozenset({"poses"})}, "'poses'"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        AdapterStack(**{"adapters": (STYLE,), **arguments})


def test_unknown_strategies_of_json_are_refused():
    with pytest.raises(InvalidInput, match="expected one of sum, normalised, weighted, ties, orthogonal, priority"):
        AdapterStack.from_json({"strategy": "ZipLoRA"})


def test_unknown_names_are_refused_everywhere():
    stack = AdapterStack((STYLE,))
    for call in (
        lambda: stack.with_enabled("pose", False),
        lambda: stack.with_scales({"pose": 1.0}),
        lambda: stack.remove("pose"),
        lambda: stack["pose"],
        lambda: stack.add(STYLE),
        lambda: AdapterStack.from_json({"stategy": "sum"}),
    ):
        with pytest.raises(InvalidInput):
            call()
    with pytest.raises(InvalidInput, match="it is empty"):
        AdapterStack().remove("pose")
