"""Whether a row's numbers are finite without its adapters: what tells an adapter that makes numbers grow until another
module cannot hold them, which is where they are found, from the model's own."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from undertow.engine.probing import ForwardProbe
from undertow.engine.rows import Outcome, Row
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.unet.unet import UNet


@dataclass(frozen=True, kw_only=True, eq=False)
class WithoutAdapters:
    """A probe in whose forward no LoRA acts. pristine: weights by name, of those that one is merged into."""

    pristine: Mapping[str, Tensor]

    def wants(self, rows: Sequence[Row]) -> bool:
        return True

    @contextmanager
    def attached(self, unet: UNet, rows: Sequence[Row]) -> Generator[None]:
        with ExitStack() as until:
            for module in unet.modules():
                until.callback(module.register_forward_pre_hook(_without_slots, with_kwargs=True).remove)
            for name, tensor in self.pristine.items():
                weight = unet.get_parameter(name)
                until.callback(setattr, weight, "data", weight.data)
                weight.data = tensor.to(weight)
            yield


def _without_slots(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    del module
    plain = tuple(None if isinstance(one, WeightRows) else one for one in args)
    return plain, {name: None if isinstance(one, WeightRows) else one for name, one in kwargs.items()}


def is_finite_without(again: Callable[[ForwardProbe], Outcome], pristine: Mapping[str, Tensor]) -> bool:
    """Whether the evaluation gives a finite prediction where no adapter acts."""
    try:
        return bool(again(WithoutAdapters(pristine=pristine)).prediction.isfinite().all())
    except InvalidInput:  # the network refuses what it is given
        return False
