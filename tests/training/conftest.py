from collections.abc import Callable, Generator
from dataclasses import replace

import pytest

from tests.training.blank_figures import blank_figures, drawn_figures
from undertow.training import pixel_files
from undertow.training.config import TrainingConfig, pixel_unet
from undertow.training.data import Digits
from undertow.training.objective import Flow
from undertow.training.pictures import Pictures


@pytest.fixture(scope="module", autouse=True)
def few_previews() -> Generator[None]:
    """Loss curves are drawn for tests that ask for `drawn_curves` alone; samples in one row, in two steps."""
    with blank_figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_files, "PREVIEW_ROWS", 1)
        patch.setattr(pixel_files, "PREVIEW_STEPS", 2)
        yield


@pytest.fixture
def drawn_curves() -> Generator[None]:
    with drawn_figures():
        yield


@pytest.fixture(scope="session")
def tiny_pictures() -> Pictures:
    return Digits(size=8).open()


@pytest.fixture(scope="session")
def tiny_config(tiny_pictures) -> Callable[..., TrainingConfig]:
    """A run of seconds: 8x8 digits, two levels of 8 and 16 channels, dropout on, eight steps."""
    base = TrainingConfig(
        data=Digits(size=8),
        objective=Flow(),
        unet=pixel_unet(tiny_pictures, widths=(8, 16), head_dim=8, dropout=0.1),
        steps=8,
        batch_size=8,
        warmup_steps=2,
        log_every=1,
        sample_every=1000,
        checkpoint_every=4,
    )
    return lambda **changes: replace(base, **changes)
