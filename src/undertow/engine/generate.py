"""Requests to pictures: prepared, drawn together step by step, decoded one by one, each stage with its own time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.batching import Batcher, BatchLimits, Share, Task
from undertow.engine.events import Finished, Observer, StepEvent, unfinished, unobserved
from undertow.engine.layout import Layout
from undertow.engine.parts import HighResolution
from undertow.engine.passes import Canvas, Larger
from undertow.engine.picture import Picture
from undertow.engine.prepare import Prepared, prepare
from undertow.engine.reading import image_latents
from undertow.engine.request import GenerationRequest
from undertow.engine.result import GenerationResult, Report
from undertow.engine.watch import Debug, Watch
from undertow.pictures import pasted, to_images, to_pixels
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.plan import smallest_budget
from undertow.vae.precision import CLAMP, decode_safely, dtype_to_compute_in
from undertow.vae.program import decode_program

LOW_VRAM_DECODE_BYTES = 512 * 2**20
"""Activations that decoding may hold at once with `low_vram`, or the least that the picture's size needs."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, none of which changes what is asked for.

    low_vram: decode within `LOW_VRAM_DECODE_BYTES`; slower, the same pictures. vae_clamp: cut the decoder's activations
    at float16's range, which changes pictures and is counted. limits: how many rows share a forward. observe: called at
    each step of each picture. finished: called with each request's number and result, as soon as it is there.
    """

    low_vram: bool = False
    vae_clamp: bool = False
    debug: Debug = Debug()
    limits: BatchLimits = BatchLimits()
    observe: Observer = unobserved
    finished: Finished = unfinished


def generate(
    model: LoadedModel,
    request: GenerationRequest,
    options: RunOptions,
    latents: Tensor | None = None,
    refiner: LoadedModel | None = None,
    manager: AdapterManager | None = None,
) -> GenerationResult:
    """The pictures of one request: `generate_many` of one, but for `latents`, standard normal noise to start from,
    [count, channels, height / factor, width / factor], in place of that of the seeds."""
    return _run(model, [request], options, [latents], refiner, manager)[0]


def generate_many(
    model: LoadedModel,
    requests: Sequence[GenerationRequest],
    options: RunOptions,
    refiner: LoadedModel | None = None,
    manager: AdapterManager | None = None,
) -> list[GenerationResult]:
    """The pictures of unlike requests. Those whose rows are of equal shape share forwards; each equals the one made
    alone up to rounding, and to the bit where `options.limits.padded_to` fixes the number of rows. manager: of the
    model's adapters; `None` merges them for as long as it takes.

    Errors, for any of the requests and before any step: `InvalidInput`; `MissingComponent` names what the checkpoint
    lacks. `NonFiniteError` when watching for NaN, after the others are done.
    """
    return _run(model, requests, options, [None] * len(requests), refiner, manager)


@torch.inference_mode()
def _run(
    model: LoadedModel,
    requests: Sequence[GenerationRequest],
    options: RunOptions,
    latents: Sequence[Tensor | None],
    refiner: LoadedModel | None,
    manager: AdapterManager | None,
) -> list[GenerationResult]:
    if not requests:
        return []
    if manager is None:
        manager = AdapterManager(model.require_unet(), model.text)
    batcher = Batcher(options.limits, manager)
    prepared = [
        prepare(model, request, Watch(debug=options.debug), manager=manager, refiner=refiner, latents=given)
        for request, given in zip(requests, latents, strict=True)
    ]
    jobs = [Job(each, number, options, batcher) for number, each in enumerate(prepared)]
    try:
        for job in jobs:
            job.begin()
        batcher.run()
    finally:
        manager.unmerge()
    return [job.result() for job in jobs]


class Job:
    """A request among others, from its first step to its pictures."""

    def __init__(self, prepared: Prepared, number: int, options: RunOptions, batcher: Batcher):
        self.prepared = prepared
        self.number = number
        self.options = options
        self.batcher = batcher
        self.cancelled = False
        self.error: Exception | None = None
        self.rows = 0
        self._latents: dict[int, Tensor] = {}
        self._result: GenerationResult | None = None
        self._tasks: list[Task] = []
        self._pictures = [
            Picture(
                request=prepared.request,
                index=index,
                passes=prepared.passes,
                watch=prepared.watch,
                entered=self._entered,
                enlarge=self._enlarge,
            )
            for index in range(prepared.request.count)
        ]

    def begin(self) -> None:
        """Every picture joins the batch."""
        for index, picture in enumerate(self._pictures):
            if self.cancelled:
                return
            task = Task(
                steps=picture.draw(),
                done=lambda latents, index=index: self._done(index, latents),
                failed=self._failed,
                shared=self._shared,
            )
            self._tasks.append(task)
            self.batcher.join(task)

    def cancel(self) -> None:
        """Ends the request between two steps."""
        self.cancelled = True

    def result(self) -> GenerationResult:
        """The finished pictures, or those of a cancelled request. Errors: what one of them met on its way."""
        if self.error is not None:
            raise self.error
        if self._result is None:
            self._result = self._finish()
        return self._result

    def _done(self, index: int, latents: Tensor) -> None:
        self._latents[index] = latents
        if len(self._latents) < len(self._pictures):
            return
        try:
            self._result = self._finish()
        except Exception as error:  # of this request's decoding, which must not end the others
            self.error = error
        else:
            self.options.finished(self.number, self._result)

    def _finish(self) -> GenerationResult:
        prepared, watch = self.prepared, self.prepared.watch
        reached = [self._latents.get(index, picture.latents) for index, picture in enumerate(self._pictures)]
        reached = [each for each in reached if each is not None]
        latents = torch.cat(reached) if reached else self._nothing()
        images: list[Image.Image] = []
        notes: list[str] = []
        if not self.cancelled:
            with watch.stage("decode"):
                images, notes = self._decode(latents)
        report = Report(
            request=prepared.request,
            model=str(prepared.model.path),
            size=prepared.size,
            sigmas=tuple(prepared.passes[-1].sigmas),
            seconds=dict(watch.seconds),
            rows=self.rows,
            cancelled=self.cancelled,
            decisions=(*prepared.model.report.notes, *prepared.decisions, *notes),
            debug=tuple(watch.lines),
        )
        return GenerationResult(images=images, latents=latents, report=report)

    def _nothing(self) -> Tensor:
        """No latents: cancelled before the first pass was done."""
        one = self.prepared.passes[0]
        return torch.empty(0, one.network.unet.config.out_channels, *one.layout.size)

    def _entered(self, index: int, step: int, sigma: float, denoised: Tensor | None) -> None:
        self.options.observe(
            StepEvent(
                request=self.number,
                picture=index,
                step=step,
                steps=sum(one.steps for one in self.prepared.passes),
                sigma=sigma,
                denoised=denoised,
                preview=lambda: None if denoised is None else self._preview(denoised),
                cancel=self.cancel,
            )
        )
        if self.cancelled:
            raise _Cancelled

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, _Cancelled) and self.error is None:
            self.error = error
        for task in self._tasks:
            self.batcher.leave(task)

    def _shared(self, share: Share) -> None:
        self.rows = max(self.rows, share.rows)
        self.prepared.watch.add("unet", share.seconds)

    def _enlarge(self, latents: Canvas, how: HighResolution) -> Larger:
        """Finished latents to those of the picture at the size of the second pass."""
        cells = self.prepared.passes[-1].layout.size
        if how.upscale == "latent":
            return F.interpolate(latents.float(), size=cells, mode="bilinear", align_corners=False)
        images, _ = self._decode(latents, paste=False)
        return image_latents(self.prepared.model, to_pixels(images[0], self.prepared.size)).float()

    def _preview(self, denoised: Tensor) -> Image.Image:
        space = self.prepared.model.require_vae().config.latent_space
        if space.preview_factors is None:
            return self._decode(denoised, paste=False)[0][0]
        return Image.fromarray(space.preview(denoised)[0].cpu().numpy())

    def _decode(self, latents: Tensor, *, paste: bool = True) -> tuple[list[Image.Image], list[str]]:
        request, watch, vae = self.prepared.request, self.prepared.watch, self.prepared.model.require_vae()
        watch.see("vae_input", latents)
        # A seamless picture is decoded with its own other side around it, which is cut off again.
        ring = Layout.whole((latents.shape[2], latents.shape[3]), request.seamless)
        seen = ring.spread(vae.config.latent_space.from_model(latents.float()))[0]
        decoded = decode_safely(
            vae,
            seen,
            budget_bytes=self._budget(vae, seen),
            clamp=CLAMP if self.options.vae_clamp else None,
        )
        pixels = ring.enlarged(vae.config.factor).gather([decoded.pixels])
        watch.see("vae_output", pixels)
        images = to_images(pixels)
        if paste and request.paste and request.image is not None and request.mask is not None:
            images = [pasted(image, request.image, request.mask) for image in images]
        return images, decoded.report.notes()

    def _budget(self, vae: AutoencoderKL, latents: Tensor) -> int | None:
        if not self.options.low_vram:
            return None
        program = decode_program(vae, (latents.shape[2], latents.shape[3]), dtype_to_compute_in(vae).dtype)
        return max(LOW_VRAM_DECODE_BYTES, smallest_budget(program))


class _Cancelled(Exception):
    """Unwinds a picture whose request was cancelled."""
