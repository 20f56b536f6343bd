"""The model that a command draws with, loaded as its options say."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from undertow.attention.policy import as_policy
from undertow.embedded import embedded_models
from undertow.engine.computing import Slots
from undertow.errors import InvalidInput
from undertow.known_names import PRECISIONS, parse_prediction, require_device_name

if TYPE_CHECKING:
    import torch

    from undertow.adapters.lora.bank import AdapterCapacity
    from undertow.service import UNetService


Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Processor threads.", show_default="all cores")]
"""As many as a worker of a service may have."""


class Backend(StrEnum):
    """As `unet.runner.Backend`, which imports torch."""

    auto = "auto"
    eager = "eager"
    packed = "packed"
    compile = "compile"
    background = "background"
    openvino = "openvino"


class Quantized(StrEnum):
    """As `undertow.quantization.Scheme`, and "none"."""

    int8_weights = "int8-weights"
    int8_dynamic = "int8-dynamic"
    float8 = "float8"
    none = "none"


class Precision(StrEnum):
    """Of `undertow.known_names.PRECISIONS`: Typer takes an enum."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a model is loaded, as it was typed; see the options of `undertow generate`."""

    precision: Precision | None = None
    vae_precision: Precision | None = None
    prediction: str | None = None
    refiner: str | None = None
    adapter_slots: int | Slots | None = None
    validate_weights: bool = False
    allow_pickle: bool = False
    device: str | None = None
    flash_attention: bool | None = None
    lazy: bool = False
    attention: str | None = None
    backend: Backend | None = None
    quantize: Quantized | str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Errors: `InvalidInput`, before torch is imported."""
        if self.prediction is not None:
            parse_prediction(self.prediction)
        if self.device is not None:
            require_device_name("--device", self.device)
        if self.attention is None:
            return
        if self.flash_attention is not None:
            flag = "--flash-attention" if self.flash_attention else "--no-flash-attention"
            raise InvalidInput("--attention", repr(self.attention), f"nothing beside {flag}, which names a kernel too")
        as_policy(self.attention, "--attention")

    def load(self, source: str) -> "UNetService":
        """Imports torch. Errors: `InvalidInput` for a device that is not there, and those of `undertow.load`."""
        from undertow.loading import load

        return load(
            source,
            dtype=dtype_of(self.precision, source),
            vae_dtype=dtype_of(self.vae_precision),
            device=find_device(self.device),
            backend="eager" if self.backend is None else self.backend.value,
            prediction=self.prediction,
            validate_weights=self.validate_weights,
            allow_pickle=self.allow_pickle,
            refiner=self.refiner,
            attention=_kernel(self.flash_attention) if self.attention is None else self.attention,
            adapter_capacity=_capacity(self.adapter_slots),
            lazy=self.lazy,
            quantize=self.quantize.value if isinstance(self.quantize, Quantized) else self.quantize,
        )


def dtype_of(precision: Precision | None, source: str = "") -> "torch.dtype | None":
    """The type to load in. The embedded models are small: computed in float32, they draw the same everywhere."""
    import torch

    if precision is None and source in embedded_models():
        return torch.float32
    return None if precision is None else getattr(torch, PRECISIONS[precision.value])


def _capacity(slots: int | Slots | None) -> "AdapterCapacity | None":
    """Room for as many LoRAs in one row as there are slots, if nothing else is said. Errors: `InvalidInput`."""
    from undertow.adapters.lora.bank import AdapterCapacity

    if isinstance(slots, Slots):
        return AdapterCapacity(slots=slots.slots, rank=slots.rank, per_row=slots.per_row)
    return None if slots is None else AdapterCapacity(slots=slots, per_row=slots)


def _kernel(flash: bool | None) -> str:
    """A name of `attention.chosen.kernel_named`."""
    if flash is None:
        return "auto"
    return "sdpa" if flash else "math"


def find_device(name: str | None) -> str:
    """The device of this name, or else the best one here. Imports torch. Errors: `InvalidInput` for an absent one."""
    import torch

    from undertow.checkpoints.read.dtypes import require_device

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device("--device", name)
    return name
