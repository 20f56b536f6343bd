"""Records that JSON describes: plain frozen dataclasses, read and written by pydantic where they come from outside.

A field says everything once: its annotation the type, its bounds and choices, its default what happens without it, the
docstring below it what it means. The JSON schema, the checks of a constructor and the command line's options all read
these. pydantic's own errors end here: a caller meets `InvalidInput` alone.
"""

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from threading import RLock
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AllowInfNan,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from undertow.doors import nearest, shown
from undertow.errors import InvalidInput

Finite = Annotated[float, AllowInfNan(False)]
"""A number that is neither NaN nor infinite."""

Names = Annotated[frozenset[str], PlainSerializer(sorted, return_type=list[str])]
"""Names in no order, which JSON has sorted."""


def read_by(convert: Callable[[Any], Any]) -> Any:
    """Part of a field's annotation: what is given goes through `convert` first, which leaves alone what it does not
    know. For what everybody understands and the field's type does not say, such as 64 for a square of 64 pixels."""
    return BeforeValidator(convert)


Bound = Ge | Gt | Le | Lt
Kind = TypeVar("Kind", bound="Record")  # not Self: jaxtyping checks the annotations of methods one by one


class _Checked(type):
    """Makes a record's constructor take and refuse what `from_json` does, in the same words."""

    def __call__(cls: type[Kind], *args: Any, **kwargs: Any) -> Kind:  # pyright: ignore[reportGeneralTypeIssues]
        places = [field.name for field in fields(cls) if not field.kw_only]  # pyright: ignore[reportArgumentType]
        if len(args) > len(places):
            value, named = f"given {shown(args[len(places)])} without a name", [one.name for one in fields(cls)]  # pyright: ignore[reportArgumentType]
            expected = f"only {', '.join(places)} without one" if places else "every value by its name"
            raise InvalidInput(cls.__name__, value, expected, f"write {named[len(places)]}=... and so on")
        return _validated(cls, {**dict(zip(places, args, strict=False)), **kwargs}, prefix=cls.argument_prefix)

    @property
    def __signature__(cls) -> inspect.Signature:
        """What editors and `help` show: the fields, not this class's own arguments."""
        own = inspect.signature(cls.__init__)
        return own.replace(parameters=list(own.parameters.values())[1:])


class Record(metaclass=_Checked):
    """The base of a frozen dataclass that JSON describes.

    argument_prefix: of its fields in the messages of its constructor. called: what messages call it where its class is
    not known to those who read them.
    """

    argument_prefix: ClassVar[str] = ""
    called: ClassVar[str] = ""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _without_conversions(handler(source))

    # Records are revalidated inside others too: Python lets a list stand for a tuple, which JSON would not write.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, revalidate_instances="always"
    )

    def to_json(self, *, embed: bool = True, files: bool = True) -> dict[str, Any]:
        """The fields as JSON has them. embed: pictures that came from no file become bytes, not only size and hash.
        files: pictures that came from a file become its path; without it they are like those that came from none.
        Errors: `InvalidInput` for values of other types."""
        return schema_of(type(self)).dump_python(
            _validated(type(self), self), mode="json", context={"embed": embed, "files": files}
        )

    @classmethod
    def from_json(cls: type[Kind], json: Mapping[str, Any]) -> Kind:
        """The record that `to_json` wrote; a field may also hold what the constructor takes. Errors: `InvalidInput`."""
        return _validated(cls, json)


