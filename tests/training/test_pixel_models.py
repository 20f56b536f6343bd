import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.training.reference_adamw import AdamW
from undertow.checkpoints.read.class_model import load_class_model
from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.errors import CheckpointError, ConfigError, CorruptFile, InvalidInput, UndertowError
from undertow.processor import has_bfloat16
from undertow.training import meter, pixel_models
from undertow.training.augmentation import Augmentation
from undertow.training.batches import Batches
from undertow.training.checkpointing import checkpointing
from undertow.training.log import read_records
from undertow.training.objective import Ddpm, Flow
from undertow.training.pixel_files import PixelFiles
from undertow.training.pixel_models import new_network, stored_config, train_pixel_model
from undertow.training.run_folder import RunFolder
from undertow.training.training_state import saved_steps
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels, Level, UNetConfig
from undertow.unet.unet import UNet

CHECKPOINTED = {"rtol": 1e-5, "atol": 1e-6}
"""Recomputed activations are the same numbers; only the order in which gradients are summed may differ."""

STEPS_ROUNDED = 1e-2
"""Of the way that four steps go: float32 gradients, of which AdamW divides the small ones by their
size. Observed: 0.004."""

BF16_LOSS = 0.05
"""bf16 has eight bits; the loss of one step is a mean over 512 squared errors."""


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run):
    return load_unet_folder(run / "unet").state_dict()


def test_the_loss_falls_on_a_few_pictures(tmp_path, tiny_config):
    config = tiny_config(
        steps=25, batch_size=16, learning_rate=1e-2, decay="constant", log_every=5, checkpoint_every=25
    )
    records = []
    train_pixel_model(config, tmp_path, on_record=records.append)
    assert [record.step for record in records] == list(range(5, 26, 5))
    assert records[-1].loss < 0.7 * records[0].loss
    assert all(record.gradient_norm > 0 and record.images_per_second > 0 for record in records)
    assert list(read_records(RunFolder(tmp_path).log))[-1].loss == pytest.approx(records[-1].loss, rel=1e-5)


def inputs_and_target(objective, batch):
    """What the network sees and should say, in the papers' letters, at u in (0, 1)."""
    x0, noise, u = batch.x0, batch.noise, batch.u.reshape(-1, 1, 1, 1)
    if isinstance(objective, Flow):
        return ((1 - u) * x0 + u * noise).float(), 1000 * batch.u, noise - x0
    steps = (1000 * batch.u).floor()
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[steps.long()].reshape(-1, 1, 1, 1)
    signal, part = abar.sqrt().float(), (1 - abar).sqrt().float()
    target = noise if objective.prediction == "epsilon" else signal * noise - part * x0
    return signal * x0 + part * noise, steps, target


@pytest.mark.parametrize("objective", [Flow(), Ddpm(prediction="epsilon", schedule="linear"), Ddpm(prediction="v")])
def test_a_run_is_adamw_on_the_clipped_gradients_of_its_batches_written_out(
    tmp_path, tiny_config, tiny_pictures, objective
):
    """Clipping, decay, warm-up, the rate of each step, the average and the loss itself: none may be left out."""
    config = tiny_config(
        objective=objective,
        unet=replace(tiny_config().unet, dropout=0.0),
        steps=4, warmup_steps=2, learning_rate=1e-2, weight_decay=3.0, clip_norm=0.2, ema_decay=0.99,
    )  # fmt: skip
    rates = [0.005, 0.01, 0.005, 0.0]  # half a cosine behind the warm-up
    unet = new_network(config).train()
    start = torch.cat([parameter.detach().flatten() for parameter in unet.parameters()])
    expected = AdamW(list(unet.parameters()), betas=(0.9, 0.999), weight_decay=3.0, clip_norm=0.2)
    losses = []
    for step, rate in enumerate(rates, start=1):
        batch = Batches(pictures=tiny_pictures, config=config).at(step)
        inputs, timesteps, target = inputs_and_target(objective, batch)
        prediction = unet(inputs, timesteps.float(), Conditioning(class_labels=batch.labels))
        loss = (prediction - target).square().mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(unet.parameters()))
        expected.step(gradients, rate=rate, ema_decay=0.99)
        with torch.no_grad():
            for parameter, value in zip(unet.parameters(), expected.parameters, strict=True):
                parameter.copy_(value)
    assert min(expected.norms) > 2 * config.clip_norm, "nothing to clip"

    train_pixel_model(config, tmp_path / "run")
    state = torch.load(tmp_path / "run/training/checkpoints/step-000004/state.pt", weights_only=True)
    names = [name for name, _ in unet.named_parameters()]
    for part, wanted in (("network", expected.parameters), ("average", expected.average)):
        found = torch.cat([state[part][name].flatten() for name in names])
        whole = torch.cat([tensor.flatten() for tensor in wanted])
        assert (found - whole).norm() <= STEPS_ROUNDED * (whole - start).norm(), part
    sampled, trained = load_class_model(tmp_path / "run").scheduler, objective.build()
    assert (sampled.parameterization, type(sampled.schedule)) == (trained.parameterization, type(trained.schedule))
    assert sampled.clip == (None if isinstance(objective, Flow) else 1.0), "what is sampled of DDPM lies in [-1, 1]"
    records = list(read_records(RunFolder(tmp_path / "run").log))
    assert [record.learning_rate for record in records] == pytest.approx(rates)
    assert [record.loss for record in records] == pytest.approx(losses, rel=1e-3)
    assert [record.gradient_norm for record in records] == pytest.approx(expected.norms, rel=1e-3), "before clipping"


