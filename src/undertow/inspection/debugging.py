"""What source document 000 draws (8.2): hooks on layers, logs of their inputs and outputs, and what they add up to."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.probing import ForwardProbe
from undertow.engine.result import GenerationResult
from undertow.errors import InvalidInput
from undertow.inspection.marks import marked, next_mark
from undertow.inspection.probe import Side
from undertow.inspection.recorder import SIDES, Recorder
from undertow.inspection.records import LayerStatistics, TensorRecord
from undertow.inspection.sites import require_names


@dataclass(frozen=True, kw_only=True)
class DebugInfo:
    """What was recorded. layer_statistics: by module and side. records: the newest, in order."""

    layer_statistics: Mapping[tuple[str, Side], LayerStatistics] = field(
        default_factory=dict[tuple[str, Side], LayerStatistics]
    )
    records: tuple[TensorRecord, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.layer_statistics.values())) or "nothing was recorded"


class Debugger:
    """Records that stay on until they are taken off, of all requests. probes: of the engine."""

    def __init__(self, probes: list[ForwardProbe]):
        self._probes = probes
        self._recorders: list[Recorder] = []
        self._last: Recorder | None = None

    def enable(
        self, model: LoadedModel, patterns: tuple[str, ...], sides: tuple[Side, ...] = SIDES, every: int = 1
    ) -> Recorder:
        """Errors: `InvalidInput` for a pattern that matches no module, and for an `every` below 1."""
        if not patterns:
            raise InvalidInput("patterns", "empty", "at least one name of a module", "'*' is all of them")
        require_names(model, patterns)
        recorder = Recorder(patterns=patterns, sides=sides, every=every)
        self._recorders.append(recorder)
        self._probes.append(recorder)
        return recorder

    def disable(self) -> None:
        """Takes all of them off, and forgets what they recorded."""
        for recorder in self._recorders:
            self._probes.remove(recorder)
        self._recorders.clear()
        self._last = None

    def info(self) -> DebugInfo:
        """Of all that are on, and of the last request that was drawn with `debug`."""
        every = [*self._recorders, *(() if self._last is None else (self._last,))]
        statistics = {key: one for recorder in every for key, one in recorder.statistics.items()}
        return DebugInfo(
            layer_statistics=statistics, records=tuple(record for recorder in every for record in recorder.records)
        )

    @contextmanager
    def request(self, *, layers: bool) -> Generator["RequestRecords"]:
        """Records the layers of the requests that are run meanwhile with this mark, and of no other."""
        if not layers:
            yield RequestRecords()
            return
        mark = next_mark()
        recorder = Recorder(rows=marked(mark))
        self._probes.append(recorder)
        try:
            yield RequestRecords(mark=mark, recorder=recorder)
        finally:
            self._probes.remove(recorder)
            self._last = recorder


@dataclass(frozen=True, kw_only=True)
class RequestRecords:
    """mark: for `RunOptions`."""

    mark: int = 0
    recorder: Recorder | None = None

    def told(self, result: GenerationResult, request: int = 0) -> GenerationResult:
        """The result with a line for every layer in its report."""
        if self.recorder is None:
            return result
        sums: dict[tuple[str, Side], LayerStatistics] = {}
        for record in self.recorder.records:
            if record.origin.request == request:
                key = (record.module, record.side)
                sums.setdefault(key, LayerStatistics(module=record.module, kind=record.kind, side=record.side)).add(
                    record
                )
        lines = tuple(f"[layer] {one}" for one in sums.values())
        return replace(result, report=replace(result.report, debug=(*result.report.debug, *lines)))
