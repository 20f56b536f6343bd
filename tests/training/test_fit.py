"""Training any module: killed runs resume exactly, other recipes and diverged losses are refused, records are means."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.training.adapter_runs import stop_at
from tests.training.reference_adamw import AdamW
from undertow import processor
from undertow.errors import CheckpointError, UndertowError
from undertow.training import meter
from undertow.training.fit import FitSettings, Progress, fit
from undertow.training.log import read_records
from undertow.training.precision import precision_notes
from undertow.training.run_lock import HOLDER, require_no_training
from undertow.training.training_state import load_state, saved_steps

WAIT_S = 120
SETTINGS = FitSettings(
    steps=9, batch_size=8, learning_rate=1e-2, warmup_steps=2, log_every=1, checkpoint_every=3, precision="float32"
)
RECIPE = {"width": 16}
FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}
"""Sums in another order, and square roots of small numbers."""


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.SiLU(), nn.Linear(16, 1))


def same(step: int) -> int:
    """A dataset whose batches are their steps."""
    return step


def loss_of(network):
    def loss_at(step):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (network(x).float() - x.sum(1, keepdim=True)).square().mean()

    return loss_at


def trained(folder, settings=SETTINGS, recipe=RECIPE, **watching):
    network = small_network()
    return fit(network, same, loss_of(network), settings, folder, recipe=recipe, **watching)


class Pulled(nn.Module):
    """Two parameters, one of which decays; `loss_at(step)` pulls at each with a known force."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def loss_at(self, step: int) -> torch.Tensor:
        pulls = [(force * tensor).sum() for force, tensor in zip(forces(step), self.parameters(), strict=True)]
        return torch.stack(pulls).sum()


def forces(step: int) -> list[torch.Tensor]:
    """The gradients of the step; those of every third one are small enough to stay as they are."""
    generator = torch.Generator().manual_seed(step)
    size = 0.1 if step % 3 == 0 else 2.0
    return [size * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((1, 3), (2,))]


def test_a_run_is_adamw_on_clipped_gradients_written_out(tmp_path):
    """Clipping, both betas, decay of matrices alone, the rate of each step, the average: none may be left out."""
    settings = replace(
        SETTINGS, steps=10, warmup_steps=3, learning_rate=0.1, weight_decay=0.4, clip_norm=0.7, betas=(0.8, 0.93),
        ema_decay=0.35,
    )  # fmt: skip
    rates = [0.1 / 3, 0.2 / 3, *[0.1] * 6, 0.05, 0.0]  # up in three steps, down in the last two
    module = Pulled()
    average = fit(module, same, module.loss_at, settings, tmp_path, recipe=RECIPE)
    expected = AdamW(list(Pulled().parameters()), betas=(0.8, 0.93), weight_decay=0.4, clip_norm=0.7)
    for step, rate in enumerate(rates, start=1):
        expected.step(forces(step), rate=rate, ema_decay=0.35)
    assert min(expected.norms) < settings.clip_norm < max(expected.norms)
    for network, wanted in ((module, expected.parameters), (average, expected.average)):
        for found, tensor in zip(network.parameters(), wanted, strict=True):
            torch.testing.assert_close(found, tensor, **FLOAT64)
    records = read_records(tmp_path / "log.jsonl")
    assert [record.learning_rate for record in records] == pytest.approx(rates, rel=1e-5)
    assert [record.gradient_norm for record in records] == pytest.approx(expected.norms, rel=1e-5), "before clipping"


def dropped(folder, seed: int) -> list[list[float]]:
    """The masks of every step, by a network that comes in evaluation mode."""
    network, seen = nn.Sequential(nn.Linear(1, 64), nn.Dropout(0.5)).eval(), []

    def loss_at(step: int) -> torch.Tensor:
        shown = network[1](torch.ones(64))
        seen.append(shown.tolist())
        return (network[0](torch.ones(1, 1)) * shown).sum()

    average = fit(network, same, loss_at, replace(SETTINGS, seed=seed, steps=3), folder, recipe=RECIPE)
    assert not average.training
    return seen


def test_dropout_is_on_and_its_masks_follow_from_the_seed_and_the_step(tmp_path):
    torch.manual_seed(1)
    first = dropped(tmp_path / "first", 0)
    torch.manual_seed(2)  # the state of torch's own generator does not matter
    again, other = dropped(tmp_path / "again", 0), dropped(tmp_path / "other", 1)
    assert first == again
    assert all(0 < mask.count(0.0) < 64 for mask in first)
    assert len({tuple(mask) for mask in (*first, *other)}) == 6


CHILD = """
import sys, time
from pathlib import Path
from tests.training.test_fit import trained

def hang_at_five(record):
    if record.step == 5:
        print("at step five", flush=True)
        time.sleep(3600)

trained(Path(sys.argv[1]), on_record=hang_at_five)
"""


