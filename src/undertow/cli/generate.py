"""`undertow generate`: pictures from a text.

Everything that can be refused without a model is refused before torch is imported: a mistake is answered at once.
"""

from pathlib import Path
from typing import Any

from undertow.cli.config import read_config
from undertow.cli.drawn_as import load_as_drawn
from undertow.cli.embeddings import require_embeddings, with_embeddings
from undertow.cli.generate_options import (
    AdapterSlots,
    AllowPickle,
    AttentionFor,
    BackendOf,
    Budget,
    Device,
    FlashAttention,
    LowVram,
    ModelOrNone,
    Name,
    NonFinite,
    Out,
    Overwrite,
    PrecisionOrNone,
    Prediction,
    Preset,
    Preview,
    Prompt,
    Prompts,
    QuantizeTo,
    Refiner,
    Repeat,
    ReportPage,
    Trace,
    VaeClamp,
    VaePrecision,
    ValidateWeights,
    Watch,
    WhereNonFinite,
    WildcardFolder,
    WildcardSeed,
)
from undertow.cli.many import draw, tasks_of, wildcards_of
from undertow.cli.model_loading import LoadingOptions
from undertow.cli.named_files import require_files, require_own_place
from undertow.cli.notes import Notes
from undertow.cli.repeated import note_another_model
from undertow.cli.reported import reported, require_report
from undertow.cli.request_options import with_request_options
from undertow.cli.show import ShowHere, could_show, require_show, show
from undertow.cli.suggested import requests_of
from undertow.cli.terminal import SafeConsole, tell_written
from undertow.cli.tracing import require_trace, tracing
from undertow.cli.waiting import waiting
from undertow.cli.written_pictures import PictureWriter, suggest
from undertow.engine.debug import Debug
from undertow.memory.units import parse_bytes
from undertow.pictures.names import DEFAULT_NAME, require_picture_file


@with_request_options
def generate(
    prompt: Prompt = None,
    *,
    model: ModelOrNone = None,
    repeat: Repeat = None,
    preset: Preset = None,  # noqa: ARG001  # its callback puts the settings in place of defaults
    prompts: Prompts = None,
    wildcards: WildcardFolder = None,
    wildcard_seed: WildcardSeed = None,
    out: Out = Path("out"),
    name: Name = DEFAULT_NAME,
    overwrite: Overwrite = False,
    preview: Preview = None,
    draw_here: ShowHere = None,
    report: ReportPage = None,
    watch: Watch = "",
    trace: Trace = None,
    refiner: Refiner = None,
    precision: PrecisionOrNone = None,
    vae_precision: VaePrecision = None,
    prediction: Prediction = None,
    adapter_slots: AdapterSlots = None,
    validate_weights: ValidateWeights = False,
    allow_pickle: AllowPickle = False,
    device: Device = None,
    flash_attention: FlashAttention = None,
    attention: AttentionFor = None,
    backend: BackendOf = None,
    quantize: QuantizeTo = None,
    low_vram: LowVram = False,
    budget: Budget = None,
    vae_clamp: VaeClamp = False,
    non_finite: NonFinite = WhereNonFinite.upcast,
    **options: Any,
) -> None:
    """Draw pictures from a text, and write each with what is needed to repeat it."""
    console, notes = SafeConsole(stderr=True), Notes()
    if draw_here:
        require_show()
    budget_bytes = None if budget is None else parse_bytes("--budget", budget)
    how = {"debug": Debug.parse(watch), "low_vram": low_vram, "budget_bytes": budget_bytes, "vae_clamp": vae_clamp}
    how["non_finite"] = non_finite.value
    loading = LoadingOptions(
        precision=precision,
        vae_precision=vae_precision,
        prediction=prediction,
        refiner=refiner,
        adapter_slots=adapter_slots,
        validate_weights=validate_weights,
        allow_pickle=allow_pickle,
        device=device,
        flash_attention=flash_attention,
        lazy=low_vram or budget is not None,
        attention=attention,
        backend=backend,
        quantize=quantize,
    )
    choices = wildcards_of(wildcards, wildcard_seed)
    typed = options if prompt is None else {**options, "prompt": prompt}
    tasks = tasks_of(typed, repeat, prompts, choices, notes, model=model, refiner=refiner)
    source = model if model is not None else read_config().find(tasks[0].model)
    writers = PictureWriter.to_each(out, name, [one.indices for one in tasks], overwrite=overwrite)
    if preview is not None:
        require_picture_file(preview, "--preview", overwrite=overwrite)
    if report is not None:
        require_report(report, len(tasks), overwrite=overwrite)
    embeddings = options.get("embeddings") or ()
    read = (*(file for file in (repeat, prompts) if file is not None), *embeddings)
    if trace is not None:
        require_trace(trace)
    for one in tasks:
        require_own_place("--out", out, one.request, *read, models=[source, refiner])
        if preview is not None:
            require_own_place("--preview", preview, one.request, *read, models=[source, refiner])
        require_files(one.request, source, refiner)
    require_embeddings(embeddings)
    notes.add_idle({"--preview": preview is not None and len(tasks) > 1}, "with several prompts")
    named = name not in (DEFAULT_NAME, read_config().name)
    notes.add_idle({"--name": named and not writers[0].in_folder}, "beside a file's name in --out")
    without_adapters = not any(one.request.adapters or one.request.regions for one in tasks)
    notes.add_idle({"--adapter-slots": adapter_slots is not None and without_adapters}, "without a --lora")

    notes.tell(console)
    with waiting(console, f"loading {source}"):
        service = load_as_drawn(loading, tasks[0], source, notes)
    if repeat is not None:
        note_another_model(tasks[0], service, console)
    requests = with_embeddings(requests_of(tasks, service, notes), service, embeddings)
    notes.tell(console)
    with tracing(service, trace), reported(service, report) as written:
        results = draw(service, requests, writers, console, preview, **how)
        written.results += results
    tell_written(console, trace, written.page)
    if draw_here is not False and writers[0].paths:
        show([result.images[index] for result, one in zip(results, tasks, strict=True) for index in one.indices])
    for writer in writers:
        writer.require_in_place()
    if model is None and repeat is None and prompts is None:
        suggest(writers[0], console, terminal=draw_here is None and could_show())
