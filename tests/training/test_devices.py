"""Two processes on this machine, as `accelerate launch` starts them, against one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.errors import ConfigError
from undertow.training.config import config_to_json
from undertow.training.devices import Devices
from undertow.training.pixel_models import new_network, train_pixel_model

WAIT_S = 120
SUMMED_IN_ANOTHER_ORDER = 0.02
"""Of the distance that training moves the weights. Two half batches' gradients are averaged, and AdamW divides by their
size, which enlarges the rounding of small ones. Gradients that were not shared would give a distance of order one."""

CHILD = """
import json, sys
from undertow.training.config import config_from_json
from undertow.training.pixel_models import train_pixel_model
train_pixel_model(config_from_json(json.loads(sys.argv[1])), sys.argv[2], cpu=True)
"""


def flat(unet):
    return torch.cat([parameter.detach().flatten() for parameter in unet.parameters()])


@pytest.mark.slow
@pytest.mark.timeout(WAIT_S)
def test_two_processes_train_what_one_would(tmp_path, tiny_config):
    # Without dropout, whose masks each process draws for its own rows.
    unet = tiny_config().unet
    config = tiny_config(unet=replace(unet, dropout=0.0), steps=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", CHILD, json.dumps(config_to_json(config)), str(tmp_path / "two")]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    children = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    try:
        assert [child.wait(WAIT_S) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    train_pixel_model(config, tmp_path / "one")
    one, two = (flat(load_unet_folder(tmp_path / name / "unet")) for name in ("one", "two"))
    start = flat(new_network(config))
    assert (two - one).norm() / (one - start).norm() < SUMMED_IN_ANOTHER_ORDER
    log = (tmp_path / "two" / "training" / "log.jsonl").read_text().splitlines()
    assert len(log) == 4  # only one process writes


def test_one_device_is_found_without_a_launcher():
    devices = Devices.find(batch_size=3, cpu=True)
    assert (devices.count, devices.rank, devices.is_main, devices.device.type) == (1, 0, True, "cpu")


def test_a_batch_that_cannot_be_split_is_refused(monkeypatch):
    monkeypatch.setattr(Devices, "count", property(lambda self: 2))
    with pytest.raises(ConfigError, match="multiple of 2"):
        Devices.find(batch_size=3, cpu=True)
