"""A stand-in for the Hub on loopback: a folder of repositories, served as huggingface_hub asks for them."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as constants

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """repositories: the folder that holds owner/name. served: bytes that were sent of each file."""

    daemon_threads = True

    def __init__(self, repositories: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.served: dict[str, int] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def served(repositories: Path, cache: Path, monkeypatch) -> Generator[Hub]:
    """The server, as the Hub that the client asks, with an empty cache."""
    with Hub(repositories) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == [""]:  # the first page
            self._send(200, b"", {})
        elif parts[:2] == ["api", "models"]:
            self._list(self.server.repositories / parts[2] / parts[3])
        elif parts[0] == "api":
            self._send(404, b"", {})
        else:
            owner, name, _resolve, _revision, *file = parts
            self._file(self.server.repositories.joinpath(owner, name, *file), "/".join(file), body)

    def _list(self, folder: Path) -> None:
        if not folder.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        files = [file for file in folder.rglob("*") if file.is_file()]
        answer = [
            {"type": "file", "oid": "0", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
            for file in files
        ]
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path, name: str, body: bool) -> None:
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        size = file.stat().st_size
        first, last, status = 0, size - 1, 200
        if (asked := self.headers.get("Range")) is not None:
            first, _, end = asked.removeprefix("bytes=").partition("-")  # pyright: ignore[reportAssignmentType]
            first, last, status = int(first), min(int(end or last), last), 206
        headers = {"ETag": f'"{name}-{size}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with file.open("rb") as opened:
            opened.seek(first)
            content = opened.read(last - first + 1) if body else b""
        self.server.served[name] = self.server.served.get(name, 0) + len(content)
        self._send(status, content, headers, length=last - first + 1)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, length: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