@pytest.mark.timeout(2 * WAIT_S)
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole").state_dict()
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout.readline() == "at step five\n"
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait(WAIT_S) == -signal.SIGKILL
    assert saved_steps(tmp_path / "run" / "checkpoints") == [3]  # steps 4 and 5 are lost and done again
    resumed = trained(tmp_path / "run").state_dict()
    assert whole.keys() == resumed.keys()
    assert all(whole[name].equal(resumed[name]) for name in whole)
    states = [load_state(tmp_path / name / "checkpoints").tensors for name in ("whole", "run")]
    assert all(states[0]["network"][name].equal(states[1]["network"][name]) for name in whole)
    assert [record.step for record in read_records(tmp_path / "run" / "log.jsonl")] == list(range(1, 10))


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = trained(tmp_path).state_dict()
    records: list[object] = []
    again = trained(tmp_path, on_record=records.append).state_dict()
    assert records == []
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.parametrize("has", [True, False])
def test_bf16_computes_in_bf16_where_the_processor_has_it_and_keeps_weights_in_float32(has, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "has_bfloat16", lambda: has)
    exact = trained(tmp_path / "exact").state_dict()
    rounded = trained(tmp_path / "rounded", replace(SETTINGS, precision="bf16")).state_dict()
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}
    assert all(exact[name].equal(rounded[name]) for name in exact) is not has
    assert len(precision_notes("bf16", "cpu")) == (not has)
    assert not precision_notes("float32", "cpu")


@pytest.mark.parametrize(
    ("settings", "recipe", "named"),
    [
        (SETTINGS, {"width": 32}, "width was 16 and is now 32"),
        (SETTINGS, {**RECIPE, "depth": 1}, "depth was None and is now 1"),
        (replace(SETTINGS, learning_rate=1e-3), RECIPE, "learning_rate was 0.01"),
        (replace(SETTINGS, steps=8), RECIPE, "steps was 9 and is now 8"),
        (replace(SETTINGS, seed=1), RECIPE, "seed was 0"),
    ],
)
def test_a_run_of_another_recipe_is_refused(tmp_path, settings, recipe, named):
    trained(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        trained(tmp_path, settings, recipe)


def test_a_run_may_grow_while_the_learning_rate_is_constant(tmp_path):
    constant = replace(SETTINGS, decay="constant")
    trained(tmp_path / "grown", constant)
    grown = trained(tmp_path / "grown", replace(constant, steps=12, log_every=4, checkpoint_every=6)).state_dict()
    whole = trained(tmp_path / "whole", replace(constant, steps=12)).state_dict()
    assert all(grown[name].equal(whole[name]) for name in grown)


def test_a_trapezoid_may_grow_until_its_fall_begins(tmp_path):
    settings = replace(SETTINGS, steps=10, checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "grown", settings, on_record=stop_at(9))
    assert saved_steps(tmp_path / "grown" / "checkpoints") == [4, 8]  # the last step at the full rate
    grown = trained(tmp_path / "grown", replace(settings, steps=20)).state_dict()
    whole = trained(tmp_path / "whole", replace(settings, steps=20)).state_dict()
    assert all(grown[name].equal(whole[name]) for name in grown)


def test_a_finished_run_goes_on_with_a_learning_rate_schedule_of_its_own(tmp_path):
    """Steps 10 to 14 are five of a run whose rate rises over two and falls over the last one, a fifth of five."""
    trained(tmp_path)
    longer, begun = replace(SETTINGS, steps=14), []
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, longer, on_resume=begun.append, stop=lambda: True)
    average = trained(tmp_path, longer, on_resume=begun.append)  # interrupted, it goes on with the same schedule
    assert begun == [9, 10]
    records = read_records(tmp_path / "log.jsonl")
    assert [record.step for record in records] == list(range(1, 15))
    assert [record.learning_rate for record in records[9:]] == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.0])
    state = load_state(tmp_path / "checkpoints")
    assert (state.step, state.config["schedule_start"]) == (14, 9)
    averaged = average.state_dict()
    assert all(averaged[name].equal(tensor) for name, tensor in state.tensors["average"].items())
    trained(tmp_path, replace(SETTINGS, steps=20))
    assert load_state(tmp_path / "checkpoints").config["schedule_start"] == 14


def test_a_run_whose_learning_rate_falls_is_finished_first(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=lambda: len(read_records(tmp_path / "log.jsonl")) == 7)
    with pytest.raises(CheckpointError, match="steps was 9 and is now 20; finish it with 9 steps, and then"):
        trained(tmp_path, replace(SETTINGS, steps=20))


