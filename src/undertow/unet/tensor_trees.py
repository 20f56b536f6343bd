"""The tensors in what networks receive and return: records, mappings, lists and tuples of them."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

Kind = Hashable
"""Of a call: equal for those that one graph computes."""


def kind_of(value: Any) -> Kind:
    """Everything about the inputs of a network but the numbers in its tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(kind_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return tuple((name, kind_of(one)) for name, one in value.items())
    if isinstance(value, tuple | list):
        return tuple(kind_of(one) for one in value)
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All of them, in an order that is the same for values of one kind."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, Mapping | tuple | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(one)


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors, in the order of `tensors_of`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: with_tensors(getattr(value, field.name), tensors) for field in fields(value)}
        )
    if isinstance(value, Mapping):
        return {name: with_tensors(one, tensors) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(with_tensors(one, tensors) for one in value)
    return value
