import pytest

from tests.services import service_of
from tests.services import services_are_left_as_found as services_are_left_as_found


@pytest.fixture(scope="session")
def service():
    """A tiny random SD1 pipeline."""
    return service_of("sd1")
