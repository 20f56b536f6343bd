"""What workers say of themselves and of their speed."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import delete, select

from undertow.serving.store.database import Database, put_rows
from undertow.serving.store.records import Clock, WorkerInfo
from undertow.serving.store.tables import costs, workers


class Workers:
    """The worker processes of a store, by name."""

    def __init__(self, database: Database, clock: Clock):
        self._database = database
        self._clock = clock

    def hello(self, info: WorkerInfo) -> WorkerInfo:
        """Writes a worker that starts; what comes back has the time, and is what `beat` takes, with changes."""
        started = replace(info, started_at=self._clock())
        self.beat(started)
        return started

    def beat(self, info: WorkerInfo) -> None:
        """Writes what a worker is now."""
        now = self._clock()
        row = {"name": info.name, "info": asdict(replace(info, seen_at=now)), "seen_at": now}
        self._database.write(
            lambda connection: put_rows(connection, workers, [row], replace=["info", "seen_at"]), "worker"
        )

    def goodbye(self, name: str) -> None:
        self._database.write(
            lambda connection: connection.execute(delete(workers).where(workers.c.name == name)), "worker"
        )

    def list(self, seen_after: float = 0.0) -> list[WorkerInfo]:
        """Those that wrote after this time, by name."""
        rows = self._database.read(
            lambda connection: connection.execute(
                select(workers.c.info).where(workers.c.seen_at > seen_after).order_by(workers.c.name)
            ).all()
        )
        return [WorkerInfo(**{**row.info, "models": tuple(row.info["models"])}) for row in rows]


class StoredCosts:
    """Measured seconds, as JSON, by model, device, and how a worker computes there: what takes its time otherwise is
    measured by itself, and overwrites nothing."""

    def __init__(self, database: Database, clock: Clock):
        self._database = database
        self._clock = clock

    def get(self, model: str, device: str, computing: str) -> dict[str, Any] | None:
        one = select(costs.c.costs).where(
            costs.c.model == model, costs.c.device == device, costs.c.computing == computing
        )
        return self._database.read(lambda connection: connection.execute(one).scalar())

    def put(self, model: str, device: str, computing: str, measured: Mapping[str, Any]) -> None:
        row = {"model": model, "device": device, "computing": computing, "at": self._clock(), "costs": dict(measured)}
        self._database.write(lambda connection: put_rows(connection, costs, [row], replace=["at", "costs"]), "costs")

    def all(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """Those that were written last come last."""
        rows = self._database.read(lambda connection: connection.execute(select(costs).order_by(costs.c.at)).all())
        return {(row.model, row.device, row.computing): row.costs for row in rows}
