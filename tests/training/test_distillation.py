"""Distillation: what a student is taught is what the formulas say, a stopped run goes on to the same bits, diffusers
draws the same with what comes out, and the teacher stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

import undertow
from tests.services import pipeline_folder
from tests.training.adapter_runs import equal_states, fit_for, is_as_before, weights
from tests.training.lora_runs import load, pictures
from undertow.diffusion.parameterizations import Velocity
from undertow.diffusion.schedules import FlowSchedule
from undertow.errors import CheckpointError, ConfigError, InvalidInput
from undertow.sampling.noise import NoiseSource
from undertow.training.consistency import DistilledLevels, Tightening
from undertow.training.distillation import DistillationSettings, train_distilled
from undertow.training.distillation_export import write_distilled
from undertow.training.distillation_losses import (
    ConsistencyTuning,
    GuidanceDistillation,
    LatentConsistency,
    drawn_sigmas,
    loss_of,
)
from undertow.training.feature_distillation import FeatureDistillation, FeatureLoss, new_student, stage_widths
from undertow.training.objective import ConstantWeighting, MinSNRWeighting
from undertow.training.teacher import DistillationData, TeacherAndStudent
from undertow.training.timesteps import UniformTimesteps
from undertow.unet.config import Level

ROUNDING = 1e-5
LEVELS = 2
"""Of 255, between undertow's pictures and diffusers'."""

GUIDANCE = GuidanceDistillation(guidance=4.0)
LCM = LatentConsistency(guidance=4.0, original_steps=10)
TUNING = ConsistencyTuning(tightening=Tightening(every=2, stages=3))


@pytest.fixture(scope="module")
def sd1():
    return load(pipeline_folder("sd1"))


@pytest.fixture(scope="module")
def networks(sd1):
    """A teacher, and a student that is another network."""
    student = new_student(sd1.unet.config, sd1.unet, seed=0).unet
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    return TeacherAndStudent.of(sd1, student, pictures())


@pytest.fixture(scope="module")
def data(sd1):
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    return DistillationData(latents=latents, fit=fit_for(4), timesteps=UniformTimesteps(), device=torch.device("cpu"))


def smaller(config):
    """With the narrowest level that the tiny pipeline's groups of channels allow, and one ResBlock a level."""
    first, *others = config.levels
    return replace(config, levels=(replace(first, channels=first.channels // 2, resnets=1), *others))


def settings(method, steps=4, **changes):
    return DistillationSettings(fit=fit_for(steps, **changes), method=method)


def by_hand(networks, unet, x, sigma, rows):
    """A prediction for single rows: captions `None` are empty."""
    scaled = x / (1 + sigma**2).sqrt()[:, None, None, None]
    timesteps = networks.preconditioning.schedule.sigma_to_timestep(sigma)
    given = networks.captions.encoded.rows(torch.tensor(rows))
    conditioning = networks.captions.encoder.conditioning(given, [networks.captions.pictures.crops[0]] * len(rows), 32)
    return unet(scaled.float(), timesteps.float(), conditioning)


def denoised_by_hand(networks, unet, x, sigma, rows):
    """The tiny pipeline predicts epsilon."""
    return x - sigma[:, None, None, None].float() * by_hand(networks, unet, x, sigma, rows)


@torch.no_grad()
def test_a_batch_depends_on_its_step_alone(data):
    one, again, other = data.at(3), data.at(3), data.at(4)
    assert one.noise.equal(again.noise)
    assert one.u.equal(again.u)
    assert not one.noise.equal(other.noise)
    assert sorted(one.indices.tolist()) == [0, 1, 2, 3]


def test_sizes_and_pooled_text_reach_teacher_and_student(data):
    """SDXL's U-Net refuses to run without them."""
    sdxl = load(pipeline_folder("sdxl"))
    networks = TeacherAndStudent.of(sdxl, new_student(sdxl.unet.config, sdxl.unet, seed=0).unet, pictures())
    assert sdxl.unet.config.added is not None
    with torch.no_grad():
        assert loss_of(LCM, networks, min_snr_gamma=5.0)(data.at(1)).item() > 0


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_guidance_is_taught_as_it_is_sampled(networks, data, scale):
    batch, empty = data.at(1), len(pictures())
    loss = loss_of(GuidanceDistillation(guidance=scale), networks, min_snr_gamma=5.0)(batch)
    sigma = drawn_sigmas(networks, batch)
    x = batch.x0 + sigma[:, None, None, None].float() * batch.noise
    rows = batch.indices.tolist()
    with_words, without = (by_hand(networks, networks.teacher, x, sigma, each) for each in (rows, [empty] * len(rows)))
    guided = without + scale * (with_words - without)
    errors = (by_hand(networks, networks.student, x, sigma, rows) - guided).square().mean((1, 2, 3))
    expected = (errors * (5 * sigma**2).clamp(max=1)).mean()  # min(SNR, 5) / SNR for epsilon
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert scale == 1 or float((with_words - without).abs().max()) > ROUNDING, "captions say nothing"


@torch.no_grad()
def test_the_loss_of_lcm_is_its_algorithm_written_out(networks, data):
    """arXiv:2310.04378, algorithm 1, with diffusers' scalings, in the variables of DDPM."""
    batch, empty = data.at(1), len(pictures())
    schedule = networks.preconditioning.schedule
    levels = DistilledLevels(schedule=schedule, count=LCM.original_steps)
    scheduler, rows = LCMScheduler(), batch.indices.tolist()
    distances = []
    for row, (picture, u) in enumerate(zip(rows, batch.u.tolist(), strict=True)):
        upper, lower = (int(each) for each in levels.neighbors(torch.tensor([u], dtype=torch.float64)))
        abar, below = schedule.alphas_cumprod[upper].item(), schedule.alphas_cumprod[lower].item()
        x = abar**0.5 * batch.x0[row : row + 1] + (1 - abar) ** 0.5 * batch.noise[row : row + 1]

        def epsilon(unet, x, timestep, caption):
            sigma = schedule.sigmas[timestep : timestep + 1]
            return by_hand(networks, unet, x * (1 + sigma**2).sqrt().float(), sigma, [caption])

        def clean(x, noise, abar):
            return (x - (1 - abar) ** 0.5 * noise) / abar**0.5

        def consistent(x, timestep, abar, caption):
            c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
            return c_skip * x + c_out * clean(x, epsilon(networks.student, x, timestep, caption), abar)

        without = epsilon(networks.teacher, x, upper, empty)
        noise = without + LCM.guidance * (epsilon(networks.teacher, x, upper, picture) - without)
        moved = below**0.5 * clean(x, noise, abar) + (1 - below) ** 0.5 * noise
        difference = consistent(x, upper, abar, picture) - consistent(moved, lower, below, picture)
        distances.append(((difference**2 + 1e-6).sqrt() - 1e-3).mean())
    loss = loss_of(LCM, networks, min_snr_gamma=None)(batch)
    assert loss.item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-3)


@torch.no_grad()
def test_the_loss_of_tuning_is_the_authors_written_out(networks, data):
    batch = replace(data.at(1), step=5)  # the third stage
    sigma = drawn_sigmas(networks, batch)
    rows = batch.indices.tolist()
    n = 1 + 8 * torch.sigmoid(-sigma / 2)
    lower = (sigma * (1 - n / 8)).clamp(min=0)
    upper_x, lower_x = (batch.x0 + each[:, None, None, None].float() * batch.noise for each in (sigma, lower))
    first = networks.preconditioning.schedule.sigma_min
    assert bool((lower > first).any())
    target = denoised_by_hand(networks, networks.student, lower_x, lower.clamp(min=first), rows)
    target = torch.where((lower < first)[:, None, None, None], batch.x0, target)
    error = denoised_by_hand(networks, networks.student, upper_x, sigma, rows) - target
    numbers = error[0].numel()
    distances = error.square().flatten(1).sum(1).sqrt() / numbers**0.5
    for gamma in (None, 2.0):
        ratio = sigma**-2 if gamma is None else (sigma**-2).clamp(max=gamma)
        loss = loss_of(TUNING, networks, min_snr_gamma=gamma)(batch)
        assert loss.item() == pytest.approx(((1 + ratio) * distances).mean().item(), rel=1e-3)


def test_gradients_reach_the_student_and_not_its_targets(networks, data):
    for method in (GUIDANCE, LCM, TUNING):
        networks.student.zero_grad()
        networks.teacher.zero_grad()
        loss_of(method, networks, min_snr_gamma=5.0)(replace(data.at(1), step=5)).backward()
        assert all(parameter.grad is not None for parameter in networks.student.parameters())
        assert all(parameter.grad is None for parameter in networks.teacher.parameters())
    networks.student.zero_grad()


def test_a_smaller_student_is_taught_three_things(sd1, data):
    config = smaller(sd1.unet.config)
    student = new_student(config, sd1.unet, seed=0)
    widths = stage_widths(config)
    assert sum(p.numel() for p in student.unet.parameters()) < sum(p.numel() for p in sd1.unet.parameters())
    narrowed = {name.replace("/", ".") for name in student.projections}
    assert narrowed == {name for name, width in stage_widths(sd1.unet.config).items() if width != widths[name]}
    assert narrowed
    same = student.unet.time_embedding.state_dict()
    shared = [
        name for name, tensor in sd1.unet.state_dict().items() if _same(student.unet.state_dict().get(name), tensor)
    ]
    assert len(shared) > len(same), "it begins with what the teacher has in common with it"
    networks = TeacherAndStudent.of(sd1, student.unet, pictures())

    def loss(**weights):
        method = FeatureDistillation(unet=config, dropped=0.0, **weights)
        return FeatureLoss(networks=networks, student=student, weighting=ConstantWeighting(), method=method)(data.at(1))

    task = loss(prediction_weight=0.0, feature_weight=0.0)
    prediction = loss(prediction_weight=1.0, feature_weight=0.0) - task
    features = loss(prediction_weight=0.0, feature_weight=1.0) - task
    assert loss(prediction_weight=2.0, feature_weight=3.0).item() == pytest.approx(
        (task + 2 * prediction + 3 * features).item(), rel=1e-4
    )
    batch = data.at(1)
    sigma = drawn_sigmas(networks, batch)
    x = batch.x0 + sigma[:, None, None, None].float() * batch.noise
    rows = batch.indices.tolist()
    learned, taught = (by_hand(networks, unet, x, sigma, rows) for unet in (student.unet, sd1.unet))
    assert task.item() == pytest.approx((learned - batch.noise).square().mean().item(), rel=1e-4)
    assert prediction.item() == pytest.approx((learned - taught).square().mean().item(), rel=1e-3)
    loss().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_dropped_captions_are_empty_for_both(sd1, data):
    """Of three errors, that of the prediction alone: with all captions dropped, of the empty one."""
    config = smaller(sd1.unet.config)
    student = new_student(config, sd1.unet, seed=0)
    networks = TeacherAndStudent.of(sd1, student.unet, pictures())
    batch = data.at(1)
    sigma = drawn_sigmas(networks, batch)
    x = batch.x0 + sigma[:, None, None, None].float() * batch.noise

    def losses(dropped):
        alone = FeatureDistillation(unet=config, feature_weight=0.0, dropped=dropped)
        loss = FeatureLoss(networks=networks, student=student, weighting=ConstantWeighting(), method=alone)
        return loss(batch).item()

    for dropped, rows in ((0.0, batch.indices.tolist()), (1.0, [len(pictures())] * len(x))):
        learned, taught = (by_hand(networks, unet, x, sigma, rows) for unet in (student.unet, sd1.unet))
        expected = (learned - batch.noise).square().mean() + (learned - taught).square().mean()
        assert losses(dropped) == pytest.approx(expected.item(), rel=1e-4)
    assert len(set(map(losses, (0.0, 1.0)))) == 2


def test_a_student_begins_as_the_network_that_is_given(sd1):
    config = smaller(sd1.unet.config)
    start = new_student(config, sd1.unet, seed=7).unet
    with torch.no_grad():
        start.conv_in.weight.mul_(0.5)
    begun = new_student(config, sd1.unet, seed=0, start=start).unet
    assert equal_states(begun, start)
    assert not equal_states(new_student(config, sd1.unet, seed=0).unet, start)


def test_features_that_are_the_teachers_cost_nothing(sd1, data):
    student = new_student(sd1.unet.config, sd1.unet, seed=0)
    assert not student.projections
    networks = TeacherAndStudent.of(sd1, student.unet, pictures())
    method = FeatureDistillation(unet=sd1.unet.config)
    loss = FeatureLoss(networks=networks, student=student, weighting=MinSNRWeighting(), method=method)
    alone = replace(method, prediction_weight=0.0, feature_weight=0.0)
    assert loss(data.at(1)).item() == pytest.approx(replace(loss, method=alone)(data.at(1)).item(), rel=1e-5)


def _same(one, other) -> bool:
    return one is not None and one.shape == other.shape and bool(one.equal(other))


def test_a_student_that_cannot_take_the_teachers_place_is_refused(sd1):
    config = sd1.unet.config
    for wrong, said in (
        (replace(config, in_channels=5), "student.in_channels"),
        (replace(config, levels=(Level(channels=32), *config.levels)), "student.levels"),
    ):
        with pytest.raises(ConfigError, match=said):
            new_student(wrong, sd1.unet, seed=0)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(sd1, tmp_path):
    """Also from one stage of the tightening into the next."""
    method, before = replace(TUNING, tightening=Tightening(every=1)), weights(sd1)
    chosen = settings(method, 2, checkpoint_every=1, batch_size=2)
    whole = train_distilled(sd1, pictures(), chosen, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_distilled(sd1, pictures(), chosen, tmp_path / "run", stop=lambda: True)
    resumed = train_distilled(sd1, pictures(), chosen, tmp_path / "run")
    assert equal_states(whole, resumed)
    assert not equal_states(whole, sd1.unet)
    assert is_as_before(sd1, before)
    for other, said in (
        (replace(method, huber_c=0.5), r"huber_c was 0\.0 and is now 0\.5"),
        (LCM, "guidance was None"),
    ):
        with pytest.raises(CheckpointError, match=said):
            train_distilled(sd1, pictures(), replace(chosen, method=other), tmp_path / "run")


def test_consistency_is_refused_where_lcm_scheduler_cannot_draw(sd1, tmp_path):
    flow = replace(sd1, schedule=FlowSchedule(), parameterization=Velocity())
    with pytest.raises(InvalidInput, match="LCMScheduler"):
        train_distilled(flow, pictures(), settings(LCM), tmp_path / "run")
    with pytest.raises(ConfigError, match="original_steps"):
        train_distilled(sd1, pictures(), settings(replace(LCM, original_steps=2000)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GuidanceDistillation(guidance=0.5),
        lambda: LatentConsistency(guidance=float("nan")),
        lambda: ConsistencyTuning(tightening=Tightening(every=1), huber_c=-1.0),
        lambda: settings(GUIDANCE, steps=0),
    ],
)
def test_settings_without_a_meaning_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_what_is_written_is_drawn_the_same_by_diffusers(sd1, tmp_path):
    """With one step's noise given to both: LCM's later noise comes from each program's own generator."""
    student = train_distilled(sd1, pictures(), settings(LCM, 1, batch_size=2), tmp_path / "run")
    folder = write_distilled(student, sd1, LCM, tmp_path / "turbo")
    ours = undertow.load(folder, dtype=torch.float32)
    assert (ours.model.sampler.sampler, ours.model.sampler.original_steps) == ("lcm", 10)
    for name, tensor in student.state_dict().items():
        assert ours.unet.state_dict()[name].equal(tensor), name
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    noise = NoiseSource([7]).draw((4, 16, 16))
    theirs = pipeline("red apple", num_inference_steps=1, guidance_scale=1.0, latents=noise, height=32, width=32).images
    drawn = ours.generate("red apple", steps=1, guidance_scale=1.0, seed=7, size=(32, 32)).images[0]
    assert np.abs(np.asarray(theirs[0], dtype=int) - np.asarray(drawn, dtype=int)).max() <= LEVELS
    assert len(np.unique(np.asarray(drawn))) > 10
    few = ours.generate("red apple", steps=4, guidance_scale=1.0, seed=7, size=(32, 32))
    assert few.images[0].tobytes() != drawn.tobytes()
