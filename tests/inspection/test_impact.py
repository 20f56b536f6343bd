"""What adapters do to predictions, against networks whose weights were changed by hand."""

import dataclasses

import pytest
import torch

import undertow
from tests.adapters.lora.files import applied
from tests.services import service_of
from undertow import Adapter, GenerationRequest, InvalidInput
from undertow.inspection.impact import measure_impact, measure_overhead
from undertow.inspection.noisy_picture import LEVELS, NoisyPicture

REQUEST = GenerationRequest(prompt="red apple", steps=2, seed=3)

CLOSE = 1e-3
"""Relative, of a relative change: it is a difference of numbers close to each other."""


@pytest.fixture(scope="module")
def probe(service):
    return NoisyPicture.draw(service.model, service.adapters, REQUEST)


def predicted(unet, rows):
    with torch.no_grad():
        return torch.cat([unet(row.latents, row.timestep, row.conditioning) for row in rows])


def test_the_probe_is_the_drawn_picture_under_more_and_less_noise(service, probe):
    trained = len(service.model.schedule) - 1
    torch.testing.assert_close(probe.timesteps.double(), torch.tensor(LEVELS).double() * trained, rtol=1e-3, atol=1)
    clean = service.run(REQUEST).latents
    alike = torch.nn.functional.cosine_similarity(probe.latents.flatten(1), clean.flatten(1).expand(3, -1))
    assert alike.tolist() == sorted(alike.tolist()), "less noise, more of the picture"
    assert float(alike[-1]) > 0.9


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_impact_is_that_of_changed_weights(service, probe, files, scale):
    before = service.state.hash
    adapter = Adapter(files["style"], scale=scale, start=0.5)
    found = measure_impact(probe, [adapter])
    assert service.state.hash == before
    rows = probe.rows(())
    lora = service.adapters.library.get(files["style"])
    plain = predicted(service.unet, rows)
    changed = predicted(applied(service.unet, lora.updates["unet"], scale), rows)
    expected = float((changed - plain).norm() / plain.norm())
    assert expected > 0.01
    assert found.prediction == pytest.approx(expected, rel=CLOSE)
    assert found.layers["conv_out"] == pytest.approx(expected, rel=CLOSE), "its output is the prediction"
    assert found.layers["time_embedding"] == 0
    assert found.layers["conv_in"] == 0
    assert found.layers.keys() == set(service.config.layer_names())
    assert found.strongest(2)[0][1] == max(found.layers.values())
    assert found.names == ("style",)


def test_text_adapters_change_predictions_through_the_text(probe, files):
    found = measure_impact(probe, [Adapter(files["text"], scale=2.0)])
    assert found.prediction > 1e-4
    assert found.layers["conv_in"] == 0


def test_all_together_and_none(service, probe, files):
    both = measure_impact(probe, [Adapter(files["style"]), Adapter(files["texture"])])
    alone = measure_impact(probe, [Adapter(files["texture"])])
    assert both.names == ("style", "texture")
    assert both.prediction != pytest.approx(alone.prediction, rel=0.01)
    assert measure_impact(probe, []).prediction == 0


def test_overhead_is_timed_and_leaves_no_trace(service, probe, files):
    before = service.state.hash
    found = measure_overhead(probe, [Adapter(files["style"])], repeats=2)
    assert min(found.with_s, found.without_s, found.placing_s) > 0
    assert found.ratio == found.with_s / found.without_s
    assert service.state.hash == before


def test_slots_give_the_same_impact_as_merged_weights(service, probe, files):
    banked = service_of("sd1", capacity=undertow.AdapterCapacity(slots=2, rank=4, per_row=1))
    other = NoisyPicture.draw(banked.model, banked.adapters, REQUEST)
    adapter = Adapter(files["style"], scale=0.7)
    assert measure_impact(other, [adapter]).prediction == pytest.approx(
        measure_impact(probe, [adapter]).prediction, rel=CLOSE
    )


def test_what_cannot_be_watched_is_refused(service):
    config = dataclasses.replace(service.config, in_channels=9)
    editing = dataclasses.replace(service.model, unet=undertow.UNet(config))
    with pytest.raises(InvalidInput, match="9 input channels"):
        NoisyPicture.draw(editing, service.adapters, REQUEST)
