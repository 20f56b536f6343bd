"""Where the options of `undertow serve`, `worker` and `keys` arrive."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.cli.options.arrival import Boundary, Command, case
from undertow.serving.settings import ServerSettings
from undertow.serving.store.records import ApiKey, Scope

USUAL = {f"settings.{one.name}": getattr(ServerSettings(), one.name) for one in fields(ServerSettings)}


def serving(at: Boundary) -> None:
    def run(where: str) -> Any:
        def note(settings: ServerSettings) -> None:
            at.arrived |= {"runs": where}
            at.arrived |= {f"settings.{one.name}": getattr(settings, one.name) for one in fields(settings)}

        return note

    def check(settings: ServerSettings, *, ray: bool) -> ServerSettings:
        return settings

    at.patch.setattr("undertow.cli.serve._checked", check)
    at.patch.setattr("undertow.serving.worker.process.run_supervised", run("processes"))
    at.patch.setattr("undertow.serving.worker.process.run_in_one_process", run("threads"))
    at.patch.setattr("undertow.serving.cluster.running.run_until_signals", run("replicas"))
    at.patch.setattr("undertow.cli.serve._require_ray", lambda settings: None)  # Ray is installed aside


def checking(at: Boundary) -> None:
    serving(at)
    at.patch.setattr(
        "undertow.cli.serve._checked", lambda settings, ray: at.arrived.update(checked=settings.port) or settings
    )


SERVE = Command(
    verb=("serve",),
    arguments={"models": ("mine=dream.safetensors", "emoji")},
    boundary=serving,
    arrives={
        **USUAL,
        "settings.models": {"mine": "dream.safetensors", "emoji": "emoji"},
        "runs": "processes",
        "files": [],
    },
    cases=(
        case("--host", "0.0.0.0", settings__host="0.0.0.0"),
        case("--port", "9", settings__port=9),
        case("--port", "70000", refused="from 0 to 65535"),
        case("--data", "kept", settings__data=Path("kept")),
        case("--database", "postgresql+psycopg://here/x", settings__database="postgresql+psycopg://here/x"),
        case("--adapters", "a", "--adapters", "b", settings__adapters=(Path("a"), Path("b"))),
        case("--device", "cuda:0", "--device", "cuda:1", settings__devices=("cuda:0", "cuda:1")),
        case("--mode", "fast", settings__mode="fast"),
        case("--mode", "slow", refused="reproducible"),
        case("--budget", "2GB", settings__budget_bytes=2 * 10**9),
        case("--threads", "3", settings__threads=3),
        case("--precision", "bf16", settings__precision="bf16"),
        case("--precision", "f8", refused="f32"),
        case("--backend", "background", settings__backend="background"),
        case("--backend", "auto", refused="eager, packed, background, compile, openvino"),
        case("--quantize", "int8-weights", settings__quantize="int8-weights"),
        case("--quantize", "int8-weights", "--backend", "openvino", refused="OpenVINO has none of"),
        case("--jobs-at-once", "1", settings__jobs_at_once=1),
        case("--cors", "https://a.example", settings__cors=("https://a.example",)),
        case("--webhooks", settings__webhooks=True),
        case("--webhooks", "--no-webhooks", "--port", "9", settings__port=9),
        case("--webhooks-to-private-addresses", settings__webhooks_private=True),
        case(
            "--webhooks-to-private-addresses", "--webhooks-to-public-addresses", "--port", "9", settings__port=9
        ),
        case("--telemetry", settings__telemetry=True),
        case("--telemetry", "--no-telemetry", "--port", "9", settings__port=9),
        case("--no-page", settings__page=False),
        case("--no-page", "--page", "--port", "9", settings__port=9),
        case("--one-process", runs="threads"),
        case("--ray", runs="replicas"),
        case("--ray", "--min-replicas", "2", runs="replicas", settings__min_replicas=2),
        case("--ray", "--max-replicas", "3", runs="replicas", settings__max_replicas=3),
        case("--max-replicas", "3", refused="--max-replicas is 3, expected no value without --ray"),
        case("--min-replicas", "0", refused="at least 1"),
        case("--ray", "--min-replicas", "2", "--max-replicas", "1", refused="at most max_replicas, 1"),
        case("--ray", "--one-process", refused="--one-process is beside --ray"),
    ),
)  # fmt: skip
CHECK = Command(
    verb=("serve",),
    needed=("--check",),
    boundary=checking,
    arrives={"checked": 8188, "files": []},
    cases=(case("--port", "9", checked=9), case("--check", "--port", "9", checked=9)),
    about="only a check",
)


def working(at: Boundary) -> None:
    def note(settings: ServerSettings, *, api: bool = True) -> None:
        at.arrived |= {"runs": "an API" if api else "workers"}
        at.arrived |= {f"settings.{one.name}": getattr(settings, one.name) for one in fields(settings)}

    at.patch.setattr("undertow.cli.worker._checked", lambda settings: settings)
    at.patch.setattr("undertow.serving.worker.process.run_supervised", note)


def checking_workers(at: Boundary) -> None:
    working(at)
    at.patch.setattr(
        "undertow.cli.worker._checked", lambda settings: at.arrived.update(checked=settings.devices) or settings
    )


WORKER = Command(
    verb=("worker",),
    arguments={"models": ("mine=dream.safetensors", "emoji")},
    boundary=working,
    arrives={
        **USUAL,
        "settings.models": {"mine": "dream.safetensors", "emoji": "emoji"},
        "runs": "workers",
        "files": [],
    },
    cases=(
        case("--data", "kept", settings__data=Path("kept")),
        case("--database", "postgresql+psycopg://here/x", settings__database="postgresql+psycopg://here/x"),
        case("--adapters", "a", "--adapters", "b", settings__adapters=(Path("a"), Path("b"))),
        case("--device", "cuda:0", "--device", "cuda:1", settings__devices=("cuda:0", "cuda:1")),
        case("--threads", "3", settings__threads=3),
        case("--precision", "f16", settings__precision="f16"),
        case("--backend", "openvino", settings__backend="openvino"),
        case("--quantize", "none", settings__quantize="none"),
        case("--budget", "2GB", settings__budget_bytes=2 * 10**9),
        case("--jobs-at-once", "1", settings__jobs_at_once=1),
        case("--telemetry", settings__telemetry=True),
        case("--telemetry", "--no-telemetry", "--device", "cuda:1", settings__devices=("cuda:1",)),
    ),
)
WORKER_CHECK = Command(
    verb=("worker",),
    needed=("--check",),
    boundary=checking_workers,
    arrives={"checked": ("cpu",), "files": []},
    cases=(
        case("--device", "cuda:1", checked=("cuda:1",)),
        case("--check", "--device", "cuda:1", checked=("cuda:1",)),
    ),
    about="only a check",
)


def keeping(at: Boundary) -> None:
    key = ApiKey(id="key_1", name="ann", scopes=(Scope.READ,), created_at=0.0)

    def create(name: str, scopes: Any, *, max_queued: Any, requests_per_minute: Any) -> tuple[ApiKey, str]:
        at.arrived |= {"name": name, "scopes": scopes, "queued": max_queued, "minute": requests_per_minute}
        return key, "ut_secret"

    def revoke(id: str) -> None:
        at.arrived["revoked"] = id

    made = [key] if at.arrived.get("with a key") else []
    store = SimpleNamespace(keys=SimpleNamespace(create=create, list=lambda: made, revoke=revoke))

    @contextmanager
    def opened(data: Any, database: Any, *, there: bool = False) -> Generator[Any]:
        at.arrived |= {"data": data, "database": database}
        yield store

    at.patch.setattr("undertow.cli.keys._opened", opened)


def with_a_key(at: Boundary) -> None:
    at.arrived["with a key"] = True
    keeping(at)


PLACE = {"data": None, "database": None}
PLACES = (case("--data", "kept", data=Path("kept")), case("--database", "sqlite:///x.db", database="sqlite:///x.db"))
ADD = Command(
    verb=("keys", "add"),
    arguments={"name": "bob"},
    boundary=keeping,
    arrives={
        **PLACE, "name": "bob", "scopes": (Scope.SUBMIT, Scope.READ), "queued": None, "minute": None, "files": []
    },
    cases=(
        *PLACES,
        case("--scope", "read", "--scope", "admin", scopes=(Scope.READ, Scope.ADMIN)),
        case("--scope", "raed", refused="'read'"),
        case("--max-queued", "3", queued=3),
        case("--per-minute", "7", minute=7),
    ),
)  # fmt: skip
LIST = Command(
    verb=("keys", "list"), boundary=with_a_key, arrives={**PLACE, "with a key": True, "files": []}, cases=PLACES
)
REVOKE = Command(
    verb=("keys", "revoke"),
    arguments={"name": "ann"},
    boundary=with_a_key,
    arrives={**PLACE, "with a key": True, "revoked": "key_1", "files": []},
    cases=PLACES,
)
COMMANDS = (SERVE, CHECK, WORKER, WORKER_CHECK, ADD, LIST, REVOKE)
