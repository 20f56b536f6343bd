import json

import pytest
import torch

from undertow.checkpoints.read.class_model import load_class_model
from undertow.diffusion.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from undertow.diffusion.scheduler_config import SchedulerConfig
from undertow.diffusion.schedules import NoiseSchedule
from undertow.engine.class_pictures import sample_classes, sampling_settings
from undertow.errors import InvalidInput, UnknownCheckpoint
from undertow.pictures.pixels import to_uint8
from undertow.training.objective import Ddpm, Flow
from undertow.training.run_folder import save_model
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels, Level, UNetConfig
from undertow.unet.unet import UNet

NAMES = ("ant", "bee", "cat")
ONE_GRAY_LEVEL = 1
"""Rounding in convolutions differs with the batch size, and may cross from one byte to the next."""


def network(null=True):
    torch.manual_seed(0)
    config = UNetConfig(
        levels=(Level(channels=8), Level(channels=16)),
        in_channels=1,
        out_channels=1,
        norm_groups=4,
        sample_size=8,
        added=ClassLabels(count=3, null=null),
    )
    unet = UNet(config).eval()
    with torch.no_grad():
        unet.class_embedding.weight.mul_(5)  # so that classes look different
    return unet


def scheduler(preset, clip=None):
    objective = preset.build()
    return SchedulerConfig(schedule=objective.schedule, parameterization=objective.parameterization, clip=clip)


@pytest.fixture(params=[Flow(), Ddpm(prediction="v", schedule="cosine"), Ddpm()], ids=["flow", "v", "epsilon"])
def model(request, tmp_path):
    save_model(tmp_path, network(), scheduler(request.param), NAMES)
    return load_class_model(tmp_path)


def test_a_saved_model_is_the_same_model(model, tmp_path):
    assert model.class_names == NAMES
    assert model.null_label == 3
    expected = network().state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in model.unet.state_dict().items())
    again = load_class_model(tmp_path)
    assert again.scheduler == model.scheduler


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_picture_depends_on_its_seed_and_label_not_on_its_batch(model, stochastic):
    noisy = "ddpm" if model.path == VariancePreserving() else "euler_ancestral"
    settings = sampling_settings(model.path, sampler=noisy if stochastic else None, steps=4, guidance=2.0)
    labels, seeds = [0, 1, 2, 1], [7, 8, 9, 10]
    together = sample_classes(model, labels, seeds, settings).int()
    apart = sample_classes(model, labels[::-1], seeds[::-1], settings, batch_size=3).int()
    assert (together - apart.flip(0)).abs().max() <= ONE_GRAY_LEVEL
    same_seed = sample_classes(model, [0, 1, 1], [7, 7, 8], settings)
    assert not same_seed[0].equal(same_seed[1])
    assert not same_seed[1].equal(same_seed[2])


def test_guidance_leaves_the_unconditional_branch_out_at_one_and_changes_the_picture_otherwise(model):
    rows = []
    model.unet.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    pictures = {
        scale: sample_classes(model, [1], [0], sampling_settings(model.path, sampler="euler", steps=3, guidance=scale))
        for scale in (1.0, 3.0)
    }
    assert rows == [1, 1, 1, 2, 2, 2]
    assert not pictures[1.0].equal(pictures[3.0])


def test_progress_counts_finished_pictures(model):
    finished = []
    settings = sampling_settings(model.path, steps=2)
    sample_classes(model, [0] * 5, range(5), settings, batch_size=2, on_pictures=finished.append)
    assert finished == [2, 2, 1]


def test_one_step_of_a_flow_is_noise_minus_its_velocity(tmp_path):
    save_model(tmp_path, network(), scheduler(Flow()), NAMES)
    model = load_class_model(tmp_path)
    settings = sampling_settings(model.path, sampler="flow_euler", steps=1)
    drawn = sample_classes(model, [2], [5], settings)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    velocity = model.unet(noise, torch.tensor([1000.0]), Conditioning(class_labels=torch.tensor([2])))
    assert drawn.equal(to_uint8(noise - velocity.detach()))


