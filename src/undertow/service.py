"""The Python facade: a service that draws."""

import logging
from collections.abc import Sequence
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
from undertow.checkpoints.read.home import is_stand_in
from undertow.checkpoints.read.inversion_file import read_inversions, require_made_for, vectors_for
from undertow.checkpoints.read.model import LoadedModel
from undertow.doors import checked
from undertow.engine.computing import PLAIN, Computing
from undertow.engine.context import PIXELS_PER_CELL, PredictionContext, predict_noise
from undertow.engine.debug import Debug
from undertow.engine.engine import Engine
from undertow.engine.events import Drawn, Finished, Observer, undrawn, unfinished, unobserved
from undertow.engine.generate import generate_many
from undertow.engine.limits import BatchLimits
from undertow.engine.options import NonFinite, RunOptions
from undertow.engine.planning import planned
from undertow.engine.request import GenerationRequest, as_request
from undertow.engine.result import GenerationResult
from undertow.engine.settings import RequestSettings, request_of
from undertow.errors import InvalidInput
from undertow.free_memory import naming_memory
from undertow.inspection.inspectable import Inspectable
from undertow.inspection.rescue import Rescuer
from undertow.memory.ladder import StepDown
from undertow.memory.plan import MemoryPlan
from undertow.unet.config import UNetConfig
from undertow.unet.runner import EAGER, Runner
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL

logger = logging.getLogger(__name__)

Network = TypeVar("Network", UNet, AutoencoderKL)


class UNetService(Inspectable):
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
        computing: Computing = PLAIN,
    ):
        if adapter_capacity is not None and not runner.capabilities.slots:
            raise InvalidInput("adapter_capacity", adapter_capacity, "None: this runner has no slots for LoRA")
        self._model = model
        self._refiner = refiner
        self._capacity = adapter_capacity
        self.runner = runner
        self._computing = computing
        if adapter_capacity is not None:
            _ = self.adapters  # slots are there before the first forward

    def __repr__(self) -> str:
        if self._model.unet is None:
            return f"<UNetService: {self._model.path.name}, without a U-Net>"
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
        engine = Engine(self._model, self._refiner, self.adapters, runner=self.runner, computing=self._computing)
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
        """Pictures of `prompt`. settings: the other fields of `GenerationRequest`; everything else as in `run`. Without
        steps and guidance scale a model that was distilled to few steps takes 4 and 1.

        result = service.generate("a red apple", steps=20, guidance_scale=5.0, seed=7, size=(512, 512))
        result.images[0].save("apple.png")
        """
        request = request_of(prompt, settings, self.generate, self._model)
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
            found = generate_many(
                self.engine, [as_request(request, **self._model.suggested)], options, observe=observe, latents=latents
            )
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
        asked = [as_request(request, **self._model.suggested) for request in requests]
        with self._debugger.request(layers=options.debug.layers) as records:
            options = replace(options, mark=records.mark)
            found = generate_many(self.engine, asked, options, observe=observe, finished=finished)
        return [records.told(one, place) for place, one in enumerate(found)]

    @checked
    def plan(
        self,
        *,
        size: tuple[int, int] | None = None,
        batch: int = 1,
        budget_bytes: int | None = None,
        adapters: Sequence[Adapter | str | Path] = (),
        steps: int | None = None,
        guidance: bool | None = None,
    ) -> MemoryPlan:
        """What drawing would take of memory and time, and what gives way so that it fits: nothing is run.

        size: height and width in pixels; `None` for the model's own. batch: pictures at a time. budget_bytes: for the
        whole process; without one everything fits. adapters: files, or names of adapters that came with the model.
        guidance: two rows of each picture. Steps and guidance that are `None` are those of `generate`, which the model
        may suggest. Errors: `InvalidInput`; kinds of `CheckpointError` for adapters; `MissingComponent`.

        plan = service.plan(size=(512, 512), batch=4, budget_bytes=6 * 10**9)
        """
        usual = as_request("", **self._model.suggested)
        steps = usual.steps if steps is None else steps
        guidance = usual.guidance_scale != 1.0 if guidance is None else guidance
        for name, value in (("batch", batch), ("steps", steps)):
            if value < 1:
                raise InvalidInput(name, value, "at least 1")
        asked = planned(
            self._model,
            size=size,
            batch=batch,
            steps=steps,
            branches=2 if guidance else 1,
            adapters=adapters,
            bundled=self.adapters.bundled,
            slots=None if self._capacity is None else self._capacity.slots,
            copied=self.runner.capabilities.copies,
        )
        return asked.plan(budget_bytes)

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
