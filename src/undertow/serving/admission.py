"""The door of the service: from a client's JSON to a job in which nothing is left open. No torch.

Whatever can be known before a model is loaded is refused here, with the field, its value and what helps; what only the
engine can tell fails later, as a failure of the job.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MaxLen

from undertow.checkpoints.identify.few_steps import left_to_model
from undertow.doors import nearest
from undertow.encoders.prompts.catalogue import parse_prompt
from undertow.encoders.prompts.tree import Blend
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.lookup import in_seconds
from undertow.memory.lora_reach import is_of_text
from undertow.memory.plan import MemoryPlan
from undertow.memory.subjects import require_size
from undertow.pictures.files import describe_picture
from undertow.records import Finite, Record, annotations
from undertow.serving.adapter_room import PER_ROW, RANK
from undertow.serving.amount import cost_of, pinned_rows, rows_of, work_of
from undertow.serving.capacity import Capacity, are_merged
from undertow.serving.catalog.catalog import Catalog, misfit
from undertow.serving.catalog.entries import EMBEDDING, AdapterEntry, ModelEntry
from undertow.serving.clock.timetable import Timetable
from undertow.serving.drawable import require_drawable
from undertow.serving.failures import FailureCode, Refused
from undertow.serving.inspection import InspectOptions
from undertow.serving.inspection_checks import require_maps
from undertow.serving.jobs import Format, JobSpec, JobWork, Mode, NewJob
from undertow.serving.request_json import Json, adapters_in, with_pictures, with_sources
from undertow.serving.settings import ServerSettings
from undertow.serving.uploads import Artifacts, Uploads

SEEDS = 2**32
"""Seeds are drawn below it, so that every client can read and repeat them."""


@dataclass(frozen=True, kw_only=True)
class JobOptions(Record):
    """What a client may say about a job, beside what is to be drawn. deadline_s: seconds from now. The rest as in
    `NewJob` and `JobSpec`."""

    model: str | None = None
    """Name of the model; the service's first when `None`."""
    mode: Mode | None = None
    """"reproducible": equal to the byte whatever else runs; "fast": in any batch. The service's own when `None`."""
    format: Format = "png"
    """Of the pictures' files."""
    priority: Annotated[int, Ge(-10), Le(10)] = 0
    """Among the jobs of the same key: higher goes first."""
    deadline_s: Annotated[Finite, Gt(0)] | None = None
    """Seconds from now after which the pictures are of no use; refused at once where it cannot be kept."""
    label: Annotated[str, MaxLen(1024)] = ""
    """Whatever the client wants to remember, never read."""
    webhook: str | None = None
    """URL that is told when the job is done."""
    reuse: bool = True
    """Whether pictures that were drawn before of the very same request are the result."""
    inspect: InspectOptions | None = None
    """What is looked at while it is drawn; the key needs the scope `inspect`."""


CELLS_AT_ONCE = 8192
"""Of a forward, where nothing was measured yet: as `engine.limits` has it for a CPU."""

OPTIONS = tuple(one.name for one in fields(JobOptions))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A job that a client may ask for, of which is not known yet whether it can be drawn here, and when."""

    new: NewJob
    read: "_Read"


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What a client's JSON means. pinned: rows of every forward of a reproducible job. forward_rows: of any."""

    options: JobOptions
    model: ModelEntry
    request: GenerationRequest
    used: dict[str, AdapterEntry]
    uploads: Uploads
    work: JobWork
    mode: Mode
    pinned: int | None
    forward_rows: int
    body_hash: str