def test_guidance_leads_away_from_the_null_class(tmp_path):
    """One step of a flow at scale 3, where the other side is the label behind the last class."""
    save_model(tmp_path, network(), scheduler(Flow()), NAMES)
    model = load_class_model(tmp_path)
    settings = sampling_settings(model.path, sampler="flow_euler", steps=1, guidance=3.0)
    drawn = sample_classes(model, [1], [5], settings)
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        asked, null = (
            model.unet(noise, torch.tensor([1000.0]), Conditioning(class_labels=torch.tensor([label])))
            for label in (1, 3)
        )
    expected = to_uint8(noise - (null + 3 * (asked - null)))
    assert (drawn.int() - expected.int()).abs().max() <= ONE_GRAY_LEVEL


def test_clipping_is_applied_where_the_model_says_so(tmp_path):
    pictures = []
    for clip in (None, 0.25):
        save_model(tmp_path, network(), scheduler(Ddpm(), clip=clip), NAMES)
        model = load_class_model(tmp_path)
        pictures.append(sample_classes(model, [0], [0], sampling_settings(model.path, steps=3)).int() - 127.5)
    assert pictures[1].abs().max() <= 0.25 * 127.5 + 1
    assert pictures[0].abs().max() > 0.25 * 127.5 + 1


def test_defaults_suit_the_path():
    assert sampling_settings(RectifiedFlow()).sampler == "flow_heun"
    assert sampling_settings(VariancePreserving()).sampler == "ddim"
    edm = sampling_settings(VarianceExploding())
    assert (edm.sampler, edm.schedule, edm.steps) == ("heun", "karras", 18)  # arXiv:2206.00364, section 3 and table 1
    assert sampling_settings(RectifiedFlow(), sampler="euler", steps=3).steps == 3


@pytest.mark.parametrize(
    ("labels", "seeds", "options", "problem"),
    [
        ([3], [0], {}, "label is 3, expected a class from 0 to 2"),
        ([-1], [0], {}, "label is -1"),
        ([0, 1], [0], {}, "one per label"),
        ([], [], {}, "one per label"),
        ([0], [0], {"sampler": "eular"}, "did you mean 'euler'"),
        ([0], [0], {"schedule": "karas"}, "did you mean 'karras'"),
        ([0], [0], {"steps": 0}, "at least 1"),
        ([0], [-1], {}, "a whole number from 0"),
    ],
)
def test_impossible_requests_are_refused(model, labels, seeds, options, problem):
    with pytest.raises(InvalidInput) as caught:
        sample_classes(model, labels, seeds, sampling_settings(model.path, **options))
    assert problem in str(caught.value)


def test_a_sampler_of_the_other_path_is_refused(tmp_path):
    save_model(tmp_path, network(), scheduler(Flow()), NAMES)
    model = load_class_model(tmp_path)
    with pytest.raises(InvalidInput, match="one for RectifiedFlow"):
        sample_classes(model, [0], [0], sampling_settings(model.path, sampler="tcd"))


def test_guidance_without_a_null_class_is_refused(tmp_path):
    save_model(tmp_path, network(null=False), scheduler(Flow()), NAMES)
    model = load_class_model(tmp_path)
    assert model.null_label is None
    sample_classes(model, [0], [0], sampling_settings(model.path, steps=1))
    with pytest.raises(InvalidInput, match="trained without a null class"):
        sample_classes(model, [0], [0], sampling_settings(model.path, guidance=2.0))


def test_folders_without_a_class_model_are_refused(tmp_path):
    with pytest.raises(UnknownCheckpoint, match="make one with 'undertow train digits'"):
        load_class_model(tmp_path / "nowhere")
    (tmp_path / "training").mkdir()
    with pytest.raises(UnknownCheckpoint, match="has not saved its first checkpoint"):
        load_class_model(tmp_path)
    save_model(tmp_path, network(), scheduler(Flow()), NAMES)
    (tmp_path / "classes.json").write_text(json.dumps({"class_names": ["one"]}))
    with pytest.raises(UnknownCheckpoint, match="not 3 names"):
        load_class_model(tmp_path)
    (tmp_path / "classes.json").unlink()
    assert load_class_model(tmp_path).class_names == ("0", "1", "2")
    torch.manual_seed(0)
    plain = UNet(UNetConfig(levels=(Level(channels=8),), norm_groups=4))
    save_model(
        tmp_path,
        plain,
        SchedulerConfig(schedule=NoiseSchedule.linear(), parameterization=Ddpm().build().parameterization),
        NAMES,
    )
    with pytest.raises(UnknownCheckpoint, match="no class labels"):
        load_class_model(tmp_path)
