"""A worker: one loop that takes jobs, lets the engine work on all of them together, and publishes what is done."""

import logging
import os
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from undertow.errors import UndertowError
from undertow.serving.artifacts import ArtifactDamaged, ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.timetable import FAIR
from undertow.serving.failures import Failure, FailureCode, failure_of
from undertow.serving.jobs import Claim, JobState
from undertow.serving.request_json import embeddings_of, request_of
from undertow.serving.schedule import FairState, Running
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import QueueEntry, StoreError, Verdict, WorkerInfo
from undertow.serving.store.store import Store
from undertow.serving.worker.drawing import Drawing, placed
from undertow.serving.worker.logs import JobLog
from undertow.serving.worker.measures import Measures
from undertow.serving.worker.models import CAPACITY, Load, Loaded, Models, budget_of
from undertow.serving.worker.publish import NO_ROOM, Inline, publish
from undertow.serving.worker.pulse import Pulse
from undertow.serving.worker.timing import Timing, running, waiting_in
from undertow.serving.worker.warm_up import warm_up

logger = logging.getLogger(__name__)

IDLE_S = 0.5
"""The longest sleep of a worker that has nothing to do; a new job wakes it."""
LOAD_S = 900.0
"""Given to the loading of a model."""
FREE_BYTES = 64 * 2**20
"""With less room on the disk of the pictures no job is begun: it would be lost when it is done."""
GARBAGE_S = 300.0
"""Between two collections of what is over."""
SAY_S = 1.0
"""Between two times that a worker writes what it is."""
LOOK_S, LOOK_SHARE = 0.05, 0.02
"""Between two looks at what waits, at least, and the share of time that they may take."""
STORE_AGAIN_S, STORED_LATE_S = 1.0, 60.0
"""Pictures that could not be stored are tried again for so long, at such intervals."""


