"""A run that is killed with SIGKILL, as by an operator or a machine that runs out of memory, and resumed."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from undertow.training.augmentation import Augmentation
from undertow.training.config import config_to_json
from undertow.training.pixel_models import train_pixel_model
from undertow.training.training_state import load_state, saved_steps

WAIT_S = 120
"""For a child to import torch and take six tiny steps on a busy machine."""

CHILD = """
import json, sys, time
from undertow.training.config import config_from_json
from undertow.training.pixel_models import train_pixel_model

def hang_at_six(record):
    if record.step == 6:
        print("at step six", flush=True)
        time.sleep(3600)

config = config_from_json(json.loads(sys.argv[1]))
train_pixel_model(config, sys.argv[2], on_record=hang_at_six)
"""


def killed_in_the_middle(config_json, out):
    command = [sys.executable, "-c", CHILD, config_json, str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout.readline() == "at step six\n"
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait(WAIT_S) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(WAIT_S)
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_run_killed_and_resumed_ends_with_the_same_weights(tmp_path, tiny_config):
    # Everything that draws random numbers is on: order, distortions, labels, noise, timesteps, dropout.
    config = tiny_config(augmentation=Augmentation(shift=0.1, rotation=10, background=-1.0), label_dropout=0.3)
    train_pixel_model(config, tmp_path / "whole")

    run = tmp_path / "run"
    killed_in_the_middle(json.dumps(config_to_json(config)), run)
    checkpoints = run / "training" / "checkpoints"
    assert saved_steps(checkpoints) == [4]  # steps 5 and 6 are lost and done again
    train_pixel_model(config, run, resume=True)

    assert saved_steps(checkpoints) == [4, 8]
    whole = load_state(tmp_path / "whole" / "training" / "checkpoints").tensors
    resumed = load_state(checkpoints).tensors
    for part in ("network", "average"):
        assert whole[part].keys() == resumed[part].keys()
        assert all(whole[part][name].equal(resumed[part][name]) for name in whole[part])
    for index, moments in whole["optimizer"]["state"].items():
        assert all(value.equal(resumed["optimizer"]["state"][index][name]) for name, value in moments.items())
    model = "unet/diffusion_pytorch_model.safetensors"
    assert (run / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