def _without_conversions(schema: Any) -> Any:
    """pydantic takes True for 1, "7" for 7 and "yes" for True; who writes one where the other is expected means
    something else. A number without a fraction stays a whole one, as in JSON."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_without_conversions, schema))
    if not isinstance(schema, dict) or schema.get("function") in _GUARDED:
        return schema
    inside = {
        name: part if name in ("metadata", "serialization", "default", "config") else _without_conversions(part)
        for name, part in schema.items()
    }
    guard = {"int": _require_number, "float": _require_number, "bool": _require_boolean}.get(schema.get("type", ""))
    if guard is None:
        return inside
    return core_schema.no_info_before_validator_function(guard, cast(CoreSchema, inside))


def _require_number(given: Any) -> Any:
    if isinstance(given, bool | str | bytes):
        kind = "a boolean" if isinstance(given, bool) else "text"
        raise PydanticCustomError("number", "a number, which {kind} is not", {"kind": kind})
    return given


def _require_boolean(given: Any) -> Any:
    if isinstance(given, int | float | str | bytes) and not isinstance(given, bool):
        raise PydanticCustomError("boolean", "true or false")
    return given


_GUARDED = tuple({"type": "no-info", "function": guard} for guard in (_require_number, _require_boolean))
"""As pydantic has them inside a schema, of a record inside a record."""


def _validated(cls: type[Kind], given: Kind | Mapping[str, Any], prefix: str = "") -> Kind:
    """prefix: of the fields in messages. Errors: `InvalidInput`."""
    try:
        return schema_of(cls).validate_python(given)
    except ValidationError as err:
        raise _refusal(cls, given, err, prefix) from err


@cache
def schema_of(cls: type[Record]) -> Any:  # a TypeAdapter, whose annotation cannot be checked while tests run
    """What pydantic makes of a record, its `TypeAdapter`."""
    with _ONE_AT_A_TIME:
        return _made(cls)


@cache
def _made(cls: type[Record]) -> Any:
    return TypeAdapter(cls)


_ONE_AT_A_TIME = RLock()
"""pydantic parses the source of a record for its docstrings. In some versions of Python, 3.11.7 among them, two threads
that parse at once may get a `SystemError` (python/cpython#106905)."""


@cache
def descriptions(cls: type[Record]) -> dict[str, str]:
    """By field, what the docstring below it says."""
    properties = schema_of(cls).json_schema()["properties"]
    return {name: properties[name].get("description", "") for name in properties}


@cache
def annotations(cls: type[Record]) -> dict[str, Any]:
    """By field, its type with all that is annotated."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}  # pyright: ignore[reportArgumentType]  # a dataclass


@cache
def defaults(cls: type[Record]) -> dict[str, Any]:
    """By field, what it is without being given; fields that must be given are left out."""
    found = {}
    for field in fields(cls):  # pyright: ignore[reportArgumentType]  # a dataclass
        if field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not MISSING:
            found[field.name] = field.default
    return found


def meaning(cls: type[Record], field: str) -> str:
    """The first clause of a field's description, to stand inside a sentence."""
    first = re.split(r"\.\s|;|\.$", descriptions(cls).get(field, ""))[0].replace("\n", " ")
    return first if first[1:2].isupper() else first[:1].lower() + first[1:]


def require_fields(record: Record) -> None:
    """Errors: `InvalidInput` for a field outside its bounds or choices."""
    for name, rule in _rules(type(record)).items():
        value = getattr(record, name)
        if value is not None and not rule.allows(value):
            raise InvalidInput(record.argument_prefix + name, repr(value), rule.expected, meaning(type(record), name))


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """What a field's annotation says of a single value beyond its type."""

    choices: tuple[Any, ...] = ()
    finite: bool = False
    bounds: tuple[Bound, ...] = ()

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.finite and not abs(value) < float("inf"):  # which NaN is not either
            return False
        return all(_within(value, bound) for bound in self.bounds)

    @property
    def expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        return f"a finite number {_range(self.bounds)}".rstrip() if self.finite else _range(self.bounds)


def _range(bounds: tuple[Bound, ...]) -> str:
    """In words: "at least 1", "from 0 to below 1"."""
    match bounds:
        case (Ge(low), Le(high)):
            return f"from {low} to {high}"
        case (Ge(low), Lt(high)):
            return f"from {low} to below {high}"
        case _:
            return " and ".join(map(_in_words, bounds))


def _in_words(bound: Bound) -> str:
    match bound:
        case Ge(ge):
            return f"at least {ge}"
        case Gt(gt):
            return f"above {gt}"
        case Le(le):
            return f"at most {le}"
        case Lt(lt):
            return f"below {lt}"


def _within(value: Any, bound: Bound) -> bool:
    match bound:
        case Ge(ge):
            return value >= ge
        case Gt(gt):
            return value > gt
        case Le(le):
            return value <= le
        case Lt(lt):
            return value < lt


@cache
def _rules(cls: type[Record]) -> dict[str, _Rule]:
    found = {name: _rule(annotation) for name, annotation in annotations(cls).items()}
    return {name: rule for name, rule in found.items() if rule is not None}


def _rule(annotation: Any) -> _Rule | None:
    """None for types without bounds, and for unions of more than one type and `None`."""
    if get_origin(annotation) in (Union, UnionType):
        alternatives = [one for one in get_args(annotation) if one is not NoneType]
        return _rule(alternatives[0]) if len(alternatives) == 1 else None
    if get_origin(annotation) is Literal:
        return _Rule(choices=get_args(annotation))
    if get_origin(annotation) is not Annotated:
        return None
    metadata = annotation.__metadata__
    bounds = tuple(one for one in metadata if isinstance(one, Bound))
    finite = any(isinstance(one, AllowInfNan) for one in metadata)
    return _Rule(finite=finite, bounds=bounds) if bounds or finite else None


def _refusal(cls: type[Record], json: Any, err: ValidationError, prefix: str) -> InvalidInput:
    """The most specific of pydantic's errors in our words.

    Of a union that is the alternative which was understood furthest, whose constructor refused it rather than that it
    is of another type; a misspelled field goes before a missing one.
    """
    error = max(err.errors(include_url=False), key=_specific)
    cause = _cause(error)
    name = prefix + _dotted(error["loc"], json)
    if isinstance(cause, InvalidInput):  # of a constructor, which says what, or of a field, which does not know where
        at_field = error["loc"][-1:] == (cause.argument,)
        return InvalidInput(name, cause.value, cause.expected, cause.remedy) if at_field else cause
    owner, field, here = _place(cls, error["loc"])
    value = reprlib.repr(error["input"])
    match error["type"]:
        case "unexpected_keyword_argument":
            known, expected = list(annotations(here)), f"a field of {here.called or here.__name__}"
            return InvalidInput(name, value, expected, nearest(str(error["loc"][-1]), known))
        case "missing":
            last = str(error["loc"][-1])
            return InvalidInput(".".join(filter(None, (name, last))), "missing", "a value", meaning(here, last))
        case _:
            return InvalidInput(
                name or cls.__name__, value, _expected(error, owner, field), meaning(owner, field) if field else ""
            )


def _specific(error: ErrorDetails) -> tuple[int, bool, bool]:
    """The larger, the more an error says of what is wrong."""
    return len(error["loc"]), isinstance(_cause(error), InvalidInput), error["type"] != "missing"


def _cause(error: ErrorDetails) -> Any:
    return error.get("ctx", {}).get("error")


KINDS = {
    **dict.fromkeys(("tuple_type", "list_type", "frozen_set_type", "set_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "dataclass_type", "dataclass_exact_type"), "an object with named fields"
    ),
}
"""By pydantic's kinds of errors, what was expected where its own words are Python's."""


def _expected(error: ErrorDetails, owner: type[Record], field: str | None) -> str:
    """In the words of the field's own rule where it is that which was broken."""
    rule = _rules(owner).get(field or "")
    broken = error["type"] in ("literal_error", "finite_number") or error["type"].startswith(("greater", "less"))
    if rule is not None and broken:
        return rule.expected
    return KINDS.get(error["type"], re.sub(r"^\w+ should (be|have) ", "", error["msg"]))


def _dotted(place: tuple[int | str, ...], json: Any) -> str:
    """A place as one would type it, without pydantic's names for the alternatives of a union."""
    parts: list[str] = []
    for part in place:
        try:
            json = getattr(json, str(part)) if isinstance(json, Record) else json[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _place(cls: type[Record], place: tuple[int | str, ...]) -> tuple[type[Record], str | None, type[Record]]:
    """The innermost field that a place of pydantic's goes through, with its record, and the record that it ends in."""
    owner, field, inside = cls, None, [cls]
    for part in map(str, place):
        if entered := [one for one in inside if part in annotations(one)]:
            owner, field = entered[0], part
            inside = _records(annotations(owner)[field])
        else:  # an index, or pydantic's name for an alternative of a union
            inside = [one for one in inside if one.__name__ in re.findall(r"\w+", part)] or inside
    return owner, field, (inside or [owner])[0]


def _records(annotation: Any) -> list[type[Record]]:
    """The records that a value of this type may be made of."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return [annotation]
    return [found for part in get_args(annotation) for found in _records(part)]
