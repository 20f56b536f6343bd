"""What a service stands on in a soak: a disk that can be full, and a database server that can be killed."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

DISK_MB = 512


@contextmanager
def small_disk(folder: Path) -> Generator[bool]:
    """Mounts a file system of its own on a folder, where this user may; yields whether it did."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "undertow-soak", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(command, check=False, capture_output=True).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def is_mount(folder: Path) -> bool:
    return os.path.ismount(folder)


@contextmanager
def fill(folder: Path) -> Generator[None]:
    """Leaves not a byte on the disk of a folder."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
        yield
    finally:
        ballast.unlink(missing_ok=True)


class Postgresql:
    """A server of PostgreSQL of its own, from the `pgserver` wheel."""

    def __init__(self) -> None:
        import pgserver  # most runs need none

        self._folder = Path(tempfile.mkdtemp(prefix="undertow-postgresql-"))
        self._server = pgserver.get_server(self._folder / "data", cleanup_mode="stop")
        self.url = self._server.get_uri().replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")

    def restart(self) -> None:
        """Stops it without a shutdown, so that it recovers from its log when it starts again."""
        from pgserver import pg_ctl

        options = ["-w", "-m", "immediate", "-l", str(self._server.log), "restart"]
        pg_ctl(options, pgdata=self._server.pgdata, user=self._server.system_user, timeout=60)

    def lock(self, seconds: float) -> None:
        """Nobody else reads or writes jobs for so long."""
        engine = create_engine(self.url)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            time.sleep(seconds)
        engine.dispose()

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)
