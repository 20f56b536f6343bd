"""Asks the rules, and puts what they found in order."""

from collections.abc import Sequence
from pathlib import Path

import torch

from undertow.engine.request import GenerationRequest
from undertow.errors import DamagedWeights, MissingComponent, UndertowError
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.catalogue import RULES, rules_named
from undertow.inspection.doctor.finding import SEVERITIES, Diagnosis, Finding, Seen
from undertow.inspection.doctor.host import Host
from undertow.inspection.doctor.slow import WITHOUT_MODEL

DAMAGE = "weights-not-finite"


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
            if not any(one.rule == DAMAGE for one in found):  # which has looked at every weight in memory
                found.append(_damaged(error))
            skipped[rule.name] = "weights that are needed for it are damaged"
        except MissingComponent as error:
            skipped[rule.name] = f"the model holds no {error.component}"
        except UndertowError as error:
            skipped[rule.name] = str(error)
    once = dict.fromkeys(found)
    return Diagnosis(
        findings=tuple(sorted(once, key=lambda one: SEVERITIES.index(one.severity))),
        rules=tuple(rule.name for rule in rules),
        skipped=skipped,
        request=case.request,
    )


def diagnose_damage(
    error: DamagedWeights, path: Path | str, only: Sequence[str] = (), host: Host | None = None
) -> Diagnosis:
    """The diagnosis of a model that cannot be loaded because its weights are not numbers: the damage, and what the
    rules find that look at the machine alone. only: as in `diagnose`; the damage is named in any case."""
    host = host or Host()
    names = dict.fromkeys([DAMAGE, *(rule.name for rule in rules_named(only))])
    machine = [(RULES[name], check) for name, check in WITHOUT_MODEL.items() if name in names]
    asked = {DAMAGE, *WITHOUT_MODEL}
    return Diagnosis(
        findings=(_damaged(error), *(rule.finding(seen) for rule, check in machine for seen in check(host))),
        rules=tuple(names),
        skipped=dict.fromkeys((name for name in names if name not in asked), f"{path} was not loaded"),
        request=GenerationRequest(prompt=""),
    )


def _damaged(error: DamagedWeights) -> Finding:
    seen = Seen(
        evidence=str(error),
        cause="weights are damaged: by a broken download, merge or conversion, or an overflow while training",
        fix="download or convert the model again",
        module=", ".join(error.tensors[:3]),
        severity="serious",
    )
    return RULES[DAMAGE].finding(seen)
