"""What suits the model of a case with its adapters: the one place from which rules know whether it was distilled to few
steps, and what they advise."""

from collections.abc import Mapping
from typing import Any

from undertow.checkpoints.identify.few_steps import ADAPTED, SUGGESTED, few_steps_in_name
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.finding import Change
from undertow.known_names import require_sampler
from undertow.schedulers.model_sampler import ModelSampler

CONSISTENCY_SAMPLERS = ("lcm", "tcd")
"""Whose every estimate is a picture, as that of such models is."""

LEVELS: Mapping[str, str] = {name: str(ADAPTED[name]) for name in ("sampler", "schedule")}
"""Of distilled weights without a folder that says how they are drawn, such as a LoRA of them."""

OPTIONS: Mapping[str, str] = {
    "sampler": "sampler",
    "schedule": "schedule",
    "steps": "steps",
    "guidance_scale": "guidance",
}
"""By field of a request, what the command line calls it; in the order in which they are said."""


def distilled(case: Case) -> str:
    """Why the model, or an adapter, counts as distilled to few steps; empty where nothing says so."""
    if case.model.few_steps:
        return case.model.few_steps
    names = [case.model.path.name, *(one.title for one in case.adapters)]
    return next((f"{name} says {word}" for name in names if (word := few_steps_in_name(name))), "")


def suited_fields(case: Case) -> dict[str, float]:
    """Steps and guidance scale: what the model suggests; of one that only its name, or an adapter, tells to be
    distilled, what such a model would suggest; else the defaults."""
    usual = GenerationRequest(prompt="")
    suggested = case.model.suggested if case.model.few_steps else SUGGESTED if distilled(case) else {}
    return {"steps": usual.steps, "guidance_scale": usual.guidance_scale, **suggested}


def suited_sampler(case: Case) -> dict[str, str]:
    """Of distilled weights, in place of a sampler of others: the model's own, or LCM's on the levels that they were
    distilled at; nothing where the request has one that suits them."""
    request, own = case.request, case.model.sampler
    of_folder = isinstance(own, ModelSampler) and own.sampler in CONSISTENCY_SAMPLERS
    if request.sampler == MODEL_SAMPLER:
        return {} if of_folder else dict(LEVELS)
    if require_sampler(request.sampler) in CONSISTENCY_SAMPLERS:
        return {}
    return {"sampler": MODEL_SAMPLER} if of_folder else dict(LEVELS)


def advice(case: Case, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fix and the changes of a finding: these fields in place of the request's. Sigmas would take the place of
    steps, so they are left away."""
    said = " ".join(f"--{option} {_said(fields[name])}" for name, option in OPTIONS.items() if name in fields)
    changes = [Change(where="request", name=name, value=fields[name]) for name in OPTIONS if name in fields]
    fix = f"draw with {said}"
    if "steps" in fields and case.request.sigmas is not None:
        fix += " in place of --sigmas"
        changes.append(Change(where="request", name="sigmas", value=None))
    return {"fix": fix, "changes": tuple(changes)}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
