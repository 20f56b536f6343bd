"""What `undertow quantize` prints of what it measured."""

from undertow.cli.quantize import _table
from undertow.cli.terminal import SafeConsole
from undertow.inspection.sensitivity import LayerSensitivity


def test_numbers_stay_whole_where_there_are_few_columns():
    name = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    found = [
        LayerSensitivity(name=name, error=0.12345, numbers=36_864),
        LayerSensitivity(name="b", error=0.1, numbers=9),
    ]
    console = SafeConsole(width=60)
    with console.capture() as printed:
        console.print(_table(found, 1))
    shown = printed.get()
    for said in ("weights", "change alone", "36,864", "12.345%", "kept"):
        assert said in shown
    assert name in "".join(line.split()[0] for line in shown.splitlines() if line.strip())
