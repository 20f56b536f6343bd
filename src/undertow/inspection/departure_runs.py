"""The two runs of a comparison: one that draws and is recorded, and one that is given what the first received."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from undertow.adapters.manager import AdapterManager
from undertow.attention.chosen import described_kernel
from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.engine import Engine
from undertow.engine.rows import Origin, Row
from undertow.errors import InvalidInput
from undertow.inspection.departure_tape import Grown, Listener, Tape, listening, modules_of, relative_error
from undertow.nn.attention import AttentionProjections
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.runner import Runner
from undertow.unet.unet import UNet, UNetOutput


@runtime_checkable
class Drawing(Protocol):
    """What a run needs of a loaded model, such as an `undertow.UNetService`."""

    @property
    def model(self) -> LoadedModel: ...

    @property
    def refiner(self) -> LoadedModel | None: ...

    @cached_property
    def adapters(self) -> AdapterManager: ...

    @property
    def runner(self) -> Runner: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What a U-Net was called with, for one row, and where the row comes from."""

    origin: Origin
    latents: Tensor
    timestep: Tensor
    conditioning: Conditioning
    ports: Ports
    more: tuple[Any, ...] = ()

    @property
    def inputs(self) -> tuple[Any, ...]:
        return (self.latents, self.timestep, self.conditioning, self.ports, *self.more)


@dataclass(frozen=True, kw_only=True, eq=False)
class Forward:
    """A call of a U-Net and what came of it."""

    unet: UNet
    call: Call
    output: UNetOutput


@dataclass(kw_only=True, eq=False)
class Recording:
    """A probe: keeps the call of each forward and its output, and its modules on a tape. patterns: of their names."""

    tape: Tape
    patterns: Sequence[str]
    done: Forward | None = None

    def wants(self, rows: Sequence[Row]) -> bool:
        del rows
        return True

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        (row,) = rows
        calls: list[Call] = []

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            del module
            calls.append(_call(row.origin, inputs))

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            del module, inputs
            assert isinstance(output, UNetOutput)
            self.done = Forward(unet=unet, call=calls[-1], output=output)

        self.tape.clear()
        with ExitStack() as until:
            until.enter_context(listening(modules_of(unet, "unet", self.patterns), self.tape))
            for handle in (unet.register_forward_pre_hook(before), unet.register_forward_hook(after)):
                until.callback(handle.remove)
            yield


@dataclass(kw_only=True, eq=False)
class Following:
    """A probe: the network receives the latents, the timestep and the conditioning of another's forward, is compared
    as it computes, and answers what the other answered, so that its picture goes on as the other's does.

    other: the forward that comes next. own: its own on A's inputs. latents, conditioning: how far its own inputs had
    departed. grown: errors of outputs on the way.
    """

    tape: Tape
    patterns: Sequence[str]
    other: Forward | None = None
    own: Forward | None = None
    latents: float = 0.0
    conditioning: float = 0.0
    grown: dict[str, float] = field(default_factory=dict[str, float])

    def wants(self, rows: Sequence[Row]) -> bool:
        del rows
        return True

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        (row,) = rows
        other = self.other
        assert other is not None
        calls: list[Call] = []
        _require_same_row(row.origin, other.call.origin)

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            del module
            own = _call(row.origin, inputs)
            self.latents = _departed("latents", own.latents, other.call.latents)
            self.conditioning = _conditioning_departed(own.conditioning, other.call.conditioning)
            calls.append(_with_inputs_of(own, other.call))
            return calls[-1].inputs

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> UNetOutput:
            del module, inputs
            assert isinstance(output, UNetOutput)
            self.own = Forward(unet=unet, call=calls[-1], output=output)
            prediction = other.output.prediction.to(output.prediction)
            return UNetOutput(prediction=prediction, observations=other.output.observations)

        grown = Grown(tape=self.tape)
        with ExitStack() as until:
            until.enter_context(listening(modules_of(unet, "unet", self.patterns), grown))
            for handle in (unet.register_forward_pre_hook(before), unet.register_forward_hook(after)):
                until.callback(handle.remove)
            yield
        self.grown = grown.errors


@contextmanager
def hearing_text(side: Drawing, patterns: Sequence[str], listener: Listener) -> Generator[None]:
    """Tells the listener of the modules of a model's text encoders, which encode anew."""
    with ExitStack() as until:
        if side.model.text is not None:
            side.model.text.forget()
            for index, encoder in enumerate(side.model.text.encoders):
                until.enter_context(listening(modules_of(encoder, text_prefix(index), patterns), listener))
        yield


def text_prefix(index: int) -> str:
    """What a text encoder is called, as in diffusers' folders."""
    return "text_encoder" if index == 0 else f"text_encoder_{index + 1}"


def engine_of(side: Drawing) -> Engine:
    """An engine of its own over a loaded model, so that two runs can be advanced in turns."""
    return Engine(side.model, side.refiner, side.adapters, runner=side.runner)


def described(side: Drawing) -> str:
    """How a model computes: type, device, attention kernel, and whether it is compiled."""
    unet = side.model.require_unet()
    kernels = dict.fromkeys(
        described_kernel(one.kernel) for one in unet.modules() if isinstance(one, AttentionProjections)
    )
    words = [str(unet.dtype).removeprefix("torch."), unet.device.type, *(f"attention {name}" for name in kernels)]
    return ", ".join([*words, "eager" if side.runner.capabilities.observable else "compiled"])


def _call(origin: Origin, inputs: tuple[Any, ...]) -> Call:
    latents, timestep, conditioning, ports, *more = inputs
    return Call(
        origin=origin,
        latents=latents,
        timestep=timestep,
        conditioning=conditioning,
        ports=Ports() if ports is None else ports,
        more=tuple(more),
    )


def _with_inputs_of(own: Call, other: Call) -> Call:
    """A's inputs on B's device and in its type; B's adapters and guidance stay."""
    device, dtype = own.latents.device, own.latents.dtype
    return Call(
        origin=own.origin,
        latents=other.latents.to(device, dtype),
        timestep=other.timestep.to(device),
        conditioning=other.conditioning.to(device=device, dtype=dtype),
        ports=own.ports,
        more=own.more,
    )


def _departed(what: str, own: Tensor, other: Tensor) -> float:
    """Errors: `InvalidInput` for another shape."""
    if own.shape != other.shape:
        raise InvalidInput(
            f"{what} of B", tuple(own.shape), f"{tuple(other.shape)}, as A's are", "compare models of one family"
        )
    return relative_error(own, other)


def _conditioning_departed(own: Conditioning, other: Conditioning) -> float:
    """The largest error of its tensors. Errors: `InvalidInput` for other ones."""
    errors = [0.0]
    for name in (one.name for one in fields(Conditioning)):
        mine, its = getattr(own, name), getattr(other, name)
        if (mine is None) != (its is None):
            raise InvalidInput(
                f"conditioning.{name} of B", "there" if its is None else "missing", "as A has it", "compare one family"
            )
        if mine is not None:
            errors.append(_departed(f"conditioning.{name}", mine, its))
    return max(errors)


def _require_same_row(own: Origin, other: Origin) -> None:
    """Errors: `InvalidInput`."""
    mine, its = ((one.picture, one.branch, one.step, one.window) for one in (own, other))
    if mine != its:
        raise InvalidInput(
            "B's next row", f"picture, branch, step and window {mine}", f"{its}, as A's", "compare without regions"
        )
