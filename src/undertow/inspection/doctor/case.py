"""What the doctor examines, and the measurements that several rules share, each made once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from undertow.adapters.adapter import Adapter
from undertow.adapters.files.library import LoadedAdapter
from undertow.adapters.manager import AdapterManager
from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.denoiser import Preconditioning
from undertow.engine.chosen_sampler import ChosenSampler, choose_sampler
from undertow.engine.conditioning import Branches, Conditioner
from undertow.engine.picture_size import Size, picture_size
from undertow.engine.request import GenerationRequest
from undertow.errors import CheckpointError
from undertow.inspection.doctor.host import CpuTimes, Host
from undertow.inspection.doctor.redraw import Redraw, redrawn
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels
from undertow.unet.runner import EAGER, Runner
from undertow.unet.unet import UNet

LARGEST_PROBE = 64
"""Cells of a side at which networks are probed, at most, so that a diagnosis takes seconds."""

WORDS = "a photo of a cat"
"""What is asked of a model whose request has no prompt."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What one forward showed. largest: absolute value of each module's output, NaN where it is not finite. logits: an
    upper bound of each attention layer's scores. seconds: it took. bad: the first module whose output is not finite."""

    largest: dict[str, float]
    logits: dict[str, float]
    seconds: float
    bad: str = ""
    times: tuple[CpuTimes, CpuTimes] = (CpuTimes(), CpuTimes())


