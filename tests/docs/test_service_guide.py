"""The guide of the service is run against one: its curl, its Python and its JavaScript, in order.

A stand-in for the worker draws plain colors; what is shown is that every command is taken and every answer is as the
guide says.
"""

import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
import tomllib
from pathlib import Path

import pytest
import typer
import uvicorn

from tests.docs.test_examples import ROOT, runnable_blocks
from tests.serving.api.stand_in import open_api, shared_catalog
from undertow.cli.app import Settings, _build, main
from undertow.cli.config import Config
from undertow.cli.service_settings import ServerSettings
from undertow.cli.verbs import VERBS

GUIDE = ROOT / "docs/guides/service.md"
ADDRESS = "http://127.0.0.1:8188"
TEXT = GUIDE.read_text()


@pytest.fixture
def address(tmp_path):
    """Of a service that draws."""
    api = open_api(tmp_path / "data", shared_catalog())
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api.app, log_config=None))
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            api.work()

    threads = [threading.Thread(target=work), threading.Thread(target=server.run, kwargs={"sockets": [place]})]
    for thread in threads:
        thread.start()
    while not server.started:
        time.sleep(0.01)
    yield "http://{}:{}".format(*place.getsockname())
    over.set()
    server.should_exit = True
    for thread in threads:
        thread.join()
    place.close()
    api.close()


def test_the_guide_runs(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in runnable_blocks(TEXT):
        text = block.text.replace(ADDRESS, address)
        if block.language == "python":
            exec(compile("\n" * block.line + text, GUIDE, "exec"), namespace)
            continue
        for command in text.replace("\\\n", " ").splitlines():
            words = shlex.split(command)
            if words[0] == "undertow":
                assert main(words[1:]) == 0, command
            elif shutil.which("curl"):
                found = subprocess.run(words, capture_output=True, check=True, text=True)
                answer = json.loads(found.stdout)
                assert "findings" in answer or answer["state"] == "succeeded"
    namespace["client"].close()  # type: ignore[attr-defined]
    assert (tmp_path / "owl.png").read_bytes().startswith(b"\x89PNG")
    assert "event: succeeded" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_its_javascript_runs(address, tmp_path):
    (script,) = re.findall(r"^```js\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "draw.mjs").write_text(script.replace(ADDRESS, address))
    found = subprocess.run(["node", "draw.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert re.search(r"^\d+ bytes$", found.stdout, flags=re.MULTILINE)


def test_its_settings_are_settings():
    (text,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    settings = ServerSettings.from_json(Config.from_json(tomllib.loads(text)).serve)
    assert settings.default_model == "dream"
    for named in re.findall(r"\(`([a-z_]+)`\)", TEXT):
        if named not in ("poison", "expired", "deadline_unreachable", "state", "request"):
            assert hasattr(settings, named), named


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("docs/deploy/undertow.service", r"^ExecStart=\S*/undertow (.*)$"),
        ("docs/deploy/Dockerfile", r"^CMD (\[.*\])$"),
        ("docs/guides/service.md", r"^docker run.* undertow undertow (.*)$"),
    ],
)
def test_what_starts_it_elsewhere_is_a_command_line(file, pattern):
    """Its verb and its options exist."""
    (found,) = re.findall(pattern, (ROOT / file).read_text(), flags=re.MULTILINE)
    words = json.loads(found)[1:] if found.startswith("[") else shlex.split(found)
    command = typer.main.get_command(_build(VERBS, Settings()))
    while words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_guide_s_unit_is_the_file(tmp_path):
    (shown,) = re.findall(r"^```ini\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    unit = Path(ROOT / "docs/deploy/undertow.service").read_text()
    assert all(line in unit for line in shown.splitlines())
