"""A few sequences of the memory soak in every run of the tests: one tiny model, under pressure, beside a fresh one."""

import pytest

from benchmarks.lib.memory_sequences import Place, Soak, drawn_anew
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.services import pipeline_folder, service_of


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    layers = {name: shape for name, shape in layers_of(service_of("sd1").model.unet).items() if is_attention(name)}
    adapter = write(tmp_path_factory.mktemp("loras") / "style.safetensors", kohya(layers))
    return Soak([Place(model=pipeline_folder("sd1"), loras=[adapter])])


def test_what_is_drawn_short_of_memory_has_the_bytes_of_a_fresh_service(soak):
    """Of what `make memory-soak` draws hundreds: networks leave, a request gives way, and weights are merged and
    restored in between."""
    drawn = [one for number in (2, 6) for one in soak.sequence(number)]
    assert any(one.course for one in drawn)
    assert any(one.evictions for one in drawn)
    assert [drawn_anew(one) for one in drawn] == [one.digest for one in drawn]
