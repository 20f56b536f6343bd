"""Stores with workers over a tiny pipeline, as tests make them: nothing of it stands in for anything."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.adapters.lora.files import kohya, layers_of, write
from tests.services import pipeline_folder, service_of
from undertow.attention.measurement import Machine
from undertow.serving.admission import Admission
from undertow.serving.artifacts import ArtifactFolder
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.clock.costs import Costs
from undertow.serving.jobs import Job, JobState
from undertow.serving.settings import ServerSettings
from undertow.serving.store.store import Store
from undertow.serving.worker.threads import threads_of_worker
from undertow.serving.worker.timing import computing_of
from undertow.serving.worker.worker import Worker

FAMILY = "sd1"


def adapter_files(folder: Path) -> Path:
    """LoRA that act in slots, one that is merged, and two that cannot be drawn with."""
    layers = layers_of(service_of(FAMILY).unet)
    attention = {name: shape for name, shape in layers.items() if ".attn" in name}
    folder.mkdir(exist_ok=True)
    write(folder / "one.safetensors", kohya(attention, rank=4))
    write(folder / "two.safetensors", kohya(layers, rank=8, alpha=4.0))
    write(folder / "three.safetensors", kohya(dict(list(attention.items())[::2]), rank=16))
    write(folder / "large.safetensors", kohya(attention, rank=24))
    endless = {name: tensor * 1e20 for name, tensor in kohya(attention, rank=4).items()}
    write(folder / "endless.safetensors", endless)
    other = {name: (shape[0] + 8, *shape[1:]) for name, shape in attention.items()}
    write(folder / "other.safetensors", kohya(other, rank=4))
    return folder


@dataclass(kw_only=True)
class Place:
    """A data folder, and who opens it. clock: of its store."""

    data: Path
    settings: ServerSettings
    catalog: Catalog
    store: Store
    artifacts: ArtifactFolder
    workers: list[Worker] = field(default_factory=list)

    def submit(
        self,
        *,
        rows: int | None = 4,
        key: str = "key",
        settings: ServerSettings | None = None,
        promised_at: float | None = None,
        **wanted: Any,
    ) -> str:
        """A job of the mode "reproducible" with so many rows, unless `mode` says another. settings: of the door, the
        place's own when `None`. promised_at: what its client is told. Its id."""
        request = {"prompt": "red apple", "seed": 1, "steps": 3, "reuse": False, **wanted}
        new = Admission(self.catalog, self.artifacts, settings or self.settings).admit(request, key)
        if new.spec.mode == "reproducible":
            new = replace(new, spec=replace(new.spec, rows=rows))
        return self.store.submit(replace(new, finish_at=promised_at)).job.id

    def worker(self, name: str = "first", **given: Any) -> Worker:
        worker = Worker(self.store, self.artifacts, self.catalog, self.settings, name=name, **given)
        worker.start()
        self.workers.append(worker)
        return worker

    def finish(self, worker: Worker, *ids: str, timeout_s: float = 60.0) -> list[Job]:
        """The jobs when they are done."""
        until = time.monotonic() + timeout_s
        while True:
            found = [self.store.job(one) for one in ids]
            if all(job.state.is_final for job in found):
                return found
            assert time.monotonic() < until, found
            worker.run_once()

    def draw(self, worker: Worker, *ids: str) -> list[str]:
        """The hashes of what the jobs drew."""
        found = self.finish(worker, *ids)
        assert [job.state for job in found] == [JobState.SUCCEEDED] * len(ids), [job.failure for job in found]
        return [picture.sha256 for job in found if job.result for picture in job.result.pictures]

    def run_until(self, worker: Worker, id: str, step: int) -> None:
        """Until a job has come to a step."""
        for _ in range(1000):
            worker.run_once()
            drawing = worker._drawings.get(id)
            assert drawing is not None, self.store.job(id)
            if drawing.progress().step >= step:
                return
        raise AssertionError("never")

    def close(self) -> None:
        for worker in self.workers:
            for drawing in worker._drawings.values():
                drawing.log.close()
            worker.models.close()
        self.store.close()


def open_place(data: Path, catalog: Catalog, clock: Any = time.time, **settings: Any) -> Place:
    chosen = replace(catalog.settings, data=data, **settings)
    artifacts = ArtifactFolder(data / "artifacts")
    store = Store.open(
        chosen.database_url,
        clock=clock,
        attempts=chosen.attempts,
        keep_s=chosen.keep_s,
        logged=artifacts.logged,
    )
    for computing in ways_to_compute(chosen):
        store.costs.put("tiny", "cpu", computing, known_costs())  # so that nothing is measured
    return Place(data=data, settings=chosen, catalog=catalog, store=store, artifacts=artifacts)


def ways_to_compute(settings: ServerSettings) -> set[str]:
    """Of workers in this process, and in processes of their own."""
    here = Machine.here("cpu")
    machines = (here, replace(here, threads=threads_of_worker(settings, "cpu") or here.threads))
    return {computing_of(settings, machine) for machine in machines}


def known_costs() -> Mapping[str, Any]:
    costs, cells = Costs(), service_of(FAMILY).config.sample_size ** 2
    for rows in (1, 2, 4, 8):
        costs.learn("denoise", seconds=0.01 + 0.001 * rows, cells=cells, rows=rows)
    costs.decide(cells)
    return costs.to_json()


def tiny_settings(adapters: Path, **settings: Any) -> ServerSettings:
    return ServerSettings(models={"tiny": str(pipeline_folder(FAMILY))}, adapters=(adapters,), **settings)
