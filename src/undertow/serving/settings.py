"""How a service is set up: read from `[serve]` in undertow.toml and from the options of `undertow serve`. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from undertow.errors import InvalidInput
from undertow.known_names import BackendName, PrecisionName
from undertow.quantization import NONE, Quantized
from undertow.records import Record
from undertow.serving.jobs import Mode

GRAPH_S = 900.0
"""Given to a forward whose graph is made first."""
START_S = {"compile": 300.0, "openvino": 60.0}
"""By backend, how long a worker takes that never started before: the graphs of some numbers of rows are made."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Record):
    """What a service serves, where it keeps it, and how much it takes. Errors: `InvalidInput`."""

    argument_prefix = "serve."

    data: Path = Path("undertow-data")
    """Folder of the database, the pictures and the logs of running jobs."""
    database: str | None = None
    """URL of the database; SQLite in the data folder when `None`, postgresql+psycopg://... for PostgreSQL."""
    models: Mapping[str, str] = field(default_factory=lambda: {name: name for name in ("emoji", "emoji-turbo")})
    """Models by the names that clients use; the first is taken when they name none."""
    adapters: tuple[Path, ...] = ()
    """Folders of adapters (LoRA, ControlNet, IP-Adapter, textual inversions), which clients name by file name."""
    host: str = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535)] = 8188
    devices: tuple[str, ...] = ("cpu",)
    """One worker process for each."""
    threads: Annotated[int, Ge(1), Le(1024)] | None = None
    """Of a worker on a CPU; pictures have other bytes with another number. When `None`: what OMP_NUM_THREADS says, else
    the cores but one, shared among the workers."""
    precision: PrecisionName | None = None
    """Type that all models compute in; when `None` that of their files, or float32 where the device has it not."""
    backend: BackendName = "eager"
    """What computes the U-Nets of all models, as `undertow.load` knows it."""
    quantize: Quantized | None = None
    """How the weights of linear layers are quantized when models are loaded; when `None` as in their files."""
    mode: Mode = "reproducible"
    """Where a client names none."""
    budget_bytes: Annotated[int, Ge(1)] | None = None
    """The most memory of a worker; what is free when it starts when `None`."""
    jobs_at_once: Annotated[int, Ge(1)] | None = None
    """Jobs that a worker draws together; as many as were measured to be worth it when `None`."""
    queue_limit: Annotated[int, Ge(1)] = 1000
    """Jobs that wait; more are refused with the time after which to come again."""
    queue_limit_per_key: Annotated[int, Ge(1)] = 1000
    lease_s: Annotated[float, Ge(1)] = 30.0
    """After which a job of a worker that says nothing goes to another."""
    stall_s: Annotated[float, Ge(1)] = 120.0
    """A unit of work may take so long, or ten times as long as the longest before; an engine that hangs loses its jobs
    and is started again."""
    attempts: Annotated[int, Ge(1)] = 3
    """Workers that a job may cost, each without getting any further, before it is given up as poison."""
    grace_s: Annotated[float, Ge(0)] = 20.0
    """Given to running jobs when the service is stopped; what is not done goes on when it starts again."""
    keep_s: Annotated[float, Ge(60)] = 7 * 24 * 3600.0
    """How long finished jobs and their pictures are kept."""
    max_body_bytes: Annotated[int, Ge(1024)] = 64 * 2**20
    max_adapter_bytes: Annotated[int, Ge(1024)] = 2 * 2**30
    """Of an adapter that comes over HTTP; each needs a key with the scope `admin`."""
    max_pixels: Annotated[int, Ge(1)] = 4096 * 4096
    """Of an uploaded picture, and of one that is drawn."""
    max_steps: Annotated[int, Ge(1)] = 200
    max_count: Annotated[int, Ge(1)] = 16
    """Pictures of one job."""
    min_replicas: Annotated[int, Ge(1)] = 1
    """Workers that Ray keeps, with --ray."""
    max_replicas: Annotated[int, Ge(1)] | None = None
    """Workers that Ray may start when much waits; as many as `min_replicas` when `None`."""
    catch_up_s: Annotated[float, Ge(1)] = 30.0
    """Ray starts workers until all that waits would be drawn within this time."""
    page: bool = True
    """Whether the studio is served at /."""
    cors: tuple[str, ...] = ()
    """Origins of web pages that may call the API."""
    webhooks: bool = False
    """Whether jobs may name a URL that is told when they are done."""
    webhooks_private: bool = False
    """Whether such URLs may lead into this machine's own network."""
    webhook_secret: str | None = None
    """By which receivers know that it is this service that calls."""
    telemetry: bool = False
    """Whether traces are sent with OpenTelemetry, where the OTEL_* environment says."""
    log_prompts: bool = False
    """Whether the log tells the prompts of jobs; it has their ids alone, and no sentence that may quote a prompt."""

    def __post_init__(self) -> None:
        if self.min_replicas > self.most_replicas:
            expected = f"at most max_replicas, {self.most_replicas}"
            raise InvalidInput("serve.min_replicas", self.min_replicas, expected, "raise the one, or lower the other")
        if self.backend in ("packed", "openvino"):
            self._require_backend_fits()

    def _require_backend_fits(self) -> None:
        """Errors: `InvalidInput` for a backend of CPUs elsewhere, and for what OpenVINO does not compute with."""
        if self.backend == "openvino" and self.quantize not in (None, NONE):
            expected = "another one for quantized weights, whose products OpenVINO has none of"
            raise InvalidInput("serve.backend", "'openvino'", expected, "or leave out quantize")
        other = next((device for device in self.devices if device != "cpu"), None)
        if other is not None:
            expected = f"'eager', 'background' or 'compile' on {other}"
            raise InvalidInput("serve.backend", repr(self.backend), expected, "it computes on CPUs")

    @property
    def most_replicas(self) -> int:
        return self.min_replicas if self.max_replicas is None else self.max_replicas

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data.absolute() / 'undertow.db'}"

    @property
    def adapter_uploads(self) -> Path:
        """Where adapters lie that came over HTTP."""
        return self.data / "adapters"

    @property
    def default_model(self) -> str:
        return next(iter(self.models))

    @property
    def unit_s(self) -> float:
        """How long a unit of work may take that is the first: one in which a graph is made takes minutes."""
        return max(self.stall_s, GRAPH_S) if self.backend in ("compile", "openvino") else self.stall_s

    @property
    def start_s(self) -> float:
        """How long a worker takes to start for the first time, as far as it is worth telling."""
        return START_S.get(self.backend, 0.0)

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach it."""
        return self.host not in LOOPBACK
