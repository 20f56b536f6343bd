"""Metrics of the four groups, as records and as Prometheus reads them."""

import json
from dataclasses import replace

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from tests.services import service_of
from undertow import Adapter, GenerationRequest, InvalidInput
from undertow.cli import main
from undertow.inspection.metrics import measure_quality, training_metrics
from undertow.inspection.profile import PEAK_SIDE
from undertow.serving.metrics import WorkerMetrics
from undertow.training.log import StepRecord, append_record
from undertow.unet.conditioning import Conditioning
from undertow.unet.unet import UNet

REQUEST = GenerationRequest(prompt="abc", steps=2, seed=3)


@pytest.fixture(scope="module")
def measured(service, files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEAK_SIDE, "cpu", 64)
        patch.setattr("undertow.inspection.impact.measure_overhead.__defaults__", (1,))
        adapters = (Adapter(files["style"]), Adapter(files["louder"]))
        return service.metrics(replace(REQUEST, adapters=adapters))


def samples(text):
    """By name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_four_groups_have_numbers(service, measured):
    layers = set(service.config.layer_names())
    assert measured.performance.layers_s.keys() == measured.resources.layers_bytes.keys() == layers
    assert 0 < measured.performance.attention_s < measured.performance.forward_s
    assert measured.performance.pictures_per_s > 0
    assert list(measured.quality.noise_error) == [799, 500, 200]
    assert measured.quality.feature_std.keys() == layers
    assert measured.resources.parameters == sum(weight.numel() for weight in service.unet.parameters())
    assert measured.adapters.active == ("style", "louder")
    assert measured.adapters.impact > 0.01
    assert measured.adapters.overhead > 0


def test_prometheus_reads_them(measured):
    found = samples(measured.exposition())
    model = ("model", "pipeline")
    assert found["undertow_parameters", model] == measured.resources.parameters
    assert found["undertow_noise_error_ratio", model, ("timestep", "500")] == measured.quality.noise_error[500]
    assert found["undertow_adapters_active", model] == 2
    assert ("undertow_loss", model) not in found, "nothing was trained"


def test_what_the_service_counts_too_has_its_name_and_kind(measured):
    own = {family.name: family.type for family in text_string_to_metric_families(measured.exposition())}
    kinds = {family.name: family.type for family in WorkerMetrics().registry.collect()}
    shared = own.keys() & kinds.keys()
    assert {"undertow_parameters", "undertow_peak_bytes", "undertow_predicted_bytes"} <= shared
    assert {name: own[name] for name in shared} == {name: kinds[name] for name in shared}


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_network_that_says_the_truth_has_no_error(family, monkeypatch):
    """It answers what was added: the target of its own parameterization."""
    service = service_of(family)
    model = service.model
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    class Truthful(UNet):
        def forward(self, latents, timestep, conditioning):
            sigma = model.schedule.timestep_to_sigma(timestep.double())
            return model.parameterization.target(clean, noise, sigma)

    monkeypatch.setattr(model.unet, "__class__", Truthful)
    found = measure_quality(model, clean, Conditioning())
    assert all(error < 1e-3 for error in found.noise_error.values())


@pytest.fixture
def run(tmp_path):
    """A run that was killed while it wrote its third record."""
    (tmp_path / "training").mkdir()
    for step, loss in ((10, 0.125), (20, 0.25)):
        record = StepRecord(
            step=step, loss=loss, gradient_norm=2.0, learning_rate=1e-4, images_per_second=8.0, seconds=75.0
        )
        append_record(tmp_path / "training" / "log.jsonl", record)
    with (tmp_path / "training" / "log.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    return tmp_path


def test_training_has_the_same_format(run, capsys):
    found = samples(training_metrics(run).exposition())
    model = ("model", run.name)
    assert found["undertow_loss", model] == 0.25
    assert found["undertow_gradient_norm", model] == 2
    assert found["undertow_pictures_per_second", model] == 8
    assert main(["train", "metrics", str(run), "--format", "prometheus"]) == 0
    assert samples(capsys.readouterr().out) == found
    assert main(["train", "metrics", str(run), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(training_metrics(run).to_json()))


def test_the_command_line_says_how_a_training_stands(run, tmp_path, capsys):
    assert main(["train", "metrics", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step 20, trained for 0:01:15 at 8.0 pictures/s",
        "loss 0.25, lowest 0.125 at step 10",
        "gradient norm 2, learning rate 0.0001",
    ]
    assert main(["train", "metrics", str(tmp_path / "nothing")]) == 2
    assert "expected the folder of a training run" in capsys.readouterr().err


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="training run"):
        training_metrics(tmp_path)
