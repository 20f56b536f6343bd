"""Diagnoses as a service: what the doctor's rules find out about a request, its model and this machine."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from undertow.errors import InvalidInput
from undertow.inspection.doctor.catalogue import rules_named
from undertow.inspection.doctor.finding import Change, Finding
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.inspection import ChangeView, DiagnosisView, FindingView
from undertow.serving.jobs import Job, JobSpec
from undertow.serving.request_json import embeddings_of, request_of
from undertow.serving.worker.models import Models

JSON = "application/json"
FAMILIES = ("nan", "picture", "slow", "memory")
"""Of rules that a service asks. Whether a picture can be drawn again it tells by drawing it again."""


def diagnosed(job: Job, artifacts: ArtifactFolder, catalog: Catalog, models: Models) -> bytes:
    """The answer to a job of a diagnosis, a `DiagnosisView`. Errors: those of `request_of`, of loading a model and of
    `UNetService.diagnose`; `InvalidInput` for rules that a service does not ask."""
    spec, asked = job.spec, _subject(job.spec)
    request = request_of(asked, artifacts, catalog)
    loaded = models.take(spec.model)
    loaded.know(words_of(spec, catalog))
    found = loaded.service.diagnose(request, only=_require_families(spec.request["only"]))
    view = DiagnosisView(
        model=spec.model,
        serious=found.serious,
        findings=tuple(map(_finding_view, found.findings)),
        rules=found.rules,
        skipped=dict(found.skipped),
        job=job.id,
        subject=spec.request["subject"],
    )
    return json.dumps(view.to_json(), ensure_ascii=False).encode()


def words_of(spec: JobSpec, catalog: Catalog) -> tuple[Path, ...]:
    """Files of the textual inversions that the diagnosed request names. Errors: `InvalidInput` for one that is gone."""
    return tuple(one.path for one in embeddings_of(_subject(spec), catalog))


def _subject(spec: JobSpec) -> JobSpec:
    """The request that is diagnosed, as a job of its own."""
    return replace(spec, kind="pictures", request=spec.request["request"])


def _require_families(only: Sequence[str]) -> Sequence[str]:
    """Errors: `InvalidInput`."""
    for name in only:
        if any(rule.family not in FAMILIES for rule in rules_named([name])):
            remedy = "submit the job again with reuse false: the mode reproducible gives the same bytes"
            raise InvalidInput("only", repr(name), f"a rule of {', '.join(FAMILIES)}", remedy)
    return only or FAMILIES


def _finding_view(finding: Finding) -> FindingView:
    changes = tuple(map(_change_view, finding.changes))
    return FindingView(**{**vars(finding), "changes": changes})


def _change_view(change: Change) -> ChangeView:
    return ChangeView(where=change.where, name=change.name, value=change.value)