def test_a_run_s_folder_holds_model_log_plot_and_samples(tmp_path, tiny_config, drawn_curves):
    config = tiny_config(sample_every=4)
    train_pixel_model(config, tmp_path)
    present = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    checkpoints = {
        f"training/checkpoints/step-{step:06d}/{name}" for step in (4, 8) for name in ("state.pt", "meta.json")
    }
    assert present == checkpoints | {
        "model_index.json",
        "classes.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "training/config.json",
        "training/log.jsonl",
        "training/loss.png",
        "training/samples/step-000004.png",
        "training/samples/step-000008.png",
    }
    assert stored_config(tmp_path) == config
    for name in ("samples/step-000008.png", "loss.png"):
        with Image.open(tmp_path / "training" / name) as picture:
            colors = picture.convert("L").getextrema()
        assert colors[1] > colors[0]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]


def test_the_model_for_inference_is_the_average_not_the_last_weights(tmp_path, tiny_config):
    train_pixel_model(tiny_config(ema_decay=0.9), tmp_path)
    state = torch.load(tmp_path / "training/checkpoints/step-000008/state.pt", weights_only=True)
    saved = weights(tmp_path)
    assert all(saved[name].equal(state["average"][name]) for name in saved)
    assert not saved["conv_in.weight"].equal(state["network"]["conv_in.weight"])


def test_what_is_drawn_and_logged_meanwhile_does_not_touch_the_weights(tmp_path, tiny_config):
    train_pixel_model(tiny_config(), tmp_path / "a")
    torch.manual_seed(99)  # nor does the state of torch's own generator
    train_pixel_model(tiny_config(sample_every=3, log_every=3, checkpoint_every=5, keep_checkpoints=1), tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(a[name].equal(b[name]) for name in a)
    assert saved_steps(RunFolder(tmp_path / "a").checkpoints) == [4, 8]
    assert saved_steps(RunFolder(tmp_path / "b").checkpoints) == [8]
    each, few = (read_records(RunFolder(tmp_path / name).log) for name in ("a", "b"))
    assert [record.step for record in few] == [3, 5, 6, 8]
    for record, since in zip(few, (slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 8)), strict=True):
        steps = each[since]
        assert record.loss == pytest.approx(sum(one.loss for one in steps) / len(steps), rel=1e-4)
        assert record.gradient_norm == pytest.approx(sum(one.gradient_norm for one in steps) / len(steps), rel=1e-4)


def test_every_step_of_every_seed_starts_torch_s_generator_anew(tmp_path, tiny_config, monkeypatch):
    """From which dropout takes its masks."""
    loss_of, seeds = pixel_models._Loss.__call__, []

    def loss(*given):
        seeds.append(torch.initial_seed())
        return loss_of(*given)

    monkeypatch.setattr(pixel_models._Loss, "__call__", loss)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train_pixel_model(tiny_config(steps=3, seed=seed), tmp_path / name)
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds)) == 6
    one, same = (weights(tmp_path / name) for name in ("one", "same"))
    assert all(one[name].equal(same[name]) for name in one)


def test_the_start_follows_from_the_seed(tiny_config):
    one, same, other = (new_network(tiny_config(seed=seed)).conv_in.weight for seed in (0, 0, 1))
    assert one.equal(same)
    assert not one.equal(other)


