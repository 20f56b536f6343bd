"""Asks the rules, and puts what they found in order."""

from collections.abc import Sequence
from pathlib import Path

import torch

from undertow.engine.request import GenerationRequest
from undertow.errors import DamagedWeights, UndertowError
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.catalogue import RULES, rules_named
from undertow.inspection.doctor.finding import SEVERITIES, Diagnosis, Finding, Seen


@torch.inference_mode()
def diagnose(case: Case, only: Sequence[str] = ()) -> Diagnosis:
    """What is wrong. only: names of rules, or of families of rules. A rule that cannot be asked of this model, because
    it lacks a part or refuses the request, is skipped and named with the reason. Errors: `InvalidInput`."""
    rules = rules_named(only)
    found: list[Finding] = []
    skipped: dict[str, str] = {}
    for rule in rules:
        try:
            found += rule.findings(case)
        except DamagedWeights as error:
            found += _damaged(error)
            skipped[rule.name] = str(error)
        except UndertowError as error:
            skipped[rule.name] = str(error)
    once = dict.fromkeys(found)
    return Diagnosis(
        findings=tuple(sorted(once, key=lambda one: SEVERITIES.index(one.severity))),
        rules=tuple(rule.name for rule in rules),
        skipped=skipped,
        request=case.request,
    )


def diagnose_damage(error: DamagedWeights, path: Path | str) -> Diagnosis:
    """The diagnosis of a model that cannot be loaded because its weights are not numbers."""
    return Diagnosis(
        findings=tuple(_damaged(error)),
        rules=("weights-not-finite",),
        skipped=dict.fromkeys((name for name in RULES if name != "weights-not-finite"), f"{path} was not loaded"),
        request=GenerationRequest(prompt=""),
    )


def _damaged(error: DamagedWeights) -> list[Finding]:
    seen = Seen(
        evidence=str(error),
        cause="weights are damaged: by a broken download, merge or conversion, or an overflow while training",
        fix="download or convert the model again",
        module=", ".join(error.tensors[:3]),
        severity="serious",
    )
    return [RULES["weights-not-finite"].finding(seen)]
