import pytest

from tests.services import pipeline_folder, service_of
from tests.services import services_are_left_as_found as services_are_left_as_found


@pytest.fixture(scope="session")
def sd1_folder():
    """A tiny random SD1 pipeline in diffusers' layout: 16x16 latents, 2 pixels a cell."""
    return pipeline_folder("sd1")


@pytest.fixture(scope="session")
def service():
    return service_of("sd1")
