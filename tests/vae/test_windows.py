"""Tiles cover a map once, and a step on a window gives that part of what it gives on the whole."""

import pytest
import torch
from torch import Tensor

from undertow.nn.adaptable import Conv2d
from undertow.vae.plan import windows_for
from undertow.vae.steps import Convolve, ConvolveDoubled, Place
from undertow.vae.windows import Window, count_tiles, middle_tile, tiles

STEPS = {
    "3x3": Convolve(name="3x3", conv=Conv2d(2, 3, 3, padding=1)),
    "1x1": Convolve(name="1x1", conv=Conv2d(2, 3, 1)),
    "halving": Convolve(name="halving", conv=Conv2d(2, 3, 3, stride=2)),
    "doubling": ConvolveDoubled(name="doubling", conv=Conv2d(2, 3, 3, padding=1)),
}


@pytest.mark.parametrize(("size", "edge"), [((8, 8), 4), ((9, 5), 4), ((1, 7), 3), ((4, 4), 64)])
def test_tiles_cover_every_cell_once(size, edge):
    covered = torch.zeros(size)
    for tile in tiles(size, edge):
        rows, columns = tile.inside(Window.whole(size))
        covered[rows, columns] += 1
    assert (covered == 1).all()
    assert count_tiles(size, edge) == len(tiles(size, edge))
    assert middle_tile(size, edge) in tiles(size, edge)


@pytest.mark.parametrize("fewest", [0, 1024], ids=["doubling left out", "doubling"])
@pytest.mark.parametrize("name", STEPS)
@torch.no_grad()
def test_a_window_of_a_step_is_that_window_of_the_whole(name, fewest, monkeypatch):
    """Every window of a small map, with odd and even sides, at borders and inside."""
    monkeypatch.setattr("undertow.nn.matmul.DOUBLED_CELLS", fewest)
    step = STEPS[name]
    x = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    size = step.size((6, 8))

    def compute(target: Window) -> Tensor:
        source = step.source(target, (6, 8))
        rows, columns = source.inside(Window.whole((6, 8)))
        return step.compute(x[:, :, rows, columns], Place(before=source, after=target, size=size))

    whole = compute(Window.whole(size))
    for top, bottom in ((a, b) for a in range(size[0]) for b in range(a + 1, size[0] + 1)):
        for left, right in ((0, size[1]), (0, 1), (1, 3), (1, size[1]), (size[1] - 1, size[1])):
            target = Window(top=top, left=left, bottom=bottom, right=right)
            assert torch.allclose(compute(target), whole[:, :, top:bottom, left:right], atol=1e-6), target


def test_windows_grow_toward_the_input_and_stop_at_its_border():
    steps = (STEPS["3x3"], STEPS["doubling"])
    sizes = ((4, 4), (4, 4), (8, 8))
    windows = windows_for(steps, sizes, Window(top=4, left=0, bottom=6, right=2))
    assert windows == [
        Window(top=0, left=0, bottom=4, right=3),
        Window(top=1, left=0, bottom=4, right=2),
        Window(top=4, left=0, bottom=6, right=2),
    ]
