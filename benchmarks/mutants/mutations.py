"""The mutations of a source file: mutmut's operators, applied one at a time to the text.

mutmut's own runner mutates bodies of undecorated functions alone; much of undertow is in fields, properties and tables.
Left out, because no test should hold them: annotations, decorators, imports, `raise` and `assert` with what they say,
docstrings and other strings with a space in them, `__all__`.
"""

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

SKIPPED = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Raise, cst.Assert)
STATEMENTS = (cst.BaseSmallStatement, cst.BaseCompoundStatement, cst.MatchCase, cst.ExceptHandler)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    file: str
    """Path from the root of the repository."""
    lines: tuple[int, int]
    """First and last line of the statement, or of the head of a compound one."""
    kind: str
    source: str
    """The whole file, mutated."""
    change: str
    """What it changes, `- before` and `+ after`."""

    @property
    def key(self) -> str:
        return f"{self.file}:{self.lines[0]} {self.change}"


@dataclass(frozen=True)
class Place:
    """A node that can be mutated, the statement around it, and what to put in its place."""

    file: str
    module: cst.Module
    node: cst.CSTNode
    mutated: cst.CSTNode
    statement: CodeRange

    def mutant(self) -> Mutant | None:
        """None where the result is no Python, or the same text again."""
        before = self.module.code
        after = cst.ensure_type(self.module.deep_replace(self.node, self.mutated), cst.Module).code
        try:
            ast.parse(after)
        except SyntaxError:
            return None
        if before == after:
            return None
        return Mutant(
            file=self.file,
            lines=(self.statement.start.line, self.statement.end.line),
            kind=kind(self.node),
            source=after,
            change=change(before, after),
        )


def places(root: Path, folder: str) -> list[Place]:
    """Every mutation of every file in a folder, always in the same order."""
    found: list[Place] = []
    for path in sorted((root / folder).rglob("*.py")):
        wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
        visitor = _Visitor(str(path.relative_to(root)), wrapper.module)
        wrapper.visit(visitor)
        found += visitor.places
    return found


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, file: str, module: cst.Module) -> None:
        super().__init__()
        self.file, self.module = file, module
        self.places: list[Place] = []
        self.statements: list[CodeRange] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, STATEMENTS):
            self.statements.append(self._lines(node))
        if isinstance(node, SKIPPED) or is_all(node):
            return False
        for mutated in mutations(node):
            self.places.append(Place(self.file, self.module, node, mutated, self.statements[-1]))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, STATEMENTS):
            self.statements.pop()

    def _lines(self, node: cst.CSTNode) -> CodeRange:
        """A compound statement ends where its body begins."""
        position = cst.ensure_type(self.get_metadata(PositionProvider, node), CodeRange)
        body = getattr(node, "body", None) or next(iter(getattr(node, "cases", ())), None)
        if body is None:
            return position
        return CodeRange(position.start, self.get_metadata(PositionProvider, body).start)


def mutations(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind_of_node, operator in mutation_operators:
        if isinstance(node, kind_of_node):
            if operator is not operator_string:
                yield from operator(node)
            elif isinstance(node, cst.SimpleString) and " " not in node.value and "\n" not in node.value:
                # The first puts letters around it; the others only change the case.
                yield from list(operator(node))[:1]


def is_all(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Assign) and any(
        isinstance(target.target, cst.Name) and target.target.value == "__all__" for target in node.targets
    )


KINDS = {
    "a number": (cst.BaseNumber,),
    "a string": (cst.BaseString,),
    "an argument": (cst.Call,),
    "an assigned value": (cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Lambda),
    "a branch": (cst.IfExp, cst.Match, cst.Break, cst.Continue),
}


def kind(node: cst.CSTNode) -> str:
    return next((name for name, types in KINDS.items() if isinstance(node, types)), "an operator")


def change(before: str, after: str) -> str:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return " ".join(f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-")
