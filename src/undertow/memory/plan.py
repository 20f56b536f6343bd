"""Whether work fits into a budget, and what gives way so that it does: a pure function of forecasts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from undertow.errors import InvalidInput
from undertow.memory.forecast import Forecast, StageForecast, component_bytes, forecast
from undertow.memory.measures import Candidate, candidates
from undertow.memory.operations import Machine
from undertow.memory.seconds import SecondsTable, seconds_of, stage_seconds
from undertow.memory.work import Subject, Work


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something that gives way. stage: the one that becomes smaller, the largest if it is among them. saved_bytes: by
    which the whole becomes smaller, or else that stage. slower: seconds that it adds to all pictures; `None` where
    nothing was measured. work: the work with it and all measures before it applied."""

    name: str
    stage: str
    saved_bytes: int
    slower: float | None
    changes_picture: bool
    work: Work


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What work takes of memory and time, and what gives way for it.

    fits: within the budget, with `measures`; always without a budget. peak_bytes: of the largest stage, with the
    measures. process_bytes: of the whole process then, with libraries and caches, which is what a budget counts.
    asked_bytes: the same without any measure. smallest_bytes: the same with every measure there is. seconds: for each
    picture; `None` where this machine was not measured. stages: in the order in which they run. work: as it is to run.
    """

    name: str
    fits: bool
    budget_bytes: int | None
    peak_bytes: int
    process_bytes: int
    asked_bytes: int
    smallest_bytes: int
    seconds: float | None
    stages: tuple[StageForecast, ...]
    measures: tuple[Measure, ...]
    work: Work

    def to_json(self) -> dict[str, Any]:
        """All of it but the calls of kernels, as JSON has it."""
        stages = [
            {**{name: getattr(stage, name) for name in STAGE_FIELDS}, "hotspot": asdict(stage.hotspot)}
            for stage in self.stages
        ]
        measures = [{name: getattr(measure, name) for name in MEASURE_FIELDS} for measure in self.measures]
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**plain, "stages": stages, "measures": measures, "work": asdict(self.work)}


STAGE_FIELDS = (
    *("name", "weight_bytes", "activation_bytes", "workspace_bytes", "peak_bytes"),
    *("by_component", "by_level", "by_module", "calls", "seconds"),
)
MEASURE_FIELDS = ("name", "stage", "saved_bytes", "slower", "changes_picture")


def plan(
    subject: Subject,
    work: Work,
    budget_bytes: int | None = None,
    *,
    table: SecondsTable | None = None,
    machine: Machine | None = None,
    fixed_graphs: bool = False,
) -> MemoryPlan:
    """The cheapest measures, in the order of giving way (`measures.candidates`), with which `work` fits.

    budget_bytes: for the whole process; `None` takes no measure. table: seconds of operations on this machine.
    machine: as in `forecast`. fixed_graphs: the networks run in compiled graphs, which keep their kernels and layers.
    Where even all measures do not suffice, `fits` is false, and the plan has all that help.
    Errors: `InvalidInput` for a budget that is none; `ConfigError` for a size that the model cannot have.
    """
    if isinstance(budget_bytes, bool) or (budget_bytes is not None and budget_bytes < 1):
        raise InvalidInput("budget_bytes", budget_bytes, "at least 1", "or None, for a plan without a budget")
    return _Planning(subject, work, table, machine, fixed_graphs=fixed_graphs).plan(budget_bytes)


class _Planning:
    """One subject and the work that was asked for."""

    def __init__(
        self,
        subject: Subject,
        work: Work,
        table: SecondsTable | None,
        machine: Machine | None,
        *,
        fixed_graphs: bool,
    ):
        self.subject, self.work, self.table, self.machine = subject, work, table, machine
        decode = next((one for one in self.forecast(work).stages if one.name == "decode"), None)
        whole = 0 if decode is None else decode.activation_bytes
        self.candidates = list(candidates(subject, work, whole, fixed_graphs=fixed_graphs))

    def forecast(self, work: Work) -> Forecast:
        return forecast(self.subject, work, self.machine)

    def plan(self, budget: int | None) -> MemoryPlan:
        smallest = self._smallest()
        chosen: list[Candidate] = []
        if budget is not None:
            useful = self._useful(budget)
            chosen = self._pruned(useful, budget) if self._size(useful) <= budget else smallest
        work = self._taken(chosen)
        found = self.forecast(work)
        return MemoryPlan(
            name=self.subject.name,
            fits=budget is None or found.process_bytes <= budget,
            budget_bytes=budget,
            peak_bytes=found.peak_bytes,
            process_bytes=found.process_bytes,
            asked_bytes=self.forecast(self.work).process_bytes,
            smallest_bytes=self._size(smallest),
            seconds=self._seconds(work),
            stages=tuple(replace(stage, seconds=self._stage_seconds(stage, work)) for stage in found.stages),
            measures=tuple(self._measures(chosen)),
            work=work,
        )

    def _size(self, chosen: Sequence[Candidate]) -> int:
        """Bytes of the process with these."""
        return self.forecast(self._taken(chosen)).process_bytes

    def _smallest(self) -> list[Candidate]:
        """The furthest of each kind, unless it makes something larger (parts of a layer with LoRA in slots)."""
        taken: list[Candidate] = []
        for candidate in {one.kind: one for one in self.candidates}.values():
            before, after = self.forecast(self._taken(taken)), self.forecast(self._taken([*taken, candidate]))
            if _lowers(before, after, 0):
                taken.append(candidate)
        return taken

    def _useful(self, budget: int) -> list[Candidate]:
        """Candidates in their order until it fits, each only if it lowers a stage that is too large."""
        taken: list[Candidate] = []
        for candidate in self.candidates:
            before = self.forecast(self._taken(taken))
            if before.process_bytes <= budget:
                break
            trial = [*(one for one in taken if one.kind != candidate.kind), candidate]
            after = self.forecast(self._taken(trial))
            if _lowers(before, after, budget):
                taken = trial
        return taken

    def _pruned(self, taken: list[Candidate], budget: int) -> list[Candidate]:
        """Without those that turned out not to be needed, the most expensive first."""
        for candidate in reversed(taken):
            fewer = [one for one in taken if one is not candidate]
            if self._size(fewer) <= budget:
                taken = fewer
        return taken

    def _taken(self, chosen: Sequence[Candidate]) -> Work:
        work = self.work
        for candidate in chosen:
            work = candidate.apply(work)
        return work

    def _measures(self, chosen: Sequence[Candidate]) -> list[Measure]:
        found: list[Measure] = []
        for index, candidate in enumerate(chosen):
            before, after = (self._taken(chosen[: index + more]) for more in (0, 1))
            stage, saved = _saving(self.forecast(before), self.forecast(after))
            slower, was = self._seconds(after), self._seconds(before)
            found.append(
                Measure(
                    name=candidate.name,
                    stage=stage,
                    saved_bytes=saved,
                    slower=None if slower is None or was is None else (slower - was) * self.work.pictures,
                    changes_picture=False,
                    work=after,
                )
            )
        return found

    def _stage_seconds(self, stage: StageForecast, work: Work) -> float | None:
        return None if self.table is None else stage_seconds(stage, work, self.table)

    def _seconds(self, work: Work) -> float | None:
        if self.table is None:
            return None
        return seconds_of(self.forecast(work), work, self.table, read_bytes(self.subject, work))


def read_bytes(subject: Subject, work: Work) -> int:
    """Bytes of weights that are brought into memory again for these pictures, because they do not stay there."""
    held = component_bytes(subject, replace(work, offloaded_layers=False))
    again = sum(size for component, size in held.items() if component not in work.keep)
    if work.offloaded_layers:
        forwards = work.steps * -(-work.pictures * work.branches // work.batch)
        again += (forwards - ("unet" not in work.keep)) * held.get("unet", 0)
    return again


def _lowers(before: Forecast, after: Forecast, budget: int) -> bool:
    """Whether a stage that does not fit becomes smaller, and none that does not fit then becomes larger."""
    overhead = before.process_bytes - before.peak_bytes
    changes = {stage.name: after.stage(stage.name).peak_bytes - stage.peak_bytes for stage in before.stages}
    lower = any(changes[stage.name] < 0 and stage.peak_bytes + overhead > budget for stage in before.stages)
    return lower and not any(changes[one.name] > 0 and one.peak_bytes + overhead > budget for one in after.stages)


def _saving(before: Forecast, after: Forecast) -> tuple[str, int]:
    """Of the largest stage, or else of the one that gains most: its name, and by how much it becomes smaller."""
    sizes = {stage.name: stage.peak_bytes for stage in after.stages}
    largest = max(before.stages, key=lambda stage: stage.peak_bytes).name
    saved = {stage.name: stage.peak_bytes - sizes[stage.name] for stage in before.stages}
    stage = largest if saved[largest] else max(saved, key=lambda name: saved[name])
    return stage, before.peak_bytes - after.peak_bytes or saved[stage]
