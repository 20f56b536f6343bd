"""What `--debug` watches while a picture is made: NaN, shapes and time, at named points."""

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from undertow.engine.debug import Debug
from undertow.engine.fault import Fault
from undertow.engine.probing import ForwardProbe, PartProbe
from undertow.engine.rows import Origin, Row
from undertow.errors import NonFiniteError
from undertow.vae.execute import Observe, unobserved


def non_finite(row: Row, prediction: Tensor) -> NonFiniteError:
    """The error for a prediction of NaN or Inf, with where its row comes from."""
    name = f"step_{row.origin.step}_noise_{row.origin.branch}"
    problem = f"{describe(prediction)} ({row.origin})"
    adapted = row.adapters is not None and row.adapters.inputs
    remedy = "look at its adapters and their scales" if adapted else _remedy(name, prediction.dtype)
    return NonFiniteError(name, prediction.dtype, problem, remedy)


def non_finite_at(fault: Fault) -> NonFiniteError:
    """The error for a row whose fault was found."""
    return NonFiniteError(fault.module, fault.dtype, f"{fault.problem} ({fault.origin})", fault.remedy, fault=fault)


@dataclass(kw_only=True)
class Watch:
    """Sees every tensor of a run that has a name, and times every stage.

    The names are those of burn-models' debug log (source document 004): text_context, step_0_noise_uncond,
    step_0_noise_cond, step_0_latents, vae_input, vae_output. probes: of the engine, for what is no U-Net's forward.
    origin: of the request.
    """

    debug: Debug = field(default_factory=Debug)
    probes: Sequence[ForwardProbe] = ()
    origin: Origin = Origin()
    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def see(self, name: str, tensor: Tensor) -> None:
        """Notes `tensor` as it passes `name`. Errors: `NonFiniteError` with counts and statistics."""
        if self.debug.shapes:
            self.lines.append(f"{name}: {describe(tensor)}")
        if self.debug.nan:
            low, high = tensor.aminmax()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise NonFiniteError(name, tensor.dtype, describe(tensor), _remedy(name, tensor.dtype))

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Adds the time spent inside to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def step(self, index: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        """Notes an evaluation of the sampler."""
        if self.debug.sampler:
            sizes = f"x std {_std(x):.4g}, denoised std {_std(denoised):.4g}"
            self.lines.append(f"[sampler] step {index}: sigma {sigma:.5g}, {sizes}")

    def blocks(self, counts: Counter[tuple[str, str]]) -> None:
        """Notes what came out of the autoencoder's blocks."""
        for name in dict.fromkeys(name for name, _ in counts):
            nan, inf, every = (counts[name, kind] for kind in ("nan", "inf", "values"))
            self.lines.append(f"[vae] {name}: {nan} NaN, {inf} Inf out of {every} values")

    def looks_into(self, part: str) -> bool:
        """Whether a probe wants a part of the model, such as "text_encoder"."""
        return bool(self._wanting(part, self.origin))

    @contextmanager
    def inside(self, networks: Mapping[str, nn.Module]) -> Generator[None]:
        """Probes look into these meanwhile."""
        with ExitStack() as until:
            for part, network in networks.items():
                for probe in self._wanting(part, self.origin):
                    until.enter_context(probe.inside(part, network, self.origin))
            yield

    @contextmanager
    def decoding(self, picture: int) -> Generator[Observe]:
        """What sees the steps of the autoencoder while it decodes a picture; counts of its blocks are noted at the
        end."""
        origin = replace(self.origin, picture=picture)
        wanting, counts = self._wanting("vae", origin), Counter[tuple[str, str]]()

        def observe(name: str, output: Tensor) -> None:
            if self.debug.vae:
                count_blocks(counts, name, output)
            for probe in wanting:
                probe.sees(f"vae.{name}", "", origin, output)

        try:
            yield observe if wanting or self.debug.vae else unobserved
        finally:
            self.blocks(counts)

    def _wanting(self, part: str, origin: Origin) -> list[PartProbe]:
        return [probe for probe in self.probes if isinstance(probe, PartProbe) and probe.wants_part(part, origin)]

    def add(self, name: str, elapsed: float) -> None:
        """Adds seconds that were measured elsewhere to `seconds[name]`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        if self.debug.timing:
            self.lines.append(f"{name}: {elapsed:.3f} s")


def describe(tensor: Tensor) -> str:
    """Shape, type, counts of NaN and Inf, and min, max, mean and standard deviation of what is finite."""
    values = tensor.detach().float()
    finite = values[torch.isfinite(values)]
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    counts = f"NaN {nan}/{values.numel()}, Inf {inf}/{values.numel()}"
    head = f"shape {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, {counts}"
    if finite.numel() == 0:
        return f"{head}, nothing finite"
    return (
        f"{head}, min {finite.min():.4g}, max {finite.max():.4g}, "
        f"mean {finite.mean():.4g}, std {finite.std(correction=0):.4g}"
    )


def count_blocks(counts: Counter[tuple[str, str]], name: str, output: Tensor) -> None:
    """Adds the NaN and Inf of a step's output to those of its block: a resnet, an attention, a convolution outside."""
    parts = name.split(".")
    block = ".".join(parts[: next((i + 2 for i, part in enumerate(parts) if part in _BLOCKS), len(parts))])
    counts[block, "nan"] += int(output.isnan().sum())
    counts[block, "inf"] += int(output.isinf().sum())
    counts[block, "values"] += output.numel()


_BLOCKS = ("down_blocks", "up_blocks", "resnets", "attentions")


def _std(tensor: Tensor) -> float:
    return float(tensor.detach().float().std(correction=0))


def _remedy(name: str, dtype: torch.dtype) -> str:
    if dtype != torch.float16:
        return "look at the weights with undertow inspect --validate-weights"
    room = "--vae-precision" if name.startswith("vae") else "--precision"
    return f"float16 may have overflowed: try {room} bf16 or f32"
