"""LoRA files of every dialect, read into updates of a model's layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.lora.lora_source import LoraFile
from undertow.adapters.lora.plan import Plan, make_plan, require_all, require_any
from undertow.adapters.lora.planned_layer import ReadTensor, fill_layer
from undertow.adapters.lora.report import LoraReport, report_on_plan
from undertow.adapters.lora.targets import NetworkName, Targets
from undertow.adapters.lora.updates import AnyTensor, Update
from undertow.checkpoints.health import Finding, examine
from undertow.errors import DamagedWeights

Vectors = Float[Tensor, "..."]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """A LoRA in memory. updates: by network and by our name of the layer.

    content_hash: SHA-256 of the files it was read from; files with equal hashes are the same adapter. embeddings:
    textual inversions bundled with it, by name, as `TextStack.add_embedding` takes them.
    """

    path: Path
    content_hash: str
    updates: Mapping[NetworkName, Mapping[str, Update]]
    report: LoraReport
    size_bytes: int
    embeddings: Mapping[str, Vectors | Mapping[str, Vectors]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is, in words."""
        return "LoRA"


def read_lora(source: str | Path, targets: Targets, *, strict: bool = True) -> Lora:
    """Opens `source` and reads the LoRA in it for one model; see `lora_from`. Errors: also those of `open_adapter`."""
    with open_adapter(source) as opened:
        return lora_from(opened, targets, strict=strict)


def lora_from(opened: OpenedAdapter, targets: Targets, *, strict: bool = True) -> Lora:
    """The LoRA in an opened file or folder, of whatever dialect, for one model.

    Tensors keep the file's type. strict: every name of the file must be one of the model's; without it, what does not
    fit is left out and listed in the report. A file of which nothing fits is refused in any case.
    Errors: `AdapterMismatch`, `UnsupportedModel`, `DamagedWeights`, `CorruptFile`, `UnknownCheckpoint`, `UnsafeFile`.
    """
    file = LoraFile.of(opened)
    plan = make_plan(file, targets)
    require_any(file, plan, targets)
    if strict:
        require_all(file, plan, targets)
    updates = _read_updates(file, plan)
    return Lora(
        path=file.path,
        content_hash=opened.content_hash(*(() if file.config is None else (file.config,))),
        updates=updates,
        report=report_on_plan(file, plan),
        size_bytes=sum(update.size_bytes for layers in updates.values() for update in layers.values()),
        embeddings=_read_embeddings(file),
    )


def describe_lora(source: str | Path, targets: Targets | None = None) -> LoraReport:
    """Describes a file from its names and shapes, and, given a model, which of its layers fit.

    Errors: those of `read_lora`, except for unmatched names and for values, which are not read.
    """
    with open_adapter(source) as opened:
        file = LoraFile.of(opened)
        plan = make_plan(file, targets)
    if targets is not None:
        require_any(file, plan, targets)
    return report_on_plan(file, plan)


def _read_updates(file: LoraFile, plan: Plan) -> dict[NetworkName, dict[str, Update]]:
    updates: dict[NetworkName, dict[str, Update]] = {}
    damaged: list[Finding] = []
    with file.weights.reader() as read:
        own = _noting_damage(read, damaged)
        for place, planned in plan.matched.items():
            updates.setdefault(place.network, {})[place.module] = fill_layer(file, planned, own)
    if damaged:
        shown = "; ".join(map(str, damaged[:3])) + (f"; and {len(damaged) - 3} more" if len(damaged) > 3 else "")
        names = [finding.name for finding in damaged]
        raise DamagedWeights(file.path, names, f"values that are not numbers: {shown}", "download or train it again")
    return updates


def _noting_damage(read: ReadTensor, damaged: list[Finding]) -> ReadTensor:
    """A `read` that copies each tensor and records those that are not finite."""

    def own(name: str) -> AnyTensor:
        tensor = read(name).clone()
        finding = examine(name, tensor)
        if finding is not None and finding.verdict == "not finite":
            damaged.append(finding)
        return tensor

    return own


def _read_embeddings(file: LoraFile) -> dict[str, Vectors | Mapping[str, Vectors]]:
    found: dict[str, Vectors | Mapping[str, Vectors]] = {}
    for name, tensors in file.names.embeddings.items():
        vectors = {encoder: file.weights.read(tensor) for encoder, tensor in tensors.items()}
        found[name] = vectors.get("*", vectors)
    return found
