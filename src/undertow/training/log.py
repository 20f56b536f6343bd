"""The log of a run: one JSON object a line, see `find_log` for where."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from undertow.errors import InvalidInput

LOG = "log.jsonl"

TRAINING = "training"
"""Folder beside a pixel model, in its run's folder, of what its training keeps."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened since the record before: means of loss and gradient norm (before clipping), images per second.

    seconds: time trained so far, sampling and saving included, over all sessions of the run.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    seconds: float


def append_record(path: Path, record: StepRecord) -> None:
    """Adds one line, at once on disk."""
    line = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(record).items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_records(path: Path) -> Sequence[StepRecord]:
    """The records in the order of steps. Steps that a resumed run did again count once, the last time; a line that was
    being written when the run was killed is left out."""
    records: dict[int, StepRecord] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = StepRecord(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue
            records[record.step] = record
    return [records[step] for step in sorted(records)]


def find_log(run: Path) -> Path:
    """Where a run keeps its log: of pixel models beside the model, in `RUN/training`; of LoRA, ControlNets, image
    prompts and distillation in RUN itself. Errors: `InvalidInput` for a folder without one."""
    for log in (run / TRAINING / LOG, run / LOG):
        if log.is_file():
            return log
    raise InvalidInput("RUN", str(run), f"the folder of a training run, with {TRAINING}/{LOG} or {LOG} in it")
