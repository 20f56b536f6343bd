"""`undertow inspect MODEL --attention`: which kernel runs where, and why."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from undertow.attention.choose import Choice
    from undertow.attention.measurement import Call, Measurements
    from undertow.unet.config import UNetConfig

TYPES = ("float32", "bfloat16", "float16")


def show_attention(console: Console, config: "UNetConfig", size: tuple[int, int] | None) -> None:
    """Prints the kernels that `undertow.load` takes on this machine's best device, for each shape and type, and why.
    size: of the latents, in cells; the model's own when `None`."""
    from undertow.attention.measurement import stored_measurements
    from undertow.cli.model_loading import find_device

    height, width = (config.sample_size, config.sample_size) if size is None else size
    device = find_device(None)
    measured = stored_measurements(device)
    table = Table(title=f"attention over {height}x{width} cells, 2 rows, on {device}", title_justify="left")
    table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    for column in ("queries x keys", "calls", *TYPES):
        table.add_column(column, no_wrap=True)
    reasons: dict[str, None] = {}
    names: dict[tuple[str, int], list[str]] = {}
    for dtype in TYPES:
        for call, count, choice in _choices(config, (height, width), dtype, device, measured):
            names.setdefault((f"{call.queries} x {call.keys}", count), []).append(choice.name)
            reasons[f"{choice.name}: {choice.reason}"] = None
    for (shape, count), chosen in names.items():
        table.add_row(shape, str(count), *chosen)
    console.print(table)
    for reason in reasons:
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    if measured is None:
        console.print("nothing was measured here; undertow bench attention does it", highlight=False, soft_wrap=True)


def _choices(
    config: "UNetConfig", size: tuple[int, int], dtype: str, device: str, measured: "Measurements | None"
) -> "Iterator[tuple[Call, int, Choice]]":
    from undertow.attention.choose import choose
    from undertow.attention.measure import requirements_of
    from undertow.unet.attention_calls import attention_calls

    for call, count in attention_calls(config, *size, dtype=dtype).items():
        requirements = requirements_of(call, device, float32_logits=config.upcast_attention)
        yield call, count, choose(requirements, measured=measured)
