"""What a network predicts: every kind of evidence, their order, and the caller's last word."""

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.crafted import ldm_shapes, ldm_tensors, sparse_file
from tests.golden.minis import M15, M21, build
from undertow.checkpoints.files.weights import open_weights
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.identify.prediction import SD2_STATISTIC, Hints, find_prediction
from undertow.checkpoints.read.model_loading import load_model
from undertow.diffusion.parameterizations import Epsilon, VPrediction, XPrediction
from undertow.diffusion.schedules import NoiseSchedule
from undertow.errors import InvalidInput
from undertow.known_names import parse_prediction
from undertow.unet.config import UNetConfig

STATISTIC = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


def prediction(hints: Hints, family: str = "sdxl", given: str | None = None) -> tuple[str, str]:
    found = find_prediction(family, hints, given)
    assert found.evidence
    return found.value, found.confidence


CASES = {
    "nothing": (Hints(), ("epsilon", "assumed")),
    "v_pred marker": (Hints(markers=("v_pred",)), ("v", "certain")),
    "playground": (Hints(markers=("edm_mean", "edm_std")), ("edm", "certain")),
    "cosxl": (Hints(markers=("edm_vpred.sigma_max",)), ("edm_v", "certain")),
    "modelspec": (Hints(metadata={"modelspec.prediction_type": "v"}), ("v", "certain")),
    "modelspec epsilon": (Hints(metadata={"modelspec.prediction_type": "epsilon"}), ("epsilon", "certain")),
    "kohya": (Hints(metadata={"ss_v_parameterization": "True"}), ("v", "certain")),
    "nonsense in the header": (Hints(metadata={"prediction_type": "<script>"}), ("epsilon", "assumed")),
    "yaml": (Hints(sidecar='model:\n  params:\n    parameterization: "v"\n'), ("v", "certain")),
    "yaml without it": (Hints(sidecar="model:\n  params: 1\n"), ("epsilon", "assumed")),
    "marker before header": (
        Hints(markers=("v_pred",), metadata={"modelspec.prediction_type": "epsilon"}),
        ("v", "certain"),
    ),
    "header before yaml": (
        Hints(metadata={"modelspec.prediction_type": "epsilon"}, sidecar="parameterization: v"),
        ("epsilon", "certain"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_evidence(name):
    hints, expected = CASES[name]
    assert prediction(hints) == expected


@pytest.mark.parametrize("name", CASES)
def test_the_caller_has_the_last_word(name):
    assert prediction(CASES[name][0], given="v_prediction") == ("v", "given")


def spread(std: float) -> torch.Tensor:
    return torch.tensor([-std, std] * 160)


@pytest.mark.parametrize(("std", "expected"), [(0.05, "epsilon"), (0.15, "v")])
def test_sd2_tells_by_the_spread_of_one_bias(std, expected):
    hints = Hints(statistic=lambda: spread(std), global_step=875_000)
    assert prediction(hints, "sd2") == (expected, "likely")
    assert prediction(hints, "sd1") == ("epsilon", "assumed")


@pytest.mark.parametrize(("step", "expected"), [(875_000, "epsilon"), (220_000, "epsilon"), (110_000, "v")])
def test_sd2_tells_by_its_training_step(step, expected):
    assert prediction(Hints(global_step=step), "sd2") == (expected, "likely")


def test_unknown_names_are_refused():
    with pytest.raises(InvalidInput, match="epsilon, v, x0"):
        parse_prediction("noise")


@pytest.mark.parametrize(("std", "expected"), [(0.05, "epsilon"), (0.15, "v")])
def test_the_statistic_is_read_from_a_full_size_file(std, expected, tmp_path):
    """And a v model gets the size and the attention in float32 that it was trained with."""
    shapes = ldm_shapes(UNetConfig.sd21())
    assert shapes[STATISTIC] == (320,)
    path = sparse_file(tmp_path / "model.safetensors", shapes, dtype="F32")
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    for name, shape in shapes.items():
        if name == STATISTIC:
            break
        start += 4 * torch.Size(shape).numel()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(spread(std).numpy().tobytes())
    found = identify(path)
    assert found.prediction.value == expected
    assert SD2_STATISTIC in found.prediction.evidence
    assert found.config == UNetConfig.sd21(v_prediction=expected == "v")


def test_markers_and_sidecar_beside_a_real_file(tmp_path):
    unet = build(M15)
    path = tmp_path / "model.safetensors"
    save_file(ldm_tensors(unet) | {"ztsnr": torch.zeros(0)}, path)
    (tmp_path / "model.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    model = load_model(path, config=M15.config)
    assert model.parameterization == VPrediction()
    assert model.schedule == NoiseSchedule.scaled_linear().rescale_zero_terminal_snr()
    assert load_model(path, config=M15.config, prediction="x0").parameterization == XPrediction()
    given = load_model(path, config=M15.config, zero_terminal_snr=False)
    assert given.schedule == NoiseSchedule.scaled_linear()
    assert given.report.identification.zero_terminal_snr.confidence == "given"


def test_a_carried_schedule_is_honored_and_rounding_is_not_one(tmp_path):
    unet, usual = build(M21), NoiseSchedule.scaled_linear()
    tables = {
        "half": usual.alphas_cumprod.half(),
        "linear": NoiseSchedule.linear().alphas_cumprod.float(),
        "broken": torch.zeros(1000),
    }
    for name, table in tables.items():
        save_file(ldm_tensors(unet) | {"alphas_cumprod": table}, tmp_path / f"{name}.safetensors")
    schedules = {name: load_model(tmp_path / f"{name}.safetensors", config=M21.config).schedule for name in tables}
    assert schedules["half"] == schedules["broken"] == usual
    torch.testing.assert_close(
        schedules["linear"].alphas_cumprod, NoiseSchedule.linear().alphas_cumprod, rtol=1e-4, atol=1e-7
    )


def test_a_scheduler_with_another_prediction_than_the_usual(tmp_path):
    """A file without any hint predicts noise, and says that it only assumes so."""
    save_file(ldm_tensors(build(M15)), tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors", config=M15.config)
    assert model.parameterization == Epsilon()
    assert any("assumed" in note for note in model.report.notes)
    assert "global_step" not in open_weights(tmp_path / "model.safetensors").tensors
