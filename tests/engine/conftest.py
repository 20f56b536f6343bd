import pytest
import torch

import undertow
from tests.golden.pipelines import save_pipeline


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory):
    """A tiny random SD1 pipeline in diffusers' layout: 16x16 latents, 2 pixels a cell."""
    return save_pipeline("sd1", tmp_path_factory.mktemp("sd1") / "pipeline")


@pytest.fixture(scope="session")
def service(sd1_folder):
    return undertow.load(sd1_folder, dtype=torch.float32)
