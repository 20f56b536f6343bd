"""Checks every annotation of a package while tests run: types by beartype, shapes of tensors by jaxtyping.

jaxtyping has an import hook for this. It checks the arguments of every call twice, binds them twice more for its
messages, and decorates functions inside of functions each time that they are made: 38 % of the suite's processor time.
This one decorates what a module or a class defines, and opens a scope for the names of dimensions only around functions
that name any.
"""

import ast
import functools
import sys
import typing
from collections.abc import Callable
from importlib import _bootstrap_external
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source, decode_source
from inspect import isclass
from types import ModuleType
from typing import Any, TypeVar, no_type_check
from unittest.mock import patch

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

Function = TypeVar("Function", ast.FunctionDef, ast.AsyncFunctionDef)

NAME = "_checks_annotations"
"""What the decorator is called in the modules that it is added to."""

CACHE_TAG = "annotations2"
"""Tells bytecode with the decorator from bytecode without; the number changes with `Decorated`."""

CONF = BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError)
"""An int passes for a float, as in PEP 484."""


def check_annotations(*packages: str) -> None:
    """Checks these packages, none of which has been imported yet."""
    sys.meta_path.insert(0, _Finder(packages))


def checked(thing: Any) -> Any:
    """A function that checks its arguments and what it returns; of a dataclass, the fields that it is made from. A
    protocol whose methods are looked for."""
    if isclass(thing) and getattr(thing, "_is_protocol", False):
        return typing.runtime_checkable(thing)
    if isclass(thing):
        own = vars(thing).get("__init__")
        # One that a decorator has wrapped checks its arguments itself, in undertow's own words (`undertow.doors`).
        if own is not None and "__dataclass_fields__" in vars(thing) and not hasattr(own, "__wrapped__"):
            thing.__init__ = checked(own)  # type: ignore[misc]
        return thing
    written = thing.__annotations__
    known = {name: _evaluated(hint, thing.__globals__) for name, hint in written.items()}
    thing.__annotations__ = known
    checking = beartype(thing, conf=CONF)
    thing.__annotations__ = checking.__annotations__ = written
    return _scoped(checking) if any(_names_dimensions(hint) for hint in known.values()) else checking


def _evaluated(hint: Any, namespace: dict[str, Any]) -> Any:
    """Anything may be what only type checkers import, or what is not defined yet."""
    if hint is None:
        return None
    try:
        return typing.get_type_hints(_annotated(hint), namespace, include_extras=True)["value"]
    except Exception:  # whatever evaluating an annotation may raise
        return Any


def _annotated(hint: Any) -> Callable[..., None]:
    def function(value: Any) -> None:
        del value

    function.__annotations__ = {"value": hint}
    return function


def _names_dimensions(hint: Any) -> bool:
    return (isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_names_dimensions, typing.get_args(hint)))


def _scoped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same name of a dimension means the same number in all arguments and in the result of one call."""

    @functools.wraps(function)
    def scoped(*arguments: Any, **keywords: Any) -> Any:
        with jaxtyped("context"):
            return function(*arguments, **keywords)

    return scoped


class Decorated(ast.NodeTransformer):
    """Adds the decorator: to functions as the innermost, to classes as the outermost, so that it meets plain functions
    and finished dataclasses. What is defined inside of functions, and what `typing.no_type_check` stands over, is left
    alone."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return self._decorated(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AsyncFunctionDef:
        return self._decorated(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name(NAME, ast.Load()), node))
        return node

    def _decorated(self, node: Function) -> Function:
        if not any(isinstance(one, ast.Name) and one.id == no_type_check.__name__ for one in node.decorator_list):
            node.decorator_list.append(ast.copy_location(ast.Name(NAME, ast.Load()), node))
        return node


class _Loader(SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        tree = Decorated().visit(ast.parse(decode_source(data), str(path)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, NAME, checked)
        tagged = functools.partial(cache_from_source, optimization=CACHE_TAG)
        with patch.object(_bootstrap_external, "cache_from_source", lambda path, *_, **__: tagged(path)):
            code = self.get_code(module.__name__)
        exec(code, vars(module))  # as the loader of any module does


class _Finder(MetaPathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