class Admission:
    """Makes jobs of what clients ask for. artifacts: where pictures of requests are kept. times: says when a job will
    be done; nothing is said when `None`. readable: gives the bytes of an artifact that a key may use; every artifact
    when `None`. clock: seconds since 1970."""

    def __init__(
        self,
        catalog: Catalog,
        artifacts: Artifacts,
        settings: ServerSettings,
        *,
        times: Timetable | None = None,
        readable: Callable[[str, str], bytes] | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.catalog = catalog
        self.artifacts = artifacts
        self.settings = settings
        self.times = times
        self.capacity = Capacity(settings)
        self.clock = clock
        self._readable = (lambda sha256, key: artifacts.read(sha256)) if readable is None else readable

    def admit(
        self,
        wanted: Mapping[str, Any],
        key: str,
        *,
        client_id: str | None = None,
        idempotency_key: str | None = None,
        batch: str | None = None,
        traceparent: str | None = None,
    ) -> NewJob:
        """A job for the JSON of a client. Errors: those of `read` and `accept`."""
        names = {"client_id": client_id, "idempotency_key": idempotency_key, "batch": batch, "traceparent": traceparent}
        return self.accept(self.read(wanted, key, **names))

    def read(
        self,
        wanted: Mapping[str, Any],
        key: str,
        *,
        client_id: str | None = None,
        idempotency_key: str | None = None,
        batch: str | None = None,
        traceparent: str | None = None,
    ) -> Wanted:
        """What a client asks for: the fields of a `GenerationRequest` and of `JobOptions` beside each other. Errors:
        `InvalidInput` for what no service could draw."""
        read = self._read(wanted, key, client_id or idempotency_key)
        options, model, request, used = read.options, read.model, read.request, read.used
        inspect = options.inspect if options.inspect is not None and options.inspect.asks else None
        spec = JobSpec(
            model=model.name,
            request=_spec_json(request, read.uploads),
            mode=read.mode,
            rows=read.pinned,
            format=options.format,
            files={"": model.hash, **{name: entry.hash for name, entry in used.items()}},
            inspect=inspect,
        )
        work = read.work
        if inspect is not None:
            work = replace(work, longer=inspect.longer, after_s=inspect.after_s)
        new = NewJob(
            key=key,
            spec=model.computed(spec),
            work=work,
            inputs=tuple(read.uploads.files.values()),
            cost=cost_of(work, model) * work.longer,
            priority=options.priority,
            client_id=client_id,
            idempotency_key=idempotency_key,
            body_hash=read.body_hash,
            label=options.label,
            deadline_at=None if options.deadline_s is None else self.clock() + options.deadline_s,
            webhook=self._webhook(options),
            batch=batch,
            traceparent=traceparent,
            alone=inspect is not None and inspect.profile,
            reuse=options.reuse,
        )
        return Wanted(new=new, read=read)

    def accept(self, wanted: Wanted) -> NewJob:
        """The job with the time when it will be done; its pictures are kept. Errors: `Refused` for what this service
        cannot draw, and for a deadline that it cannot keep."""
        read = wanted.read
        self.capacity.require(read.request, read.model, read.used, read.forward_rows)
        new = self._promised(wanted.new, read.options.deadline_s)
        for content in read.uploads.taken.values():
            self.artifacts.put(content)
        return new

    def forecast(self, wanted: Wanted) -> MemoryPlan | None:
        """The memory and the time that a job would take, whether it fits or not; `None` for what cannot be forecast."""
        read = wanted.read
        return self.capacity.plan(read.request, read.model, read.used, read.forward_rows)

    def _read(self, wanted: Mapping[str, Any], key: str, repeated_as: str | None) -> "_Read":
        """Errors: `InvalidInput`."""
        options, request_json = _parted(wanted)
        body_hash = _hash(wanted)
        model = self.catalog.model(options.model)
        uploads = self.uploads_of(key)
        prepared = with_pictures(with_sources(dict(request_json)), uploads.open)
        prepared.setdefault("seed", _seed(key, repeated_as, body_hash))
        prepared = {**left_to_model(model.suggested, _given(prepared)), **prepared}
        used = self._name(prepared, model)
        request = GenerationRequest.from_json(prepared)
        self._check(request, model, used)
        request = _resolved(request, model)
        maps = None if options.inspect is None else options.inspect.maps
        if maps is not None:
            require_maps(maps, request, model)
        work = work_of(request, model)
        mode = self.settings.mode if options.mode is None else options.mode
        pinned = None
        if mode == "reproducible":
            pinned = pinned_rows(work.cells, rows_of(request, model), self.capacity.device)
        return _Read(
            options=options,
            model=model,
            request=request,
            used=used,
            uploads=uploads,
            work=work,
            mode=mode,
            pinned=pinned,
            forward_rows=self._most_rows(model, work) if pinned is None else pinned,
            body_hash=body_hash,
        )

    def _promised(self, new: NewJob, deadline_s: float | None) -> NewJob:
        """With the time when it will be done. deadline_s: as the client gave it. Errors: `Refused` for a deadline that
        cannot be kept."""
        if self.times is None:
            return new
        finish_at = self.times.promise(new)
        if deadline_s is not None and new.deadline_at is not None and finish_at > new.deadline_at:
            takes_s = finish_at - (new.deadline_at - deadline_s)
            self.times.withdraw(new)
            raise Refused(
                FailureCode.DEADLINE_PASSED,
                f"deadline_s is {deadline_s:g}, and the job will be done in {in_seconds(takes_s)}: give it more time, "
                "fewer steps or a smaller size, or come again later",
                {"finish_s": round(takes_s, 3), "deadline_s": deadline_s, "finish_at": finish_at},
            )
        return replace(new, finish_at=finish_at)

    def conditioned(self, context: Json, place: str, model: ModelEntry, uploads: Uploads) -> dict[str, AdapterEntry]:
        """The adapters of a context of predictions, named in place as the catalog has them, with their pictures as
        artifacts. place: of the context, for errors. Errors: `InvalidInput`."""
        try:
            opened = with_pictures(with_sources(context), uploads.open)
            used = self._name(opened, model)
        except InvalidInput as err:
            raise InvalidInput(f"{place}.{err.argument}", err.value, err.expected, err.remedy) from err
        context.update(with_pictures(opened, lambda _, picture: uploads.named(describe_picture(picture))))
        return used

    def uploads_of(self, key: str) -> Uploads:
        """For the pictures of one request of a key."""
        return Uploads(read=lambda sha256: self._readable(sha256, key), max_pixels=self.settings.max_pixels)

    def _name(self, request: Json, model: ModelEntry) -> dict[str, AdapterEntry]:
        """Every adapter and embedding that a request names, under the catalog's own spelling. Errors: `InvalidInput`
        for those that are not listed, or do not fit the model."""
        used: dict[str, AdapterEntry] = {}
        for place, adapter in adapters_in(request):
            entry = self.catalog.adapter(adapter["source"], model.name, argument=f"{place}.name")
            _require_fit(f"{place}.name", entry, model, embedding=False)
            adapter["source"] = entry.name
            adapter.setdefault("name", entry.name)
            _require_pictures(place, adapter, entry)
            used[entry.name] = entry
        given = request.get("embeddings")
        names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        for index, name in enumerate(names):
            entry = self.catalog.adapter(str(name), model.name, argument=f"embeddings[{index}]")
            _require_fit(f"embeddings[{index}]", entry, model, embedding=True)
            used[entry.name] = entry
        if names:
            request["embeddings"] = [self.catalog.adapter(str(name), model.name).name for name in names]
        return used

    def _check(self, request: GenerationRequest, model: ModelEntry, used: Mapping[str, AdapterEntry]) -> None:
        """Errors: `InvalidInput` for more than the service draws, and for what does not fit the model."""
        settings = self.settings
        steps = request.steps if request.sigmas is None else len(request.sigmas)
        more = request.high_resolution
        for name, count, most in (
            ("steps", steps, settings.max_steps),
            ("high_resolution.steps", more.steps if more is not None and more.steps else 0, settings.max_steps),
            ("count", request.count, settings.max_count),
        ):
            if count > most:
                raise InvalidInput(name, f"{count:,}", f"at most {most:,}", "this service draws no more at once")
        _check_names(request)
        _check_prompts(request)
        require_drawable(request, model, used)
        _require_slots(request, model, [entry for entry in used.values() if entry.kind == "LoRA"])
        if request.size is not None:
            require_size("size", request.size, model.subject)
            _require_pixels("size", request.size, settings.max_pixels)
        if more is not None:
            height, width = _own_size(request, model)
            _require_pixels("high_resolution.scale", (height * more.scale, width * more.scale), settings.max_pixels)

    def _most_rows(self, model: ModelEntry, work: JobWork) -> int:
        """Of a forward in the mode "fast"."""
        measured = None if self.times is None else self.times.rows(model.name, work.cells)
        return max(2, CELLS_AT_ONCE // max(1, work.cells)) if measured is None else measured

    def _webhook(self, options: JobOptions) -> str | None:
        if options.webhook is not None and not self.settings.webhooks:
            expected = "none: this service calls no webhooks"
            raise InvalidInput("webhook", repr(options.webhook[:100]), expected, "its operator may allow them")
        return options.webhook


def _parted(wanted: Mapping[str, Any]) -> tuple[JobOptions, Json]:
    """What is said about the job, and about the request. Errors: `InvalidInput` for a field of neither."""
    known = (*OPTIONS, *annotations(GenerationRequest))
    for name in wanted:
        if name not in known:
            raise InvalidInput(str(name)[:100], "given", "a field of a job or of a request", nearest(str(name), known))
    options = JobOptions.from_json({name: wanted[name] for name in OPTIONS if name in wanted})
    return options, {name: value for name, value in wanted.items() if name not in OPTIONS}


def _seed(key: str, repeated_as: str | None, body_hash: str) -> int:
    """A seed where none is given: drawn, but the same again where the client repeats a job under a name of its own."""
    if repeated_as is None:
        return secrets.randbelow(SEEDS)
    digest = hashlib.sha256("\0".join((key, repeated_as, body_hash)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEEDS


def _resolved(request: GenerationRequest, model: ModelEntry) -> GenerationRequest:
    """With the model's own size where none is given, and no image has one."""
    if request.size is not None or request.image is not None:
        return request
    return replace(request, size=(model.trained_size, model.trained_size))


def _given(request: Mapping[str, Any]) -> set[str]:
    """Fields that a client says something in."""
    return {name for name, value in request.items() if value is not None}


def _own_size(request: GenerationRequest, model: ModelEntry) -> tuple[int, int]:
    if request.size is not None:
        return request.size
    if request.image is not None:
        return request.image.height, request.image.width
    return model.trained_size, model.trained_size


def _spec_json(request: GenerationRequest, uploads: Uploads) -> Json:
    """All fields, with pictures as artifacts."""
    described = request.to_json(embed=False, files=False)
    return with_pictures(described, lambda _, given: uploads.named(given))


def _check_names(request: GenerationRequest) -> None:
    """As the engine does. Errors: `InvalidInput` for adapters in the same rows that are called the same."""
    for beside in ((), *(region.adapters for region in request.regions)):
        titles = [adapter.title for adapter in (*request.adapters, *beside)]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            remedy = "give one of them another `name`"
            raise InvalidInput("adapters", f"{', '.join(twice)} twice", "a unique name for each", remedy)


def _check_prompts(request: GenerationRequest) -> None:
    """Errors: `PromptError`, `InvalidInput`."""
    parsed = [parse_prompt(request.prompt, request.dialect)]
    for prompt in (request.negative_prompt, *(region.prompt for region in request.regions)):
        parsed.append(parse_prompt(prompt, request.dialect, composition=False))
    for one in parsed:
        if isinstance(one.tree, Blend):
            one.tree.require_sum()


def _require_fit(argument: str, entry: AdapterEntry, model: ModelEntry, *, embedding: bool) -> None:
    if (entry.kind == EMBEDDING) != embedding:
        where = "embeddings" if entry.kind == EMBEDDING else "adapters"
        wanted = "a textual inversion" if embedding else "an adapter"
        raise InvalidInput(argument, repr(entry.name), wanted, f"it is a {entry.kind}: name it in {where}")
    why = misfit(entry, model)
    if why is not None:
        raise InvalidInput(argument, repr(entry.name), f"a {entry.kind} for {model.name} ({model.family})", why)


def _require_slots(request: GenerationRequest, model: ModelEntry, loras: Sequence[AdapterEntry]) -> None:
    """Errors: `InvalidInput` for LoRA that would be merged into quantized weights."""
    of_unet = [entry for entry in loras if not all(map(is_of_text, entry.layers))]
    if model.subject.schemes("unet") and are_merged(request, of_unet):
        limits = f"at most {PER_ROW}, of rank {RANK} or less, none with the residency 'merged'"
        expected = f"LoRA in slots, since {model.name} has quantized weights: {limits}"
        names = ", ".join(entry.name for entry in of_unet)
        raise InvalidInput("adapters", names, expected, "a sum would be rounded to them anew; take a plain model")


def _require_pictures(place: str, adapter: Json, entry: AdapterEntry) -> None:
    """Errors: `InvalidInput` for an adapter that reads pictures and has none, and for one that reads none."""
    given = adapter.get("image")
    count = len(given) if isinstance(given, list) else int(given is not None)
    if not entry.reads_pictures:
        if count:
            raise InvalidInput(f"{place}.image", "given", f"nothing for a {entry.kind}")
        return
    several = entry.kind == "IP-Adapter"
    if count == 0 or (count > 1 and not several):
        wanted = "reference pictures" if several else "one control map"
        found = "missing" if not count else f"{count} pictures"
        raise InvalidInput(f"{place}.image", found, f"{wanted} for this {entry.kind}")


def _require_pixels(argument: str, size: tuple[float, float], most: int) -> None:
    height, width = map(int, size)
    if height * width > most:
        raise InvalidInput(argument, f"a picture of {width}x{height}", f"at most {most:,} pixels", "make it smaller")


def _hash(wanted: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True, default=str).encode()).hexdigest()
