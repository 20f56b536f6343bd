"""Webhooks that are still to be called: written with the final state, and removed when the other side has answered."""

from sqlalchemy import Connection, delete, select, update

from undertow.serving.store.database import Database
from undertow.serving.store.records import Clock, Delivery
from undertow.serving.store.tables import deliveries, jobs


class Deliveries:
    """The outbox of a store. Each call is made at least once."""

    def __init__(self, database: Database, clock: Clock):
        self._database = database
        self._clock = clock

    def take(self, limit: int = 20, lease_s: float = 60.0) -> list[Delivery]:
        """Calls that are due; nobody else is given them for `lease_s`."""
        now = self._clock()
        due = select(deliveries.c.job).where(deliveries.c.due_at <= now).order_by(deliveries.c.due_at).limit(limit)
        if not self._database.read(lambda connection: connection.execute(due).first()):
            return []

        def lease(connection: Connection) -> list[Delivery]:
            mine = connection.execute(due.with_for_update(skip_locked=True)).scalars().all()
            chosen = deliveries.c.job.in_(mine)
            connection.execute(update(deliveries).where(chosen).values(due_at=now + lease_s))
            wanted = (
                select(deliveries.c.job, jobs.c.key, jobs.c.webhook.label("url"), deliveries.c.attempt)
                .join(jobs, jobs.c.id == deliveries.c.job)
                .where(chosen)
                .order_by(deliveries.c.job)
            )
            return [Delivery(**row) for row in connection.execute(wanted).mappings()]

        return self._database.write(lease, "delivery")

    def done(self, job: str) -> None:
        """The other side answered, or is given up."""
        one = delete(deliveries).where(deliveries.c.job == job)
        self._database.write(lambda connection: connection.execute(one), "delivery")

    def retry(self, job: str, at: float) -> None:
        """It failed, and is due again then."""
        again = update(deliveries).where(deliveries.c.job == job).values(due_at=at, attempt=deliveries.c.attempt + 1)
        self._database.write(lambda connection: connection.execute(again), "delivery")
