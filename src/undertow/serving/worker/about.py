"""What a worker says of itself, so that everybody sees whether it draws."""

import logging
import os
import shutil
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from undertow.serving.store.records import WorkerInfo
from undertow.serving.store.store import Store
from undertow.serving.worker.neighbours import FOLDER, PLACE, folder_id, place

logger = logging.getLogger(__name__)

SAY_S = 1.0
"""Between two times that it is written."""
FREE_BYTES = 64 * 2**20
"""With less room on the disk of the pictures no job is begun: it would be lost when it is done."""
STORAGE_FULL = "storage_full"


@dataclass(kw_only=True, eq=False)
class About:
    """data: the folder of the pictures. storage: whether there is no room in it. store_problem: why the store could not
    be used the last time."""

    store: Store
    name: str
    device: str
    data: Path
    state: Literal["starting", "idle", "draining"] = "starting"
    storage: str = ""
    store_problem: str = ""
    last_step_at: float | None = None
    _info: WorkerInfo | None = field(default=None, init=False)
    _where: dict[str, str] = field(default_factory=dict, init=False)
    _said_at: float = field(default=float("-inf"), init=False)

    def say(self, *, busy: bool, models: tuple[str, ...], more: dict[str, Any], now: bool = False) -> None:
        """Writes what the worker is, if that was not done a moment ago. Errors: `StoreError`."""
        if not now and time.monotonic() - self._said_at < SAY_S:
            return
        self._said_at = time.monotonic()
        if self._info is None:
            info = WorkerInfo(name=self.name, device=self.device, pid=os.getpid(), host=socket.gethostname())
            self._where = {PLACE: place(), FOLDER: folder_id(self.data)}
            self._info = self.store.workers.hello(info)
        problem = self.storage or self.store_problem
        said = replace(
            self._info,
            state="busy" if busy and self.state == "idle" else self.state,
            models=models,
            last_step_at=self.last_step_at,
            data={**more, **self._where, **({"problem": problem} if problem else {})},
        )
        self.store.workers.beat(said)

    def has_room(self, *, late: bool) -> bool:
        """Whether pictures can be stored. late: some wait for it."""
        free = shutil.disk_usage(self.data).free
        if free < FREE_BYTES:
            if not self.storage:
                logger.error("no job is begun until there is more room: %d MB are free in %s", free // 2**20, self.data)
            self.storage = STORAGE_FULL
        elif not late:
            self.storage = ""
        return not self.storage
