"""What the doctor finds, in the form of an issue log: symptom, evidence, cause, fix and prevention."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from undertow.engine.request import GenerationRequest

if TYPE_CHECKING:
    from undertow.inspection.doctor.case import Case

Family = Literal["nan", "picture", "slow", "memory", "provenance"]
"""What people complain about."""

Severity = Literal["note", "warning", "serious"]
"""serious: pictures are wrong, missing or not the same. warning: they are worse or slower than they could be. note:
good to know."""

SEVERITIES: Sequence[Severity] = ("serious", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that cures something. where: a field of the request, or an argument of `undertow.load`."""

    where: Literal["request", "load"]
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name} = {self.value!r}"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one rule measured. evidence: with numbers. module: the part that it concerns, where it is one. changes: what
    `Diagnosis` applies when it is asked to."""

    evidence: str
    cause: str
    fix: str
    module: str = ""
    severity: Severity = "warning"
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding(Seen):
    """What is wrong. rule: which found it. prevention: what would have avoided it."""

    rule: str
    family: Family
    symptom: str
    prevention: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One way in which things go wrong. check: yields what it sees, nothing on healthy ones."""

    name: str
    family: Family
    symptom: str
    prevention: str
    check: Callable[["Case"], Iterable[Seen]] = field(repr=False)

    def findings(self, case: "Case") -> list[Finding]:
        """What this rule finds."""
        return [self.finding(seen) for seen in self.check(case)]

    def finding(self, seen: Seen) -> "Finding":
        """What was seen, with what is known of its kind."""
        return Finding(
            **vars(seen), rule=self.name, family=self.family, symptom=self.symptom, prevention=self.prevention
        )


def rule(name: str, family: Family, *, symptom: str, prevention: str) -> Callable[..., Rule]:
    """A decorator that makes a rule of a function that measures."""

    def decorate(check: Callable[["Case"], Iterable[Seen]]) -> Rule:
        return Rule(name=name, family=family, symptom=symptom, prevention=prevention, check=check)

    return decorate


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Findings, the most serious first. rules: all that were chosen. skipped: those of them that could not be
    asked, each with the reason. request: what was diagnosed."""

    findings: tuple[Finding, ...]
    rules: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    request: GenerationRequest = field(repr=False)

    @property
    def serious(self) -> bool:
        """Whether pictures are wrong, missing or not the same."""
        return any(finding.severity == "serious" for finding in self.findings)

    @property
    def changes(self) -> tuple[Change, ...]:
        """Everything that can be applied, of two changes of one value the one of the more serious finding."""
        found = {(one.where, one.name): one for finding in reversed(self.findings) for one in finding.changes}
        return tuple(found.values())

    def cured_request(self) -> GenerationRequest:
        """The request with all changes of requests applied."""
        return replace(self.request, **{one.name: one.value for one in self.changes if one.where == "request"})

    def load_options(self) -> dict[str, Any]:
        """Arguments of `undertow.load` that cure what they can."""
        found = {one.name: one.value for one in self.changes if one.where == "load"}
        return {name: getattr(torch, value) if name.endswith("dtype") else value for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it but the request, as JSON has it."""
        return {
            "serious": self.serious,
            "findings": [
                {**asdict(finding), "changes": [str(change) for change in finding.changes]} for finding in self.findings
            ],
            "rules": list(self.rules),
            "skipped": dict(self.skipped),
        }