def test_training_leaves_torch_s_generator_as_it_was(tmp_path, tiny_config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_pixel_model(tiny_config(steps=2), tmp_path)
    assert torch.get_rng_state().equal(before)


def test_frozen_weights_stay_bit_by_bit_and_the_others_move(tmp_path, tiny_config):
    start = tmp_path / "start"
    train_pixel_model(tiny_config(steps=2), start)
    config = tiny_config(start_from=str(start), freeze=("down_blocks.*", "time_embedding.*"), ema_decay=0.0)
    train_pixel_model(config, tmp_path / "run")
    before, after = weights(start), weights(tmp_path / "run")
    for name in before:
        frozen = name.startswith(("down_blocks.", "time_embedding."))
        assert before[name].equal(after[name]) == frozen, name


def test_gradient_checkpointing_gives_the_same_gradients(tiny_config, tiny_pictures):
    gradients, forwards, config = [], [], tiny_config()
    for recompute in (False, True):
        unet = new_network(config).train()
        unet.mid_block.resnets[0].register_forward_hook(lambda *_, at=recompute: forwards.append(at))
        batch = Batches(pictures=tiny_pictures, config=config).at(1)
        example = config.objective.build().example(batch.x0, batch.noise, batch.u)
        torch.manual_seed(0)  # dropout, which the recomputation must repeat
        with checkpointing(unet, recompute):
            unet.train()
            prediction = unet(example.inputs, example.timesteps.float(), Conditioning(class_labels=batch.labels))
            example.loss(prediction).backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    assert forwards.count(False) == 1
    assert forwards.count(True) == 2  # once more in the backward pass
    plain, recomputed = gradients
    assert sum(gradient.abs().sum() for gradient in plain.values()) > 0
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], **CHECKPOINTED)


def test_gradient_checkpointing_is_on_while_a_run_that_asks_for_it_trains(tmp_path, tiny_config, monkeypatch):
    loss_of, seen = pixel_models._Loss.__call__, []

    def loss(self, batch):
        seen.append((self.network.training, self.network.gradient_checkpointing))
        return loss_of(self, batch)

    monkeypatch.setattr(pixel_models._Loss, "__call__", loss)
    for asked in (False, True):
        train_pixel_model(tiny_config(steps=1, gradient_checkpointing=asked), tmp_path / str(asked))
    assert seen == [(True, False), (True, True)]


def test_gradient_checkpointing_keeps_less_for_the_backward_pass(tiny_config):
    # Trap T6: it saves memory in training, and only there.
    kept = {}
    for recompute in (False, True, ("up_blocks.1",)):
        torch.manual_seed(0)
        unet = UNet(tiny_config().unet).train()
        unet.gradient_checkpointing = recompute
        kept[recompute] = 0

        def count(tensor, at=recompute):
            kept[at] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            unet(torch.zeros(8, 1, 8, 8), torch.zeros(8), Conditioning(class_labels=torch.zeros(8, dtype=torch.long)))
    assert kept[True] < 0.6 * kept[False]
    assert kept[True] < kept[("up_blocks.1",)] < 0.9 * kept[False], "one block alone, the last of the largest maps"


def test_bf16_trains_to_nearly_the_same_loss_with_float32_weights(tmp_path, tiny_config):
    losses = {}
    for precision in ("float32", "bf16"):
        records = []
        train_pixel_model(tiny_config(precision=precision, steps=4), tmp_path / precision, on_record=records.append)
        losses[precision] = [record.loss for record in records]
    assert (losses["bf16"] != losses["float32"]) == has_bfloat16()
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=BF16_LOSS)
    assert weights(tmp_path / "bf16")["conv_in.weight"].dtype == torch.float32


def test_time_counts_over_all_sessions_and_speed_without_what_is_written(tmp_path, tiny_config, monkeypatch):
    """By a clock on which a step takes two seconds, and what is written behind one a hundred."""
    clock, loss_of, written = [1000.0], pixel_models._Loss.__call__, PixelFiles.draw_samples

    def loss(*given):
        clock[0] += 2
        return loss_of(*given)

    def after_step(self, progress):
        clock[0] += 100
        written(self, progress)

    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(pixel_models._Loss, "__call__", loss)
    monkeypatch.setattr(PixelFiles, "draw_samples", after_step)
    records = []
    for steps in (2, 4):
        config = tiny_config(decay="constant", steps=steps, log_every=2)
        train_pixel_model(config, tmp_path, resume=steps > 2, on_record=records.append)
        clock[0] += 5000  # between the sessions
    assert [record.step for record in records] == [2, 4]
    assert {record.images_per_second for record in records} == {4.0}, "eight rows in two seconds"
    assert [record.seconds for record in records] == [104, 208]


