"""The Python facade: loading, and a service that draws."""

import inspect
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import torch
from torch import Tensor

from undertow.adapters.adapter import Adapter
from undertow.adapters.lora.bank import AdapterCapacity
from undertow.adapters.manager import AdapterManager
from undertow.adapters.state import UNetState
from undertow.attention.policy import AttentionPolicy
from undertow.checkpoints.read.dtypes import require_device, require_dtype
from undertow.checkpoints.read.home import is_stand_in
from undertow.checkpoints.read.inversion_file import read_inversions, require_made_for, vectors_for
from undertow.checkpoints.read.loading import LoadOptions
from undertow.checkpoints.read.model import LoadedModel
from undertow.checkpoints.read.model_loading import load_model
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.doors import checked, nearest, shown
from undertow.embedded import located
from undertow.engine.context import PIXELS_PER_CELL, PredictionContext, predict_noise
from undertow.engine.debug import Debug
from undertow.engine.engine import Engine
from undertow.engine.events import Drawn, Finished, Observer, undrawn, unfinished, unobserved
from undertow.engine.generate import generate_many
from undertow.engine.limits import BatchLimits
from undertow.engine.options import NonFinite, RunOptions
from undertow.engine.planning import plan_model
from undertow.engine.request import GenerationRequest, as_request
from undertow.engine.result import GenerationResult
from undertow.engine.settings import RequestSettings
from undertow.errors import InvalidInput
from undertow.free_memory import naming_memory
from undertow.inspection.activation_pictures import ActivationHistory, activation_history
from undertow.inspection.attention_choice import AttentionChoice, GuidanceSide
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.debugging import Debugger, DebugInfo
from undertow.inspection.doctor.case import Case
from undertow.inspection.doctor.diagnose import diagnose
from undertow.inspection.doctor.finding import Diagnosis
from undertow.inspection.metrics import Metrics, measure_metrics
from undertow.inspection.profile import Profile, Profiler
from undertow.inspection.recorder import Recorder
from undertow.inspection.rescue import Rescuer
from undertow.inspection.visualize_attention import attention_heatmaps
from undertow.inspection.word_maps import Among, AttentionHeatmaps, Pooling, WordOptions
from undertow.memory.ladder import StepDown
from undertow.memory.plan import MemoryPlan
from undertow.records import annotations
from undertow.unet.compiled import CompiledUNet
from undertow.unet.config import UNetConfig
from undertow.unet.runner import EAGER, Backend, Runner, runner_named
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL

logger = logging.getLogger(__name__)

Network = TypeVar("Network", UNet, AutoencoderKL)


@checked
def load_unet(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = "eager",
    attention: str | AttentionPolicy = "auto",
) -> UNet:
    """A U-Net, ready to call, from a .safetensors file, a diffusers model or pipeline folder, the name of an embedded
    model, or a Hub id (owner/name).

    dtype: `None` keeps the file's, also where the processor only imitates it: see `undertow.processor.computes`.
    backend: "eager", or "compile" for a `CompiledUNet`, by `torch.compile` (the first call of each size takes a minute
    or two, every other is faster). attention: the kernel, a name of `attention.catalogue.KERNELS` ("sdpa" is
    PyTorch's fused one, "math" writes the scores out), or what one is chosen for at each call: "speed", "memory",
    "balanced", or an `AttentionPolicy` with a budget. "auto" is "speed": by what `undertow bench attention` measured on
    this machine, else by rules. Predictions are the same within rounding.
    Errors: `CheckpointError` and its kinds, `ConfigError`, `InvalidInput`.

        unet = undertow.load_unet("digits-flow", dtype=torch.float32)
    """
    runner = runner_named(backend)
    require_dtype("dtype", dtype)
    require_device("device", device)
    # Channels-last memory: the layout that convolution libraries compute in, on CPUs and GPUs (benchmarks/unet.py).
    options = LoadOptions(dtype=dtype, device=device, channels_last=True, attention=attention)
    unet = load_unet_from(located(source), options)
    return unet if runner is EAGER else CompiledUNet.of(unet)


