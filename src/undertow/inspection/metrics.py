"""Metrics of the four groups of source document 000: performance, quality, resources, adapters. Records, and the text
that Prometheus reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.adapters.stacking.decisions import describe_interactions
from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.diffusion.paths import per_row
from undertow.engine.engine import Engine
from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.extras import optional_package
from undertow.inspection.impact import measure_impact, measure_overhead
from undertow.inspection.noisy_picture import NoisyPicture
from undertow.inspection.profile import Profile, Profiler
from undertow.training.log import find_log, read_records
from undertow.unet.conditioning import Conditioning

SHARES = (0.8, 0.5, 0.2)
"""Of the trained timesteps, at which the prediction is held against known noise."""

PREFIX = "undertow"
"""Of names, as in the service's own metrics."""


@dataclass(frozen=True, kw_only=True)
class PerformanceMetrics:
    """forward_s, attention_s: of one evaluation, and of it in attention. layers_s: by layer. pictures_per_s: of the
    whole request, or examples of a training run. reached: share of what a matrix product reaches."""

    forward_s: float = 0.0
    attention_s: float = 0.0
    layers_s: Mapping[str, float] = field(default_factory=dict[str, float])
    pictures_per_s: float = 0.0
    reached: float = 0.0


@dataclass(frozen=True, kw_only=True)
class QualityMetrics:
    """noise_error: by timestep, `‖estimate - noise‖ / ‖noise‖` of noise that was added to the drawn picture.
    feature_mean, feature_std: of each layer's output then, over all timesteps. loss, gradient_norm: of a training run's
    newest record; `None` elsewhere."""

    noise_error: Mapping[int, float] = field(default_factory=dict[int, float])
    feature_mean: Mapping[str, float] = field(default_factory=dict[str, float])
    feature_std: Mapping[str, float] = field(default_factory=dict[str, float])
    loss: float | None = None
    gradient_norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResourceMetrics:
    """parameters: of the U-Net, whose weights take weight_bytes. layers_bytes: most that tensors took in each layer.
    forecast_bytes, peak_bytes: of the process, or the CUDA device; `None` where nobody tells."""

    parameters: int = 0
    weight_bytes: int = 0
    layers_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    forecast_bytes: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterMetrics:
    """active: names of those that act. overhead: time with them over time without. impact: change of the prediction
    relative to its size. conflicts: how they get in each other's way, in words."""

    active: tuple[str, ...] = ()
    overhead: float = 1.0
    impact: float = 0.0
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Of one request, or of a training run. model: its name."""

    model: str
    performance: PerformanceMetrics = PerformanceMetrics()
    quality: QualityMetrics = QualityMetrics()
    resources: ResourceMetrics = ResourceMetrics()
    adapters: AdapterMetrics = AdapterMetrics()

    def to_json(self) -> dict[str, Any]:
        """The four groups, as JSON has them."""
        return asdict(self)

    def exposition(self) -> str:
        """Everything that is a number, as text in Prometheus's format: for a scrape, a push gateway, or the textfile
        collector of its node exporter. Errors: `MissingDependency`."""
        with optional_package("prometheus-client", "serve"):
            from prometheus_client import CollectorRegistry, Gauge, generate_latest  # noqa: PLC0415  an extra
        registry = CollectorRegistry()
        for name, help_text, label, values in _gauges(self):
            labels = ["model", label] if label else ["model"]
            gauge = Gauge(f"{PREFIX}_{name}", help_text, labels, registry=registry)
            for key, value in values.items():
                gauge.labels(self.model, *([key] if label else [])).set(value)
        return generate_latest(registry).decode()


Family = tuple[str, str, str, Mapping[Any, float]]
"""Name, help, label beside the model, and values by that label."""


def _gauges(metrics: Metrics) -> list[Family]:
    """Those that have a value. `parameters`, `predicted_bytes` and `peak_bytes` are those of the service."""
    performance, quality, resources = metrics.performance, metrics.quality, metrics.resources
    adapters = metrics.adapters
    single: list[tuple[str, str, float | None]] = [
        ("forward_seconds", "One evaluation of the U-Net.", performance.forward_s or None),
        ("attention_seconds", "Of one evaluation, in attention.", performance.attention_s or None),
        ("pictures_per_second", "Of the whole request, or of training.", performance.pictures_per_s or None),
        ("reached_ratio", "Share of what a matrix product reaches.", performance.reached or None),
        ("loss", "Mean of the newest steps of training.", quality.loss),
        ("gradient_norm", "Before clipping.", quality.gradient_norm),
        ("parameters", "Of the loaded networks.", resources.parameters or None),
        ("weight_bytes", "Of the U-Net.", resources.weight_bytes or None),
        ("predicted_bytes", "Forecast peak of the newest plan.", resources.forecast_bytes),
        ("peak_bytes", "Measured peak of the newest request.", resources.peak_bytes),
        ("adapters_active", "Adapters that act.", len(adapters.active)),
        ("adapter_overhead_ratio", "Time with adapters over time without.", adapters.overhead),
        ("adapter_impact_ratio", "Change of the prediction, relative.", adapters.impact),
        ("adapter_conflicts_now", "Ways in which adapters get in each other's way.", len(adapters.conflicts)),
    ]
    labelled: list[Family] = [
        ("layer_seconds", "Of one evaluation.", "layer", performance.layers_s),
        ("layer_memory_bytes", "Most that tensors took in a layer.", "layer", resources.layers_bytes),
        ("noise_error_ratio", "Error of the noise's estimate.", "timestep", quality.noise_error),
        ("feature_mean", "Of a layer's output.", "layer", quality.feature_mean),
        ("feature_std", "Of a layer's output.", "layer", quality.feature_std),
    ]
    return [
        *((name, text, "", {"": value}) for name, text, value in single if value is not None),
        *(one for one in labelled if one[3]),
    ]


def measure_metrics(engine: Engine, request: GenerationRequest) -> Metrics:
    """Draws a request, and measures it. Adapters are measured where the request has some, which takes about thirty
    evaluations more. Errors: those of `submit` and its result."""
    with Profiler(engine) as profiler:
        result = engine.submit(request).result()
    found = profiler.profile(result.report)
    unet = engine.model.require_unet()
    clean = result.latents[:1].to(unet.device)
    row = profiler.rows[0]
    with engine.paused():
        quality = measure_quality(engine.model, clean, row.conditioning)
    seconds = sum(result.report.seconds.values())
    memory = result.report.memory
    return Metrics(
        model=engine.model.path.name,
        performance=PerformanceMetrics(
            forward_s=found.forward_s,
            attention_s=found.attention_share * found.forward_s,
            layers_s={layer.name: layer.seconds for layer in found.layers},
            pictures_per_s=len(result.images) / seconds if seconds else 0.0,
            reached=found.reached,
        ),
        quality=quality,
        resources=ResourceMetrics(
            parameters=sum(weight.numel() for weight in unet.parameters()),
            weight_bytes=sum(weight.nbytes for weight in unet.parameters()),
            layers_bytes=_layer_bytes(found),
            forecast_bytes=memory.forecast_bytes,
            peak_bytes=memory.peak_bytes,
        ),
        adapters=_of_adapters(engine, request),
    )


def training_metrics(run: str | Path) -> Metrics:
    """Of the newest record in the log of a training run, of any kind. Errors: `InvalidInput` without one."""
    records = read_records(find_log(Path(run)))
    if not records:
        raise InvalidInput("RUN", str(run), "the folder of a training run with a record in its log")
    last = records[-1]
    return Metrics(
        model=Path(run).name,
        performance=PerformanceMetrics(pictures_per_s=last.images_per_second),
        quality=QualityMetrics(loss=last.loss, gradient_norm=last.gradient_norm),
    )


def _layer_bytes(found: Profile) -> dict[str, int]:
    return {layer.name: layer.memory_bytes for layer in found.layers}


def _of_adapters(engine: Engine, request: GenerationRequest) -> AdapterMetrics:
    adapters = request.all_adapters
    if not adapters:
        return AdapterMetrics()
    probe = NoisyPicture.draw(engine.model, engine.adapters, request)
    with engine.paused():
        impact = measure_impact(probe, adapters)
        overhead = measure_overhead(probe, adapters)
        conflicts = describe_interactions(engine.adapters.summarize(adapters))
    return AdapterMetrics(
        active=impact.names, overhead=overhead.ratio, impact=impact.prediction, conflicts=tuple(conflicts)
    )


@torch.no_grad()
def measure_quality(
    model: LoadedModel,
    clean: Float[Tensor, "1 channels height width"],
    conditioning: Conditioning,
    shares: Sequence[float] = SHARES,
) -> QualityMetrics:
    """Noise that is known is added to latents as the network sees them, and its estimate is held against it.

    shares: of the trained timesteps, from 0 to 1. conditioning: of one row. Models that read a picture besides their
    latents have no such error, and get features of none.
    """
    unet, schedule = model.require_unet(), model.schedule
    if unet.config.in_channels != clean.shape[1]:
        return QualityMetrics()
    places = torch.tensor(shares, dtype=torch.float64) * (len(schedule) - 1)
    sigmas = schedule.timestep_to_sigma(places)
    count = len(shares)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean.device)
    many, added = (one.float().expand(count, -1, -1, -1) for one in (clean, noise))
    noisy = schedule.path.add_noise(many, added, sigmas)
    preconditioning = Preconditioning(
        parameterization=model.parameterization, schedule=schedule, network_dtype=unet.dtype
    )
    latents, timesteps = preconditioning.inputs(noisy, sigmas)
    features: dict[str, list[tuple[float, float]]] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def see(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            if isinstance(output, Tensor):
                values = output.float()
                features.setdefault(name, []).append((float(values.mean()), float(values.std(correction=0))))

        return see

    handles = [unet.get_submodule(name).register_forward_hook(hook(name)) for name in unet.config.layer_names()]
    try:
        rows = zip(latents.split(1), timesteps.split(1), strict=True)
        prediction = torch.cat([unet(row, timestep, conditioning) for row, timestep in rows])
    finally:
        for handle in handles:
            handle.remove()
    denoised = preconditioning.denoised(prediction.float(), noisy, sigmas)
    # Of x = alpha x0 + sigma noise (`diffusion.paths`), with the estimate of x0 in its place.
    estimate = (noisy - per_row(schedule.path.alpha(sigmas), noisy) * denoised) / per_row(sigmas, noisy)
    errors = (estimate - added).flatten(1).norm(dim=1) / added.flatten(1).norm(dim=1)
    return QualityMetrics(
        noise_error={round(float(place)): float(error) for place, error in zip(places, errors, strict=True)},
        feature_mean={name: sum(mean for mean, _ in seen) / len(seen) for name, seen in features.items()},
        feature_std={name: sum(std for _, std in seen) / len(seen) for name, seen in features.items()},
    )
