"""Requests that were submitted together, until all of them are encoded."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.encode import Encoded, encode
from undertow.engine.memory_need import require_memory
from undertow.engine.request_run import RequestRun, Stage
from undertow.engine.rows import attributed
from undertow.errors import UndertowError
from undertow.shortage import is_out_of_memory


@dataclass(kw_only=True, eq=False)
class Group:
    """Requests that were submitted together: all are encoded before the first is denoised. apart: what is wrong with
    one is its own."""

    runs: Sequence[RequestRun]
    apart: bool = False
    _parts: Generator[None, None, Encoded] | None = field(default=None, init=False)
    _encoding: RequestRun | None = field(default=None, init=False)
    """Whose parts these are."""

    def encode(self, manager: AdapterManager, refiner: LoadedModel | None) -> bool:
        """Encodes the next part; returns whether that was the last. Errors: those of `encode.encode`."""
        run = next((run for run in self.runs if run.stage is Stage.WAITING), None)
        if run is None:
            return True
        if run is not self._encoding:  # the one before is encoded, or was cancelled meanwhile
            self._encoding, self._parts = run, None
        try:
            if self._parts is None:
                require_memory(run.model, run.request, low_vram=run.options.low_vram)
                run.memory.keep_to_budget()
                self._parts = encode(
                    run.model,
                    run.request,
                    run.watch,
                    manager=manager,
                    refiner=refiner,
                    latents=run.latents,
                    uses=run.memory.using,
                )
                if run.options.budget_bytes is not None:
                    return False  # from the next unit of work on the budget holds
            next(self._parts)
            run.memory.note_peak("text")
        except StopIteration as finished:
            self._parts = None
            run.memory.note_peak("text")
            run.set_encoded(finished.value)
        except UndertowError as error:
            if not self.apart:
                raise
            self._parts = None
            run.fail(error)
        except BaseException as error:  # out of memory, say: of this request alone
            self._parts = None
            if not isinstance(error, Exception):
                run.fail(error)
                raise
            if is_out_of_memory(error) and run.memory.read_with_less(str(error)):
                return False  # from the beginning, with less memory
            tried = str(run.memory.economy)
            least = run.memory.least_bytes() if is_out_of_memory(error) else None
            run.fail(attributed(error, f"request {run.number}, while it was encoded", tried, least))
        return False