def test_a_run_that_is_asked_to_stop_keeps_its_last_step_and_goes_on_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", stop=lambda: len(read_records(tmp_path / "run" / "log.jsonl")) == 3)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [3, 4]
    begun: list[int] = []
    resumed = trained(tmp_path / "run", on_resume=begun.append, stop=lambda: False).state_dict()
    assert begun == [4]
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert [record.step for record in read_records(tmp_path / "run" / "log.jsonl")] == list(range(1, 10))


def test_warm_up_steps_that_are_over_may_be_other_ones(tmp_path):
    """The command line takes a tenth of the steps, at most 100, so that they grow with the steps."""
    trained(tmp_path, replace(SETTINGS, decay="constant"))
    grown = replace(SETTINGS, decay="constant", steps=12, warmup_steps=5)
    assert saved_steps(tmp_path / "checkpoints") == [6, 9]
    trained(tmp_path, grown)
    with pytest.raises(CheckpointError, match="warmup_steps was 5 and is now 13"):
        trained(tmp_path, replace(grown, steps=12, warmup_steps=13))


def test_one_training_at_a_time_in_a_folder(tmp_path):
    """The second is refused by the name of the first, which goes on undisturbed; what a killed one left is no lock."""
    (tmp_path / HOLDER).write_text("process 1 on nowhere, killed long ago")
    said: list[str] = []

    def train_beside(progress: Progress) -> None:
        if progress.step == 2:
            with pytest.raises(CheckpointError, match=f"a training runs in it .process {os.getpid()} on ") as refused:
                trained(tmp_path)
            said.append(str(refused.value))
            with pytest.raises(CheckpointError, match="a training runs in it"):
                require_no_training(tmp_path)

    trained(tmp_path, on_step=train_beside)
    assert len(said) == 1
    assert not (tmp_path / HOLDER).exists()
    require_no_training(tmp_path)
    assert saved_steps(tmp_path / "checkpoints") == [6, 9]


def test_time_counts_over_all_sessions_and_speed_without_what_is_done_at_checkpoints(tmp_path, monkeypatch):
    """By a clock on which a step takes two seconds, and what is done at a checkpoint a hundred."""
    clock = [1000.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    module, records = Pulled(), []

    def loss_at(step: int) -> torch.Tensor:
        clock[0] += 2
        return module.loss_at(step)

    def wait(_progress: Progress) -> None:
        clock[0] += 100

    def run(steps: int) -> None:
        settings = replace(SETTINGS, decay="constant", steps=steps, log_every=2)
        fit(module, same, loss_at, settings, tmp_path, recipe={}, on_record=records.append, on_checkpoint=wait)

    run(3)
    clock[0] += 5000  # between the sessions
    run(7)
    assert [record.step for record in records] == [2, 3, 4, 6, 7]
    assert {record.images_per_second for record in records} == {4.0}, "eight rows in two seconds"
    # A checkpoint keeps the time until it is written; the second session waits at step 6.
    assert [record.seconds for record in records] == [4, 6, 8, 12, 114]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    network = small_network()
    good = loss_of(network)
    with pytest.raises(UndertowError, match=r"at step 5 the loss is nan and .*: training has diverged"):
        fit(
            network,
            same,
            lambda step: good(step) * (float("nan") if step == 5 else 1.0),
            SETTINGS,
            tmp_path,
            recipe=RECIPE,
        )
    assert saved_steps(tmp_path / "checkpoints") == [3], "no checkpoint of broken weights"


def test_records_are_means_since_the_one_before(tmp_path):
    trained(tmp_path / "each")
    trained(tmp_path / "few", replace(SETTINGS, log_every=4, checkpoint_every=100))
    each, few = (read_records(tmp_path / name / "log.jsonl") for name in ("each", "few"))
    assert [record.step for record in few] == [4, 8, 9]
    assert few[0].loss == pytest.approx(sum(record.loss for record in each[:4]) / 4, rel=1e-4)
    assert few[2].loss == pytest.approx(each[8].loss, rel=1e-4)
    assert few[0].learning_rate == each[3].learning_rate


def test_a_checkpoint_shows_the_average_and_two_are_kept(tmp_path):
    seen: list[tuple[int, int]] = []
    average = trained(tmp_path, on_checkpoint=lambda progress: seen.append((progress.step, progress.steps)))
    assert seen == [(3, 9), (6, 9), (9, 9)]
    assert saved_steps(tmp_path / "checkpoints") == [6, 9]
    state = load_state(tmp_path / "checkpoints").tensors
    averaged = average.state_dict()
    assert all(averaged[name].equal(tensor) for name, tensor in state["average"].items())
    assert not all(tensor.equal(state["network"][name]) for name, tensor in state["average"].items())
    assert (
        json.loads((tmp_path / "checkpoints" / "step-000009" / "meta.json").read_text())["config"]["recipe"] == RECIPE
    )