class UNetService:
    """A loaded model that draws pictures and predicts noise. Made by `undertow.load`.

    Threads: every method may be called from any thread. The engine takes requests from all of them and serves them in
    one loop, one unit of work at a time, in the thread that waits; requests share forwards where they can and take
    turns where adapters are merged into the weights, so that each is drawn with its own adapters and nothing of
    another's. What runs the network besides, such as `predict_noise`, waits for its turn. The networks themselves
    (`service.unet`, `service.model`) are not guarded: do not call or change them while requests are drawn.
    """

    @checked
    def __init__(
        self,
        model: LoadedModel,
        refiner: LoadedModel | None = None,
        *,
        adapter_capacity: AdapterCapacity | None = None,
        runner: Runner = EAGER,
    ):
        if adapter_capacity is not None and not runner.capabilities.slots:
            raise InvalidInput("adapter_capacity", adapter_capacity, "None: this runner has no slots for LoRA")
        self._model = model
        self._refiner = refiner
        self._capacity = adapter_capacity
        self.runner = runner
        if adapter_capacity is not None:
            _ = self.adapters  # slots are there before the first forward

    def __repr__(self) -> str:
        unet, refiner = self._model.require_unet(), "" if self._refiner is None else f" with {self._refiner.path.name}"
        how = f"on {unet.device} in {str(unet.dtype).removeprefix('torch.')}"
        bundled, active = self.adapters.bundled.names(), self._state.active_adapters
        adapters = f"; adapters that came with it: {', '.join(bundled)}" if bundled else ""
        acting = f"; in its weights and slots: {', '.join(active)}" if active else ""
        return f"<UNetService: {self._model.path.name}{refiner} {how}{adapters}{acting}>"

    @property
    def model(self) -> LoadedModel:
        """All its networks in memory, also after a request with a budget, or where they were never read."""
        return self._all_there(self._model)

    @property
    def refiner(self) -> LoadedModel | None:
        """As `model`; `None` without one."""
        return None if self._refiner is None else self._all_there(self._refiner)

    @property
    def unet(self) -> UNet:
        """In memory, also after a request with a budget. Errors: `MissingComponent`."""
        return self._there(self._model.require_unet())

    @property
    def vae(self) -> AutoencoderKL:
        """In memory, also after a request with a budget. Errors: `MissingComponent`."""
        return self._there(self._model.require_vae())

    @property
    def config(self) -> UNetConfig:
        """The U-Net's architecture."""
        return self._model.require_unet().config

    def _there(self, network: Network) -> Network:
        """A network whose weights are in memory: they may never have come, or left for a request with a budget."""
        if any(map(is_stand_in, network.parameters())):
            self.engine.memory.restore(network)
        return network

    def _all_there(self, model: LoadedModel) -> LoadedModel:
        text = () if model.text is None else model.text.encoders
        networks = [one for one in (model.unet, model.vae, *text) if one is not None]
        if any(is_stand_in(weight) for network in networks for weight in network.parameters()):
            self.engine.memory.restore(model.unet, model.vae, model.text)
        return model

    @cached_property
    def adapters(self) -> AdapterManager:
        """What of adapters is in memory, in slots and merged."""
        path = self._model.path
        return AdapterManager(
            self._model.require_unet(),
            self._model.text,
            capacity=self._capacity,
            folder=path if path.is_dir() else path.parent,
        )

    @cached_property
    def engine(self) -> Engine:
        """What draws the requests. With it they can be submitted one by one, awaited, watched and cancelled."""
        engine = Engine(self._model, self._refiner, self.adapters, runner=self.runner)
        engine.rescue = Rescuer(adapters=self.adapters)
        return engine

    @property
    def state(self) -> UNetState:
        """The U-Net's weights, adapters and injection points, to be kept, compared and put back bit for bit."""
        self._there(self._model.require_unet())
        return self._state

    @cached_property
    def _state(self) -> UNetState:
        return UNetState(self._model.require_unet(), self.adapters)

    @checked
    def add_embedding(self, source: str | Path, name: str | None = None) -> tuple[str, ...]:
        """Lets prompts use the textual inversion (arXiv:2208.01618) in a file, and returns the names that stand for it.

        source: safetensors or a pickle (.pt, .bin) of A1111, diffusers or for SDXL, a picture that A1111 wrote one
        into, diffusers' folder, or a LoRA that brings some along. Without a name it is called as the file is, and by
        the token that is stored in it. The dialect "comfy" writes `embedding:name`, the others the name alone. Vectors
        that are there already are added by `model.text.add_embedding`. Errors: `UnknownCheckpoint`, `UnsafeFile`,
        `CorruptFile`; `InvalidInput` for one that was made for another model; `MissingComponent`.
        """
        text = self._model.require_text()
        found = read_inversions(source)
        if name is not None and len(found) > 1:
            raise InvalidInput("name", repr(name), f"none: {source} holds {len(found)} embeddings with their own")
        for one in found:
            require_made_for(one, text)
        refiner = None if self._refiner is None else self._refiner.text
        names: list[str] = []
        with self.engine.paused():
            for one in found:
                for called in one.names if name is None else (name,):
                    text.add_embedding(called, vectors_for(one, text), file=one.path)
                    if refiner is not None and set(refiner.kinds) <= set(one.vectors):
                        refiner.add_embedding(called, vectors_for(one, refiner))
                    names.append(called)
        return tuple(names)

    @checked
    def generate(
        self,
        prompt: str,
        *,
        latents: Tensor | None = None,
        debug: Debug | str | bool = "",
        low_vram: bool = False,
        budget_bytes: int | None = None,
        vae_clamp: bool = False,
        non_finite: NonFinite = "upcast",
        observe: Observer = unobserved,
        drawn: Drawn = undrawn,
        **settings: Unpack[RequestSettings],
    ) -> GenerationResult:
        """Pictures of `prompt`. settings: the other fields of `GenerationRequest`; everything else as in `run`.

        result = service.generate("a red apple", steps=20, guidance_scale=5.0, seed=7, size=(512, 512))
        result.images[0].save("apple.png")
        """
        request = self._request(prompt, settings, self.generate)
        options = {"low_vram": low_vram, "budget_bytes": budget_bytes, "vae_clamp": vae_clamp, "non_finite": non_finite}
        return self.run(request, latents=latents, debug=debug, observe=observe, drawn=drawn, **options)

    @checked
    def run(
        self,
        request: GenerationRequest | str,
        *,
        latents: Tensor | None = None,
        debug: Debug | str | bool = "",
        low_vram: bool = False,
        budget_bytes: int | None = None,
        course: tuple[StepDown, ...] = (),
        vae_clamp: bool = False,
        non_finite: NonFinite = "upcast",
        observe: Observer = unobserved,
        drawn: Drawn = undrawn,
    ) -> GenerationResult:
        """The pictures of a request, or of a prompt alone: `generate_many` of one.

        latents: standard normal noise to start from, in place of that of the seeds. debug: a comma list of
        timing, nan, shapes, vae, sampler and layers, or all, which `True` says too; its lines are in the
        report. observe: called at each step of each picture. drawn: called with each picture as soon as it is
        there. The rest as in `RunOptions`. Errors: `InvalidInput` before any work; `MissingComponent`;
        `NonFiniteError`; `RequestFailed`.
        """
        options = _options(
            debug,
            low_vram=low_vram,
            budget_bytes=budget_bytes,
            course=course,
            vae_clamp=vae_clamp,
            non_finite=non_finite,
            drawn=drawn,
        )
        with self._debugger.request(layers=options.debug.layers) as records:
            options = replace(options, mark=records.mark)
            found = generate_many(self.engine, [as_request(request)], options, observe=observe, latents=latents)
        return records.told(found[0])

    @checked
    def generate_many(
        self,
        requests: Sequence[GenerationRequest | str],
        *,
        limits: BatchLimits | None = None,
        debug: Debug | str | bool = "",
        low_vram: bool = False,
        budget_bytes: int | None = None,
        vae_clamp: bool = False,
        non_finite: NonFinite = "upcast",
        observe: Observer = unobserved,
        drawn: Drawn = undrawn,
        finished: Finished = unfinished,
    ) -> list[GenerationResult]:
        """The pictures of unlike requests, whose rows share forwards wherever their shapes are equal.

        Each picture equals the one made alone, up to rounding; to the bit where `limits` fixes the number of rows.
        finished: called with a request's place among these and its result as soon as that is there. The rest as in
        `run`. Errors: as `run`, for any of the requests and before any step.
        """
        options = _options(
            debug,
            limits=limits,
            low_vram=low_vram,
            budget_bytes=budget_bytes,
            vae_clamp=vae_clamp,
            non_finite=non_finite,
            drawn=drawn,
        )
        asked = [as_request(request) for request in requests]
        with self._debugger.request(layers=options.debug.layers) as records:
            options = replace(options, mark=records.mark)
            found = generate_many(self.engine, asked, options, observe=observe, finished=finished)
        return [records.told(one, place) for place, one in enumerate(found)]

    @cached_property
    def _debugger(self) -> Debugger:
        return Debugger(self.engine.probes)

    @checked
    def enable_layer_hooks(self, patterns: Sequence[str] | str = "*", *, every: int = 1) -> Recorder:
        """Records what enters and leaves the modules of these names, with * and ?, in every `every`-th step of all
        requests from now on, until `disable_layer_hooks`; forwards that are recorded run without graphs. Names are the
        U-Net's; those of other networks begin with "controlnet." and an adapter's title, "text_encoder.",
        "text_encoder_2." or "vae.". Errors: `InvalidInput` for a pattern that matches no module, and for an `every`
        below 1."""
        chosen = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        return self._debugger.enable(self._model, chosen, every=every)

    @checked
    def log_layer_input(self, layer: str) -> Recorder:
        """As `enable_layer_hooks`, for what enters alone."""
        return self._debugger.enable(self._model, (layer,), ("input",))

    @checked
    def log_layer_output(self, layer: str) -> Recorder:
        """As `enable_layer_hooks`, for what leaves alone."""
        return self._debugger.enable(self._model, (layer,), ("output",))

    def log_final_prediction(self) -> Recorder:
        """Records what the U-Net predicts, for every branch of guidance."""
        return self._debugger.enable(self._model, ("",), ("output",))

    def disable_layer_hooks(self) -> None:
        """Takes off what the methods above put on, and forgets their records."""
        self._debugger.disable()

    def get_debug_info(self) -> DebugInfo:
        """What the methods above have recorded, and the last request with `debug="layers"`: `layer_statistics`, and the
        records."""
        return self._debugger.info()

    @checked
    def visualize_attention(
        self,
        prompt: str,
        *,
        words: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        cells: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        at_steps: Sequence[int] | None = None,
        side: GuidanceSide = "conditional",
        pooling: Pooling = "mean",
        among: Among = "context",
        marks: bool = False,
        self_attention: bool = False,
        observe: Observer = unobserved,
        **settings: Unpack[RequestSettings],
    ) -> AttentionHeatmaps:
        """Draws a prompt, the same picture to the bit as `generate`, with maps of where each word acts.

        words: words of the prompt, or phrases of it; `None` for every word. layers: patterns of names of attention
        layers ("up_blocks.*", "mid_block"); cells: shorter sides of their maps; heads, at_steps: from 0. `None` is all,
        and what is chosen is averaged. side: "unconditional" for the words of the negative prompt. pooling, among,
        marks: as in `WordOptions`. self_attention: also entropies and attention received of every self-attention.
        settings: as in `generate`. Errors: as `run`; `InvalidInput` for words, layers, heads and steps that are not
        there; `MissingComponent` for a model without text.

            found = service.visualize_attention("red apple left of dog face on blue background", seed=7)
            found.maps["apple"], found.overlay("red apple"), found.save("maps")
        """
        request = self._request(prompt, settings, self.visualize_attention)
        choice = AttentionChoice.of(layers=layers, cells=cells, heads=heads, steps=at_steps)
        chosen = None if words is None else (words,) if isinstance(words, str) else tuple(words)
        options = WordOptions(words=chosen, pooling=pooling, among=among, marks=marks)
        return attention_heatmaps(
            self.engine, request, choice, options, side=side, self_attention=self_attention, observe=observe
        )

    @contextmanager
    def log_attention_maps(
        self,
        *,
        layers: Sequence[str] | None = None,
        cells: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        at_steps: Sequence[int] | None = None,
        side: GuidanceSide = "conditional",
    ) -> Generator[AttentionMapProbe]:
        """Sums the maps of all that is drawn meanwhile, with fused kernels or without, and changes no bit of it.
        Arguments as in `visualize_attention`. Errors: `InvalidInput` for layers and heads that the network lacks; of
        `log.maps` also where nothing that was drawn had layers of these `cells`.

            with service.log_attention_maps(cells=(8,)) as log:
                service.generate_many(["red apple", "dog face"])
            log.maps(request=1)[0].heat
        """
        choice = AttentionChoice.of(layers=layers, cells=cells, heads=heads, steps=at_steps)
        unet, refiner = self._model.require_unet(), None if self._refiner is None else self._refiner.require_unet()
        choice.require_cross(unet, None)
        probe = AttentionMapProbe(unet=unet, refiner=refiner, choice=choice, side=side)
        self.engine.probes.append(probe)
        try:
            yield probe
        finally:
            self.engine.probes.remove(probe)

    @checked
    def visualize_activations(
        self, prompt: str, *, observe: Observer = unobserved, **settings: Unpack[RequestSettings]
    ) -> ActivationHistory:
        """Draws a prompt, the same picture to the bit as `generate`, and records on the way what every layer returns:
        standard deviation and largest magnitude over the steps, the share of skip connections, and a film of the noisy
        latents and the picture that is expected of them. settings: as in `generate`. Errors: as `run`.

            service.visualize_activations("red apple", seed=7).save("activations")
        """
        request = self._request(prompt, settings, self.visualize_activations)
        return activation_history(self.engine, request, observe=observe)

    def _request(self, prompt: str, settings: RequestSettings, method: Callable[..., object]) -> GenerationRequest:
        known = [*annotations(GenerationRequest), *inspect.signature(method).parameters]
        for name in sorted(settings.keys() - annotations(GenerationRequest).keys()):
            raise InvalidInput(name, shown(settings.get(name)), "a field of GenerationRequest", nearest(name, known))
        return GenerationRequest.from_json({"prompt": prompt, **settings})

    @checked
    def plan(
        self,
        *,
        size: tuple[int, int] | None = None,
        batch: int = 1,
        budget_bytes: int | None = None,
        adapters: Sequence[Adapter | str | Path] = (),
        steps: int = 20,
        guidance: bool = True,
    ) -> MemoryPlan:
        """What drawing would take of memory and time, and what gives way so that it fits: nothing is run.

        size: height and width in pixels; `None` for the model's own. batch: pictures at a time. budget_bytes: for the
        whole process; without one everything fits. adapters: files, or names of adapters that came with the model.
        guidance: two rows of each picture. Errors: `InvalidInput`; kinds of `CheckpointError` for adapters;
        `MissingComponent`.

        plan = service.plan(size=(512, 512), batch=4, budget_bytes=6 * 10**9)
        """
        for name, value in (("batch", batch), ("steps", steps)):
            if value < 1:
                raise InvalidInput(name, value, "at least 1")
        return plan_model(
            self._model,
            size=size,
            batch=batch,
            steps=steps,
            branches=2 if guidance else 1,
            adapters=adapters,
            bundled=self.adapters.bundled,
            slots=None if self._capacity is None else self._capacity.slots,
            budget_bytes=budget_bytes,
        )

    @checked
    def diagnose(
        self,
        request: GenerationRequest | str = "",
        *,
        picture: str | Path | None = None,
        only: Sequence[str] = (),
    ) -> Diagnosis:
        """What is wrong with the model, with a request and with this machine, as far as rules can measure it: symptom,
        evidence, cause, fix and prevention of each finding. It takes about ten evaluations of the network.

        request: what is, or would be, drawn. picture: a file that undertow wrote, which is drawn again in a fresh
        process and compared byte by byte. only: names of rules, or of their families: "nan", "picture", "slow",
        "memory", "provenance". Errors: `InvalidInput` for an unknown name; `MissingComponent`.

            for finding in service.diagnose("a red apple").findings:
                print(finding.symptom, finding.evidence, finding.fix)
        """
        case = Case(
            model=self.model,
            manager=self.adapters,
            request=as_request(request),
            runner=self.runner,
            picture=None if picture is None else Path(picture),
        )
        with self.engine.paused():
            return diagnose(case, only)

    @checked
    def profile(self, request: GenerationRequest | str) -> Profile:
        """Draws a request, and says where its time and memory went: by stage and layer, in operations, and against what
        a matrix product reaches in this process. Errors: those of `run`.

            print(service.profile("a red apple").slowest(5))
        """
        with Profiler(self.engine) as profiler:
            result = self.run(request)
        return profiler.profile(result.report)

    @checked
    def metrics(self, request: GenerationRequest | str) -> Metrics:
        """Draws a request, and measures it in four groups: performance, quality, resources and adapters. Errors: those
        of `run`.

            print(service.metrics("a red apple").exposition())
        """
        return measure_metrics(self.engine, as_request(request))

    @overload
    def predict_noise(self, context: PredictionContext) -> Tensor: ...
    @overload
    def predict_noise(self, context: Sequence[PredictionContext]) -> list[Tensor]: ...
    @checked
    @torch.inference_mode()
    def predict_noise(self, context: PredictionContext | Sequence[PredictionContext]) -> Tensor | list[Tensor]:
        """The guided prediction of one context, or of several in one forward. Errors: `InvalidInput`."""
        factor = PIXELS_PER_CELL if self._model.vae is None else self._model.vae.config.factor
        contexts = [context] if isinstance(context, PredictionContext) else context
        with naming_memory("a prediction"), self.engine.paused():
            found = predict_noise(self.unet, contexts, self.adapters, factor=factor, runner=self.runner)
        return found[0] if isinstance(context, PredictionContext) else found