class Worker:
    """Draws the jobs of a store on one device.

    name: unique for the process, under which it holds leases. lost: names of processes that are known to be dead, whose
    jobs are taken back at once. alive: called while the loop goes on. load: reads a model.

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
    ):
        self.store, self.artifacts, self.catalog, self.settings = store, artifacts, catalog, settings
        self.name, self.device = name, device
        self.models = Models(
            catalog,
            device,
            budget_bytes=budget_of(device, settings.budget_bytes),
            adapters=bool(settings.adapters) or any(entry.kind == "LoRA" for entry in catalog.adapters()),
            ready=self._ready,
            load=load,
        )
        self.measures = Measures(store.clock)
        self.timing = Timing(store=store, device=device, most_jobs=settings.jobs_at_once)
        self.pulse = Pulse(
            store,
            name,
            settings.lease_s,
            alive=alive,
            about=self._say,
            times=lambda: self.timing.finish_times(name, self.models.names),
            unit_s=settings.stall_s,
        )
        self._lost = tuple(lost)
        self._drawings: dict[str, Drawing] = {}
        self._line: deque[Drawing] = deque()
        self._publisher: Executor = Inline()
        self._state: Literal["starting", "idle", "busy", "draining"] = "starting"
        self._problem = ""
        self._last_step_at: float | None = None
        self._info: WorkerInfo | None = None
        self._seen = -1
        self._look_at = 0.0
        self._said_at = float("-inf")

    def run(self, stop: threading.Event, hurry: threading.Event | None = None) -> None:
        """Works until `stop` is set, and then for as long as the jobs that run take, at most `settings.grace_s`. What
        is not done is given back, with its log. hurry: jobs are given back at once."""
        self._publisher = ThreadPoolExecutor(1, "undertow-publisher")  # files are written while others are drawn
        self.pulse.start()
        threading.Thread(target=self._collect_garbage, args=(stop,), name="undertow-garbage", daemon=True).start()
        try:
            self.start()
            while not stop.is_set():
                try:
                    if not self.run_once():
                        self._rest(stop)
                except StoreError as error:
                    self._problem = error.problem
                    logger.error("the worker waits for its store: %s", error)
                    stop.wait(1.0)
            self.drain(threading.Event() if hurry is None else hurry)
        finally:
            self._publisher.shutdown()
            self.pulse.stop()
            self.models.close()
            with suppress(StoreError):
                self.store.workers.goodbye(self.name)

    def run_once(self) -> bool:
        """One round: wishes of clients, new jobs, one unit of work, results. Returns whether there was anything to do.
        Errors: `StoreError`, after which it can be called again."""
        self._obey()
        claimed = self._claim()
        self._begin()
        worked = self.models.step()
        if worked is not None:
            self._last_step_at = self.store.clock()
        self.pulse.moved()
        self._collect()
        self.timing.save()
        return claimed or worked is not None

    def drain(self, hurry: threading.Event) -> None:
        """Takes no more jobs, works for the grace on those that it has, and gives the others back."""
        self._state = "draining"
        until = time.monotonic() + self.settings.grace_s
        while self._drawings and time.monotonic() < until and not hurry.is_set():
            try:
                if not self.run_once():
                    hurry.wait(0.05)
            except StoreError as error:
                logger.error("the worker waits for its store: %s", error)
                hurry.wait(1.0)
        for drawing in list(self._drawings.values()):
            try:
                self._give_back(drawing)
            except StoreError as error:
                logger.error("job %s comes back when its lease is over: %s", drawing.claim.job.id, error)

    def _give_back(self, drawing: Drawing) -> None:
        """Another worker goes on with the job, unless it is done but for its files. Errors: `StoreError`."""
        if drawing.publishing is not None:
            wait([drawing.publishing])
            self._finish(drawing)
        if drawing.claim.job.id in self._drawings:
            self._let_go(drawing)
            drawing.stop()
            self.store.release(drawing.claim)

    def start(self) -> None:
        """Takes back what earlier processes of this worker held, and loads the first model. Errors: `StoreError`."""
        self._say()
        for name in self._lost:
            self.store.expire_leases(worker=name)
            self.store.workers.goodbye(name)
        try:
            with self.pulse.patient(LOAD_S):
                self.models.take(self.settings.default_model)
        except (UndertowError, OSError) as error:
            logger.error("%s cannot be loaded, and its jobs fail: %s", self.settings.default_model, error)
        self._state = "idle"

    def _ready(self, loaded: Loaded, seconds: float) -> None:
        """A model was loaded: from now on everything that it does is learned from."""
        costs = self.timing.of(loaded.entry.name)
        costs.learn("load", seconds=seconds)
        name = loaded.entry.name
        loaded.engine.watchers += [self.timing.learner(name), self.measures.watcher(name)]
        self.measures.loaded(loaded)
        warm_up(loaded, costs)
        self.timing.save(now=True)

    def _rest(self, stop: threading.Event) -> None:
        """Until something changes, for a while."""
        if not stop.is_set():
            self.store.changed(self._seen, IDLE_S)

    def _collect_garbage(self, stop: threading.Event) -> None:
        """What is over and what nobody needs goes, from time to time, beside the work."""
        while not stop.wait(GARBAGE_S):
            try:
                self.store.collect_garbage(self.artifacts)
            except (StoreError, OSError) as error:
                logger.error("what is over could not be removed, which is tried again later: %s", error)

    # Jobs

    def _claim(self) -> bool:
        """Takes jobs that there is room for; returns whether there were any. It looks when something changed, and in
        all for a small share of the time."""
        started = time.monotonic()
        if self._state == "draining" or started < self._look_at:
            return False
        version = self.store.changed(self._seen, 0)
        running = self._running()
        if running and (version == self._seen or self.timing.is_full(running)):
            return False
        self._seen = version
        claimed = self._has_room_on_disk() and self._claim_some(running)
        self._look_at = started + max(LOOK_S, (time.monotonic() - started) / LOOK_SHARE)
        return claimed

    def _claim_some(self, running: Sequence[Running]) -> bool:
        if running and not self.timing.choose(waiting_in(self.store.queue()), running)[0]:
            return False  # looking costs less than a transaction
        chosen: list[tuple[FairState, dict[str, QueueEntry]]] = []

        def pick(waiting: Sequence[QueueEntry]) -> Sequence[str]:
            ids, state = self.timing.choose(waiting, running)
            chosen[:] = [(state, {entry.id: entry for entry in waiting})]
            return ids

        claims = self.store.claim(self.name, pick, self.settings.lease_s)
        for claim in claims:
            state, entries = chosen[0]
            self.timing.state = state
            self.measures.claimed(claim)
            self._take(claim, entries[claim.job.id])
        return bool(claims)

    def _running(self) -> list[Running]:
        found: list[Running] = []
        for drawing in self._drawings.values():
            now = drawing.progress()
            found.append(running(drawing.entry, now.step, now.steps))
        return found

    def _take(self, claim: Claim, entry: QueueEntry) -> None:
        spec = claim.job.spec
        try:
            drawing = Drawing(
                claim=claim,
                entry=entry,
                request=placed(request_of(spec, self.artifacts, self.catalog), self._loras(), CAPACITY.per_row),
                embeddings=tuple(one.path for one in embeddings_of(spec, self.catalog)),
                artifacts=self.artifacts,
                entered=lambda: self.measures.entered(claim),
                log=JobLog(self.artifacts, claim),
            )
        except StoreError:
            raise
        except Exception as error:
            self._report(claim, _failure(error))
            self.artifacts.forget(claim.job.id)
            return
        self._drawings[claim.job.id] = drawing
        self._line.append(drawing)
        self.pulse.hold(claim, drawing.progress)

    def _begin(self) -> None:
        """Gives jobs to their engines, in the order in which they came."""
        for drawing in list(self._line):
            if not self._may_begin(drawing):
                continue
            self._line.remove(drawing)
            try:
                with self.pulse.patient(LOAD_S):
                    loaded = self.models.take(drawing.claim.job.spec.model)
                    loaded.know(drawing.embeddings)
                    drawing.begin(loaded, self._most_rows(drawing.entry), self.settings.budget_bytes)
            except Exception as error:
                self._failed(drawing, error)

    def _may_begin(self, drawing: Drawing) -> bool:
        """Whether its model is there or has room, and knows its textual inversions or may learn others: those that
        prompts know change when nobody's prompts are being read."""
        name = drawing.claim.job.spec.model
        if not self.models.fits_now(name):
            return False
        loaded = self.models.get(name)
        if loaded is None or loaded.embeddings == drawing.embeddings:
            return True
        return all(one.encoded for one in self._drawings.values() if one.loaded is loaded)

    def _collect(self) -> None:
        for drawing in [one for one in self._drawings.values() if one.done]:
            self._finish(drawing)

    def _finish(self, drawing: Drawing) -> None:
        """Publishes what is done. Errors: `StoreError`; the pictures are kept for the next try."""
        if drawing.failure is not None:
            self._give_up(drawing, drawing.failure)
            return
        assert drawing.handle is not None
        try:
            result = drawing.handle.result()
        except Exception as error:
            self._failed(drawing, error)
            return
        if time.monotonic() < drawing.store_at:
            return
        replayed, said = drawing.replayed_steps(), drawing.said()
        if drawing.publishing is None:
            arguments = (self.store, self.artifacts, drawing.claim, result)
            drawing.publishing = self._publisher.submit(publish, *arguments, replayed_steps=replayed, **said)
        if not drawing.publishing.done():
            return
        published, drawing.publishing = drawing.publishing, None
        try:
            kept = published.result()
        except OSError as error:
            self._not_stored(drawing, error)
            return
        self._problem = ""
        self.measures.drew(drawing.claim, result, replayed)
        self.measures.ended(drawing.claim, JobState.SUCCEEDED, kept=kept)
        self._let_go(drawing)
        self._clean(drawing, kept=kept)

    def _not_stored(self, drawing: Drawing, error: OSError) -> None:
        """The pictures wait for room on the disk, for a while."""
        now = time.monotonic()
        if drawing.late_since is None:
            drawing.late_since = now
        if error.errno not in NO_ROOM or now - drawing.late_since > STORED_LATE_S:
            self._failed(drawing, error)
            return
        self._problem = FailureCode.STORAGE_FULL
        drawing.store_at = now + STORE_AGAIN_S
        logger.error("the pictures of job %s wait for room on the disk: %s", drawing.claim.job.id, error)

    def _failed(self, drawing: Drawing, error: BaseException) -> None:
        drawing.failure = _failure(error)
        if drawing.failure.fault == "engine":
            logger.error("job %s failed", drawing.claim.job.id, exc_info=error)
        self._give_up(drawing, drawing.failure)

    def _give_up(self, drawing: Drawing, failure: Failure) -> None:
        kept = self._report(drawing.claim, failure)
        self._let_go(drawing)
        self._clean(drawing, kept=kept)

    def _report(self, claim: Claim, failure: Failure) -> bool:
        logger.warning("job %s failed: %s: %s", claim.job.id, failure.code, failure.detail)
        kept = self.store.fail(claim, failure)
        self.measures.ended(claim, failure.code, kept=kept)
        return kept

    def _clean(self, drawing: Drawing, *, kept: bool) -> None:
        """After a final state nobody needs the log; where the fence was lost, another worker needs its own."""
        if kept:
            drawing.end()
        else:
            logger.warning("job %s belongs to another worker: what was drawn here is dropped", drawing.claim.job.id)
            drawing.log.forget()

    def _let_go(self, drawing: Drawing) -> None:
        self.pulse.drop(drawing.claim.job.id)
        self._drawings.pop(drawing.claim.job.id, None)
        if drawing in self._line:
            self._line.remove(drawing)

    # Wishes

    def _obey(self) -> None:
        """Acts on what clients and the clock want, before the next step."""
        for verdict in self.pulse.verdicts():
            drawing = self._drawings.get(verdict.job)
            if drawing is not None:
                self._obey_one(drawing, verdict)

    def _obey_one(self, drawing: Drawing, verdict: Verdict) -> None:
        drawing.watched = verdict.preview_wanted
        if not verdict.alive:
            self._end(drawing, kept=False)
        elif verdict.cancel_requested:
            self._end(drawing, JobState.CANCELED, kept=self.store.cancelled(drawing.claim))
        elif verdict.deadline_passed:
            self._end(drawing, JobState.EXPIRED, kept=self.store.expire_job(drawing.claim))

    def _end(self, drawing: Drawing, outcome: JobState | None = None, *, kept: bool) -> None:
        """outcome: `None` where the job is another worker's."""
        if drawing.handle is not None:
            drawing.handle.cancel()
        self.measures.ended(drawing.claim, outcome or "", kept=kept)
        self._let_go(drawing)
        self._clean(drawing, kept=kept)

    # About itself

    def _say(self) -> None:
        """Writes what is to be known of this worker."""
        if time.monotonic() - self._said_at < SAY_S:
            return
        self._said_at = time.monotonic()
        if self._info is None:
            info = WorkerInfo(name=self.name, device=self.device, pid=os.getpid(), host=socket.gethostname())
            self._info = self.store.workers.hello(info)
        state = ("busy" if self._drawings else "idle") if self._state in ("idle", "busy") else self._state
        data = {FAIR: self.timing.state.to_json(), "metrics": self.measures.snapshot()}
        data |= {"problem": self._problem} if self._problem else {}
        said = replace(self._info, state=state, models=self.models.names, last_step_at=self._last_step_at, data=data)
        self.store.workers.beat(said)

    def _has_room_on_disk(self) -> bool:
        free = shutil.disk_usage(self.settings.data).free
        if free >= FREE_BYTES:
            if self._problem == FailureCode.STORAGE_FULL and not any(one.late_since for one in self._drawings.values()):
                self._problem = ""
            return True
        if self._problem != FailureCode.STORAGE_FULL:
            logger.error("no job is begun: %d MB are free in %s", free // 2**20, self.settings.data)
        self._problem = FailureCode.STORAGE_FULL
        return False

    def _most_rows(self, entry: QueueEntry) -> int | None:
        """Of a forward in the mode "fast", where it was decided."""
        rows = self.timing.of(entry.model).rows_for(entry.work.cells)
        return None if rows is None else rows[0]

    def _loras(self) -> frozenset[str]:
        return frozenset(str(entry.path) for entry in self.catalog.adapters() if entry.kind == "LoRA")


def _failure(error: BaseException) -> Failure:
    """Why a job failed. A stored picture that is damaged or gone is ours, not the request's."""
    if isinstance(error, ArtifactDamaged | FileNotFoundError):
        return Failure(code=FailureCode.UNREADABLE_FILE, detail=str(error))
    return failure_of(error)