def test_a_network_without_labels_trains_too(tmp_path, tiny_config):
    unet = UNetConfig(
        levels=(Level(channels=8),), in_channels=1, out_channels=1, norm_groups=4, sample_size=8, dropout=0.0
    )
    train_pixel_model(tiny_config(unet=unet, label_dropout=0.0, steps=2), tmp_path)
    assert (tmp_path / "unet" / "config.json").is_file()


def test_a_network_without_a_null_class_is_shown_without_guidance(tmp_path, tiny_config):
    unet = replace(tiny_config().unet, added=ClassLabels(count=10))
    train_pixel_model(tiny_config(unet=unet, label_dropout=0.0, steps=1), tmp_path)
    assert RunFolder(tmp_path).samples(1).is_file()


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path, tiny_config):
    config = tiny_config(steps=40, learning_rate=1e15, warmup_steps=0, log_every=1000, checkpoint_every=20)
    with pytest.raises(UndertowError, match="training has diverged"):
        train_pixel_model(config, tmp_path)
    assert not (tmp_path / "training" / "checkpoints").exists()


def test_everything_wrong_is_refused_before_anything_is_written(tmp_path, tiny_config):
    out = tmp_path / "run"
    for config, error in (
        (tiny_config(freeze=("nothing.*",)), ConfigError),
        (tiny_config(start_from=str(tmp_path / "nowhere")), CheckpointError),
        (tiny_config(data=replace(tiny_config().data, size=9)), InvalidInput),
    ):
        with pytest.raises(error):
            train_pixel_model(config, out)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_pixel_model(tiny_config(), out, resume=True)
    assert not out.exists()


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "diffusion_pytorch_model.safetensors"])
def test_a_folder_with_a_model_is_not_overwritten(tmp_path, tiny_config, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(InvalidInput, match="a folder without a model; this one holds"):
        train_pixel_model(tiny_config(steps=1), tmp_path)
    assert files(tmp_path) == {tmp_path / name: b"somebody's"}


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, tiny_config):
    train_pixel_model(tiny_config(steps=4), tmp_path)
    before = files(tmp_path)
    with pytest.raises(InvalidInput, match="it holds one at step 4: go on with --resume"):
        train_pixel_model(tiny_config(steps=4), tmp_path)
    with pytest.raises(CheckpointError, match="another run: seed was 0 and is now 1"):
        train_pixel_model(tiny_config(steps=4, seed=1), tmp_path, resume=True)
    assert files(tmp_path) == before


def test_a_truncated_checkpoint_is_refused_and_an_older_one_goes_on_to_the_same_weights(tmp_path, tiny_config):
    config = tiny_config(augmentation=Augmentation(shift=0.1, background=-1.0))
    train_pixel_model(config, tmp_path / "whole")
    run = tmp_path / "run"
    train_pixel_model(config, run)
    state = run / "training/checkpoints/step-000008/state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    before = files(run)
    with pytest.raises(CorruptFile, match="resume from it with --resume-step 4"):
        train_pixel_model(config, run, resume=True)
    assert files(run) == before
    train_pixel_model(config, run, resume_step=4)
    expected, resumed = weights(tmp_path / "whole"), weights(run)
    assert all(expected[name].equal(resumed[name]) for name in expected)


def test_a_run_with_a_constant_rate_can_be_made_longer(tmp_path, tiny_config):
    train_pixel_model(tiny_config(decay="constant", steps=4), tmp_path / "run")
    train_pixel_model(tiny_config(decay="constant", steps=8), tmp_path / "run", resume=True)
    train_pixel_model(tiny_config(decay="constant", steps=8), tmp_path / "whole")
    longer, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(longer[name].equal(whole[name]) for name in whole)
    assert [record.step for record in read_records(RunFolder(tmp_path / "run").log)] == list(range(1, 9))


def test_a_start_of_another_architecture_is_refused(tmp_path, tiny_config):
    train_pixel_model(tiny_config(steps=2), tmp_path / "start")
    other = replace(tiny_config().unet, levels=(Level(channels=8), Level(channels=24)))
    with pytest.raises(ConfigError, match="another architecture"):
        train_pixel_model(tiny_config(unet=other, start_from=str(tmp_path / "start")), tmp_path / "run")
