"""A worker: one loop that takes jobs, lets the engine work on all of them together, and publishes what is done."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from undertow.attention.measurement import Machine
from undertow.errors import UndertowError
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.timetable import COMPUTING, FAIR
from undertow.serving.jobs import Claim, JobProgress, JobState
from undertow.serving.request_json import embeddings_of, request_of
from undertow.serving.schedule import Running
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import PATIENCE, QueueEntry, StoreError, Verdict
from undertow.serving.store.store import Store
from undertow.serving.tracing import Tracing
from undertow.serving.worker.about import About
from undertow.serving.worker.answering import Answering
from undertow.serving.worker.claiming import WATCH_S, Claiming, Taken
from undertow.serving.worker.drawing import Drawing, begin, placed
from undertow.serving.worker.finishing import Finishing
from undertow.serving.worker.logs import JobLog
from undertow.serving.worker.measures import Measures
from undertow.serving.worker.models import CAPACITY, LOAD_S, Load, Loaded, Models, budget_of
from undertow.serving.worker.neighbours import dead
from undertow.serving.worker.pulse import Pulse
from undertow.serving.worker.timing import Timing, computing_of, running
from undertow.serving.worker.trial import fault_of
from undertow.serving.worker.warm_up import warm_up

logger = logging.getLogger(__name__)

IDLE_S = 0.5
"""The longest sleep of a worker that has nothing to do; a new job wakes it."""
FORGOTTEN_S = 3600.0
"""A worker that has said nothing for so long is listed no more."""
GARBAGE_S = 300.0
"""Between two collections of what is over."""


class Worker:
    """Draws the jobs of a store on one device.

    name: unique for the process, under which it holds leases. lost: names of processes that are known to be dead, whose
    jobs are taken back at once. alive: called while the loop goes on. load: reads a model. tracing: is told of
    jobs that have ended.

    Worker(store, artifacts, catalog, settings, name="here").run(stop)
    """

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactFolder,
        catalog: Catalog,
        settings: ServerSettings,
        *,
        name: str,
        device: str = "cpu",
        lost: Sequence[str] = (),
        alive: Callable[[], None] = lambda: None,
        load: Load | None = None,
        tracing: Tracing | None = None,
    ):
        self.store, self.artifacts, self.catalog, self.settings = store, artifacts, catalog, settings
        self.name = name
        self.models = Models(
            catalog,
            device,
            budget_bytes=budget_of(device, settings.budget_bytes),
            adapters=bool(settings.adapters) or any(entry.kind == "LoRA" for entry in catalog.adapters()),
            ready=self._ready,
            load=load,
        )
        self.measures = Measures(store.clock, Tracing() if tracing is None else tracing, device)
        store.observers.append(self.measures.stored)
        self.timing = Timing(
            store=store,
            device=device,
            settings=settings,
            computing=computing_of(settings, Machine.here(device)),
        )
        self.about = About(store=store, name=name, device=device, data=settings.data)
        self.pulse = Pulse(
            store,
            name,
            settings.lease_s,
            alive=alive,
            about=self.say,
            times=lambda: self.timing.finish_times(name, self.models.names),
            unit_s=settings.unit_s,
        )
        self.claiming = Claiming(
            store=store, timing=self.timing, worker=name, lease_s=settings.lease_s, hold=self._hold_claim
        )
        self.finishing = Finishing(
            store=store,
            artifacts=artifacts,
            about=self.about,
            measures=self.measures,
            let_go=self._let_go,
            log_prompts=settings.log_prompts,
        )
        self.answering = Answering(
            store=store,
            artifacts=artifacts,
            catalog=catalog,
            models=self.models,
            measures=self.measures,
            pulse=self.pulse,
            finishing=self.finishing,
            may_know=self._may_know,
        )
        self._lost = tuple(lost)
        self._drawings: dict[str, Drawing] = {}
        self._line: deque[Drawing] = deque()

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """Works until `stop` is set, and then for as long as the jobs that run take, at most `settings.grace_s`. What
        is not done is given back, with its log. hurry: jobs are given back at once."""
        self.finishing.publisher = ThreadPoolExecutor(1, "undertow-publisher")  # files are written beside the work
        self.claiming.helper, self.claiming.watch_s = ThreadPoolExecutor(1, "undertow-claims"), WATCH_S
        self.pulse.start()
        threading.Thread(target=self._collect_garbage, args=(stop,), name="undertow-garbage", daemon=True).start()
        try:
            self.start()
            while not stop.is_set():
                if not self._round(stop) and not stop.is_set():
                    self.claiming.wait(IDLE_S)
            self.drain(threading.Event() if hurry is None else hurry)
        finally:
            self.finishing.publisher.shutdown()
            self.claiming.helper.shutdown()
            self.measures.tracing.close()
            self.pulse.stop()
            self.models.close()
            with suppress(StoreError):
                self.store.workers.goodbye(self.name)

    def start(self) -> None:
        """Takes back what processes held that have ended here, and loads the first model. Errors: `StoreError`."""
        self.say()
        there = self.store.workers.list()
        lost = {*self._lost, *dead(there)}
        for name in lost:
            self.store.expire_leases(worker=name)
        now = self.store.clock()
        for one in there:
            if one.name in lost or one.seen_at < now - FORGOTTEN_S:
                self.store.workers.goodbye(one.name)
        try:
            with self.pulse.patient(LOAD_S):
                self.models.take(self.settings.default_model)
        except StoreError:
            raise
        except (UndertowError, OSError) as error:
            logger.error("%s cannot be loaded, and its jobs fail: %s", self.settings.default_model, error)
        for name in self.settings.models:
            self.timing.of(name)
        self.about.state = "idle"

    def run_once(self) -> bool:
        """One round: wishes of clients, new jobs, one unit of work, results. Returns whether there was anything to do.
        Errors: `StoreError`, after which it can be called again."""
        self._obey()
        claimed = self._claim()
        self._begin()
        self.pulse.expected_s = max((self._unit_s(one) for one in self._drawings.values()), default=0.0)
        answered = self.answering.answer()
        worked = self.models.step()
        if worked is not None:
            self.about.last_step_at = self.store.clock()
        self.pulse.moved()
        for drawing in [one for one in self._drawings.values() if one.done]:
            self.finishing.finish(drawing)
        return claimed or answered or worked is not None

    def drain(self, hurry: threading.Event) -> None:
        """Takes no more jobs, works for the grace on those that it has, and gives the others back."""
        self.about.state = "draining"
        self._release_taken()
        until = time.monotonic() + self.settings.grace_s
        while self._drawings and time.monotonic() < until and not hurry.is_set():
            if not self._round(hurry):
                hurry.wait(0.05)
        self.answering.give_back()
        for drawing in list(self._drawings.values()):
            try:
                self._give_back(drawing)
            except StoreError as error:
                logger.error("job %s comes back when its lease is over: %s", drawing.claim.job.id, error)

    def _release_taken(self) -> None:
        """Others draw what was leased a moment ago."""
        taken: Taken = []
        with suppress(StoreError):
            taken = self.claiming.taken()
        for claim, _ in taken:
            self.pulse.drop(claim.job.id)
            with suppress(StoreError):  # its lease ends
                self.store.release(claim)

    def say(self, *, now: bool = False) -> None:
        """Writes what this worker is, and what it has learned. Errors: `StoreError`."""
        more = {
            FAIR: self.timing.state.to_json(),
            COMPUTING: self.timing.computing,
            "metrics": self.measures.snapshot(),
            "faults": self.models.faults,
            PATIENCE: self.pulse.patience_s,
        }
        self.about.say(busy=bool(self._drawings), models=self.models.names, more=more, now=now)
        self.timing.save()

    def _round(self, stop: threading.Event) -> bool:
        """A round whose store may be away for a while."""
        try:
            worked = self.run_once()
        except StoreError as error:
            self.about.store_problem = error.problem
            logger.error("the worker waits for its store: %s", error)
            stop.wait(1.0)
            return True
        self.about.store_problem = ""
        return worked

    def _give_back(self, drawing: Drawing) -> None:
        """Another worker goes on with the job, unless it is done but for its files. Errors: `StoreError`."""
        if drawing.publishing is not None:
            wait([drawing.publishing])
            self.finishing.finish(drawing)
        if drawing.claim.job.id in self._drawings:
            self._let_go(drawing)
            drawing.stop()
            self.store.release(drawing.claim)

    def _ready(self, loaded: Loaded, seconds: float) -> None:
        """A model was loaded: from now on everything that it does is learned from."""
        name, arrived = loaded.entry.name, time.monotonic()
        costs = self.timing.of(name)
        loaded.fault = fault_of(loaded)
        if loaded.fault:
            logger.error("%s draws no pictures: %s", name, loaded.fault)
        loaded.engine.watchers += [self.timing.learner(name), self.measures.watcher(name)]
        self.measures.loaded(loaded)
        lora = next((entry.path for entry in self.catalog.adapters(name) if entry.kind == "LoRA"), None)
        warm_up(loaded, costs, lora=lora)
        costs.learn("load", seconds=seconds + time.monotonic() - arrived)  # until it draws for clients
        self.timing.save(now=True)

    def _collect_garbage(self, stop: threading.Event) -> None:
        """What is over and what nobody needs goes, from time to time, beside the work."""
        while not stop.wait(GARBAGE_S):
            try:
                self.store.collect_garbage(self.artifacts)
            except (StoreError, OSError) as error:
                logger.error("what is over could not be removed, which is tried again later: %s", error)

    # Jobs

    def _claim(self) -> bool:
        """Takes jobs that there is room for; returns whether there were any."""
        now_running = self._running()
        if self.about.state == "draining" or not (self.claiming.is_asking or self._may_look(now_running)):
            return False
        try:
            taken = self.claiming.take(now_running)
        except StoreError as error:
            if not now_running:
                raise
            logger.error("no jobs are taken beside those that are drawn: %s", error)
            return False
        for claim, entry in taken:
            self.measures.claimed(claim)
            self._take(claim, entry)
        return bool(taken)

    def _may_look(self, now_running: Sequence[Running]) -> bool:
        late = any(one.late_since for one in self._drawings.values())
        return self.claiming.may_look(now_running) and self.about.has_room(late=late)

    def _hold_claim(self, claim: Claim) -> None:
        """From the moment of its lease: the loop may be in a long step."""
        self.pulse.hold(claim, JobProgress)

    def _running(self) -> list[Running]:
        found: list[Running] = []
        for drawing in self._drawings.values():
            now = drawing.progress()
            if drawing.publishing is None:
                drawing.note(now.stage)
            found.append(running(drawing.entry, now.step, now.steps))
        return found

    def _take(self, claim: Claim, entry: QueueEntry) -> None:
        spec = claim.job.spec
        if spec.kind != "pictures":
            self.answering.take(claim)
            return
        try:
            drawing = Drawing(
                claim=claim,
                entry=entry,
                request=placed(request_of(spec, self.artifacts, self.catalog), self._loras(), CAPACITY.per_row),
                embeddings=tuple(one.path for one in embeddings_of(spec, self.catalog)),
                artifacts=self.artifacts,
                entered=lambda: self.measures.entered(claim),
                log=JobLog(self.artifacts, claim),
                previewed=self.measures.previewed,
                clock=self.store.clock,
            )
        except Exception as error:
            self.finishing.refuse(claim, error)
            return
        self._drawings[claim.job.id] = drawing
        self._line.append(drawing)
        self.pulse.hold(claim, drawing.progress)

    def _unit_s(self, drawing: Drawing) -> float:
        """Seconds that a forward with all rows of a job is expected to take."""
        entry = drawing.entry
        rows = entry.rows or entry.work.rows
        return self.timing.of(entry.model).forward_s(entry.work.cells, rows, min(rows, entry.work.adapted_rows))

    def _begin(self) -> None:
        """Gives jobs to their engines, in the order in which they came; those that are next to each other and have a
        model and its words in common, together."""
        while self._line:
            together: list[Drawing] = []
            for drawing in list(self._line):
                first = together[0] if together else drawing
                alike = drawing.entry.model == first.entry.model and drawing.embeddings == first.embeddings
                if alike and self._may_begin(drawing) and self._prepare(drawing):
                    together.append(drawing)
            if not together:
                return
            loaded = together[0].loaded
            assert loaded is not None
            try:
                begin(together, loaded)
            except Exception as error:
                for drawing in together:
                    self.finishing.fail(drawing, error)
            else:
                for drawing in together:
                    self._line.remove(drawing)

    def _prepare(self, drawing: Drawing) -> bool:
        """Loads what a job needs, and opens its log; returns whether it can begin."""
        try:
            with self.pulse.patient(LOAD_S):
                loaded = self.models.take(drawing.claim.job.spec.model)
                loaded.know(drawing.embeddings)
                if drawing.loaded is loaded:  # when the store was away for one that begins together with it
                    return True
                drawing.prepare(loaded, self._most_rows(drawing.entry), self.settings.budget_bytes)
        except StoreError:
            raise
        except Exception as error:
            self.finishing.fail(drawing, error)
            return False
        return True

    def _may_begin(self, drawing: Drawing) -> bool:
        """Whether its model is there or has room, and knows its textual inversions or may learn others: those that
        prompts know change when nobody's prompts are being read."""
        name = drawing.claim.job.spec.model
        if drawing.failure is not None or not self.models.fits_now(name):
            return False
        return self._may_know(name, drawing.embeddings)

    def _may_know(self, model: str, embeddings: tuple[Path, ...]) -> bool:
        loaded = self.models.get(model)
        if loaded is None or loaded.embeddings == embeddings:
            return True
        return all(one.encoded for one in self._drawings.values() if one.loaded is loaded)

    def _let_go(self, drawing: Drawing) -> None:
        drawing.look_away()
        self.pulse.drop(drawing.claim.job.id)
        self._drawings.pop(drawing.claim.job.id, None)
        if drawing in self._line:
            self._line.remove(drawing)

    def _most_rows(self, entry: QueueEntry) -> int | None:
        """Of a forward in the mode "fast", where it was decided."""
        return self.timing.of(entry.model).rows_for(entry.work.cells)

    def _loras(self) -> frozenset[str]:
        return frozenset(str(entry.path) for entry in self.catalog.adapters() if entry.kind == "LoRA")

    # Wishes

    def _obey(self) -> None:
        """Acts on what clients and the clock want, before the next step."""
        for verdict in self.pulse.verdicts():
            drawing = self._drawings.get(verdict.job)
            if drawing is not None:
                self._obey_one(drawing, verdict)

    def _obey_one(self, drawing: Drawing, verdict: Verdict) -> None:
        drawing.watched = verdict.preview_wanted
        if drawing.publishing is not None:
            return  # that commits what became of the job, or is told that it is another worker's
        if not verdict.alive:
            self.finishing.end(drawing, None, kept=False)
        elif verdict.cancel_requested:
            self.finishing.end(drawing, JobState.CANCELED, kept=self.store.cancelled(drawing.claim))
        elif verdict.deadline_passed:
            self.finishing.end(drawing, JobState.EXPIRED, kept=self.store.expire_job(drawing.claim))
