"""The soak of `make memory-soak`, short: what is drawn under pressure has the bytes of a fresh service, and a leak is
seen."""

import pytest

from benchmarks.lib.memory_sequences import Drawn, Place, Soak, drawn_anew
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import pipeline_folder, service_of
from undertow.adapters.lora.merge import MergedWeights

pytestmark = pytest.mark.slow  # `make memory-soak` draws many more


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    layers = {name: shape for name, shape in layers_of(service_of("sd1").model.unet).items() if is_attention(name)}
    adapter = write(tmp_path_factory.mktemp("loras") / "style.safetensors", kohya(layers))
    return Soak([Place(model=pipeline_folder("sd1"), loras=[adapter])])


def differs(one: Drawn) -> bool:
    return drawn_anew(one) != one.digest


def test_every_byte_is_that_of_a_fresh_service(soak):
    drawn = [one for number in (2, 6) for one in soak.sequence(number)]
    assert len(drawn) >= 2
    assert any(one.course for one in drawn)
    assert any(one.evictions for one in drawn)
    assert not [one for one in drawn if differs(one)]


def test_a_leak_is_seen(soak, monkeypatch):
    """Weights that keep what was merged into them, which is what a peer's default does."""
    monkeypatch.setattr(MergedWeights, "_restore", lambda self, names: None)
    drawn = [one for number in (2, 6) for one in soak.sequence(number)]
    assert any(map(differs, drawn))