def _options(debug: Debug | str | bool, **options: Any) -> RunOptions:
    return RunOptions(debug=debug if isinstance(debug, Debug) else Debug.parse(debug), **options)


@checked
def load(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = "eager",
    *,
    vae_dtype: torch.dtype | None = None,
    validate_weights: bool = False,
    refiner: str | Path | None = None,
    adapter_capacity: AdapterCapacity | None = None,
    attention: str | AttentionPolicy = "auto",
    prediction: str | None = None,
    zero_terminal_snr: bool | None = None,
    config: UNetConfig | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    text: str | Path | None = None,
    ema: bool = False,
    mmap: bool = False,
    lazy: bool = False,
    allow_pickle: bool = False,
) -> UNetService:
    """A service for the model in a .safetensors file, a diffusers pipeline folder or at a Hub id (owner/name).

    dtype: `None` keeps the file's, but float16 becomes float32 on a CPU, as bfloat16 does, even if asked for, on a
    processor without instructions for it: the report says so. vae_dtype: `None` chooses one that does not overflow.
    validate_weights: refuse weights that are not numbers also where nothing reads them, or only some clip skip does.
    refiner: a second model, loaded alike, that draws the last steps (SDXL's refiner). adapter_capacity: slots for LoRA,
    so that requests with different ones share batches; without them LoRA are merged into the weights while they are
    drawn with. attention: as in `load_unet`, also of ControlNets. prediction, zero_terminal_snr, config: override what
    is found in the checkpoint. variant: of the weight files in a folder, such as "fp16". vae, text: other sources for
    these parts. ema: read the averaged weights. mmap: parameters stay views of the mapped file where type and device
    allow. lazy: weights are read, checked and left in their files until they are needed, for models that do not fit
    as a whole. allow_pickle: read pickles, in a process of their own. Errors: every kind of `CheckpointError`,
    `ConfigError`, `InvalidInput`, `MissingDependency`.

        service = undertow.load("dreamshaper.safetensors", dtype=torch.float16, device="cuda")
    """
    runner = runner_named(backend)
    require_device("device", device)
    options = {"dtype": dtype, "vae_dtype": vae_dtype, "device": device, "attention": attention}
    options |= {"validate_weights": validate_weights}
    model = _load(
        source,
        **options,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        config=config,
        variant=variant,
        vae=vae,
        text=text,
        ema=ema,
        mmap=mmap,
        lazy=lazy,
        allow_pickle=allow_pickle,
    )
    other = None if refiner is None else _load(refiner, lazy=lazy, **options)
    for part in (model, other):
        if part is not None:
            logger.info("loaded %s: %s", part.path, "; ".join((part.family, *part.report.notes)))
    return UNetService(model, other, adapter_capacity=adapter_capacity, runner=runner)


def _load(
    source: str | Path,
    *,
    dtype: torch.dtype | None,
    vae_dtype: torch.dtype | None,
    validate_weights: bool,
    **choices: Any,
) -> LoadedModel:
    model = load_model(located(source), dtype=dtype, vae_dtype=vae_dtype, channels_last=True, **choices)
    if validate_weights:
        model.report.health.require_all(model.path)
    return model