@dataclass(kw_only=True, eq=False)
class Case:
    """request: what is, or would be, drawn. picture: a file that undertow wrote. redraw: draws it again."""

    model: LoadedModel
    manager: AdapterManager
    request: GenerationRequest
    runner: Runner = EAGER
    picture: Path | None = None
    host: Host = field(default_factory=Host)
    redraw: Redraw = redrawn

    @property
    def unet(self) -> UNet:
        return self.model.require_unet()

    @property
    def in_pixels(self) -> bool:
        """Whether the network draws pixels, of a class or of nothing at all: no text, and no autoencoder."""
        return self.model.is_of_classes

    @property
    def factor(self) -> int:
        """Pixels per cell."""
        return 1 if self.in_pixels else self.model.require_vae().config.factor

    @cached_property
    def size(self) -> Size:
        """Height and width of the request's pictures."""
        return picture_size(self.request, self.unet.config.sample_size, self.factor)[0]

    @cached_property
    def sampler(self) -> ChosenSampler:
        return choose_sampler(self.request, self.model.schedule, self.model.sampler)

    @cached_property
    def prompt(self) -> str:
        """The request's, or words that the model knows."""
        text = self.model.text
        if self.request.prompt.strip():
            return self.request.prompt
        return WORDS if text is None or text.vocabulary is None else text.vocabulary.emoji[0]

    @property
    def has_text(self) -> bool:
        """Whether the network listens to a text."""
        return self.unet.config.context_dim is not None and self.model.text is not None

    @cached_property
    def branches(self) -> Branches:
        """Conditionings of the first step: of the prompt, and of the empty one."""
        clip_skip = self.request.clip_skip
        conditioner = Conditioner(
            text=self.model.require_text(clip_skip),
            region_texts=(),
            config=self.unet.config,
            request=replace(self.request, prompt=self.prompt, negative_prompt="", regions=(), adapters=()),
            size=self.size,
            needs_unconditional=True,
            dtype=self.unet.dtype,
            device=self.unet.device,
        )
        return conditioner.branches(1)[0]

    @property
    def adapters(self) -> Sequence[Adapter]:
        return self.request.all_adapters

    @cached_property
    def read_adapters(self) -> Sequence[tuple[Adapter, LoadedAdapter | CheckpointError]]:
        """Each adapter of the request, with what was read of it or why it could not be."""
        return [(adapter, self._read(adapter)) for adapter in self.adapters]

    def _read(self, adapter: Adapter) -> LoadedAdapter | CheckpointError:
        try:
            return self.manager.read(adapter.source)
        except CheckpointError as error:
            return error

    @property
    def preconditioning(self) -> Preconditioning:
        model = self.model
        return Preconditioning(
            parameterization=model.parameterization, schedule=model.schedule, network_dtype=self.unet.dtype
        )

    def noise(self) -> Tensor:
        """Standard normal, for the network's input, [1, channels, height, width]."""
        config, side = self.unet.config, min(self.unet.config.sample_size, LARGEST_PROBE)
        generator = torch.Generator().manual_seed(self.request.seed % 2**63)
        return torch.randn(1, config.in_channels, side, side, generator=generator).to(self.unet.device)

    @torch.no_grad()
    def predict(self, latents: Tensor, timestep: Tensor, *, conditional: bool = True) -> Tensor:
        """What the network says of scaled latents at one timestep, [1]."""
        return self.unet(latents.to(self.unet.dtype), timestep, self.conditioning(conditional=conditional))

    def conditioning(self, *, conditional: bool) -> Conditioning:
        """What the network is told, of one row: the prompt, or the empty text; of pixels the first class, or none."""
        if self.in_pixels:
            return self._class(conditional=conditional)
        branches = self.branches
        chosen = branches.conditional[0][0] if conditional else branches.unconditional
        assert chosen is not None  # it was asked for
        if self.unet.config.guidance_dim is None:
            return chosen
        return replace(chosen, guidance=torch.tensor([self.request.guidance_scale], device=self.unet.device))

    def _class(self, *, conditional: bool) -> Conditioning:
        added = self.unet.config.added
        if not isinstance(added, ClassLabels):
            return Conditioning()
        label = added.count if added.null and not conditional else 0
        return Conditioning(class_labels=torch.tensor([label], device=self.unet.device))

    @property
    def first_timestep(self) -> Tensor:
        """The one of the highest level of noise, [1]."""
        levels = torch.tensor([self.model.schedule.sigma_max], dtype=torch.float64)
        _, timestep = self.preconditioning.inputs(torch.zeros(1, 1, 1, 1), levels)
        return timestep.to(self.unet.device)

    @cached_property
    @torch.no_grad()
    def activations(self) -> Activations:
        """One forward of pure noise at the highest level, looked into."""
        largest: dict[str, float] = {}
        norms: dict[str, float] = {}

        def hook(name: str) -> Callable[[nn.Module, object, object], None]:
            def see(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
                if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                    low, high = (float(value) for value in output.aminmax())
                    # A comparison with NaN is false, so that max() could hide it.
                    largest[name] = max(abs(low), abs(high)) if low == low and high == high else float("nan")
                    if name.endswith(("to_q", "to_k")):
                        heads = _heads(self.unet, name)
                        norms[name] = float(output.unflatten(-1, (heads, -1)).float().norm(dim=-1).max())

            return see

        handles = [one.register_forward_hook(hook(name)) for name, one in self.unet.named_modules() if name]
        before, start = self.host.times(), time.perf_counter()
        try:
            self.predict(self.noise(), self.first_timestep)
        finally:
            for handle in handles:
                handle.remove()
        seconds = time.perf_counter() - start
        return Activations(
            largest=largest,
            logits=_logits(norms),
            seconds=seconds,
            bad=next((name for name, value in largest.items() if not value < float("inf")), ""),
            times=(before, self.host.times()),
        )

    @cached_property
    def image(self) -> Image.Image | None:
        """The picture's pixels, RGB."""
        if self.picture is None:
            return None
        with Image.open(self.picture) as image:
            return image.convert("RGB")


def _heads(unet: UNet, name: str) -> int:
    return unet.get_submodule(name.rpartition(".")[0]).heads  # pyright: ignore[reportReturnType]  # attention layers


def _logits(norms: dict[str, float]) -> dict[str, float]:
    """`max ‖q‖ · max ‖k‖`, which no product of a query and a key exceeds (Cauchy-Schwarz); before its division by the
    root of the heads' width, where a kernel in half precision stores it."""
    layers = {name.rpartition(".")[0] for name in norms}
    return {layer: norms.get(f"{layer}.to_q", 0.0) * norms.get(f"{layer}.to_k", 0.0) for layer in sorted(layers)}
