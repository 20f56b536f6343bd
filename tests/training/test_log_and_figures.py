from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from undertow.training.figures import GAP, grid, save_grid, save_loss_plot
from undertow.training.log import StepRecord, append_record, read_records

RECORD = StepRecord(
    step=1, loss=0.123456789, gradient_norm=2.0, learning_rate=1e-4, images_per_second=10.0, seconds=1.0
)


def test_records_come_back_in_order_the_last_of_a_step_counts(tmp_path):
    log = tmp_path / "log.jsonl"
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 2.5)):
        append_record(log, replace(RECORD, step=step, loss=loss))
    assert [(record.step, record.loss) for record in read_records(log)] == [(1, 3.0), (2, 2.5), (3, 1.0)]


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    log = tmp_path / "log.jsonl"
    append_record(log, RECORD)
    append_record(log, replace(RECORD, step=2))
    log.write_text(log.read_text()[:-20])
    assert [record.step for record in read_records(log)] == [1]
    assert read_records(log)[0].loss == pytest.approx(0.123457)
    assert read_records(tmp_path / "nothing") == []


def test_a_grid_shows_each_picture_in_its_place():
    pixels = torch.arange(1, 6, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 4, 6) * 40
    sheet = grid(pixels, 3)
    assert sheet.shape == (3, 2 * (4 + GAP) + GAP, 3 * (6 + GAP) + GAP)
    for index in range(5):
        row, column = divmod(index, 3)
        top, left = GAP + row * (4 + GAP), GAP + column * (6 + GAP)
        assert sheet[:, top : top + 4, left : left + 6].eq(40 * (index + 1)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_is_written_enlarged_with_sharp_edges(tmp_path, channels):
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, channels, 8, 8)
    save_grid(pixels, 2, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        colors = np.unique(np.asarray(picture))
        assert min(picture.size) >= 600
    assert colors.tolist() == [0, 32, 255]


def test_the_loss_plot_is_a_picture(tmp_path, drawn_curves):
    records = [replace(RECORD, step=step, loss=1 / step) for step in range(1, 60)]
    save_loss_plot(records, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size[0] > 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100, "lines and letters"


def test_the_loss_plot_shows_both_curves_with_their_running_means(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    losses = [1 / step for step in range(1, 121)]
    records = [
        replace(RECORD, step=10 * step, loss=loss, gradient_norm=3 * loss) for step, loss in enumerate(losses, start=1)
    ]
    save_loss_plot(records, tmp_path / "loss.png")
    mean = [sum(losses[max(0, end - 3) : end]) / min(3, end) for end in range(1, 121)]  # 2 % of 120, and one
    for axis, factor in zip(figures[0].axes, (1, 3), strict=True):
        each, running = axis.get_lines()
        assert axis.get_yscale() == "log"
        assert list(each.get_xdata()) == list(running.get_xdata()) == [record.step for record in records]
        np.testing.assert_allclose(each.get_ydata(), np.multiply(factor, losses), rtol=1e-6)
        np.testing.assert_allclose(running.get_ydata(), np.multiply(factor, mean), rtol=1e-6)
