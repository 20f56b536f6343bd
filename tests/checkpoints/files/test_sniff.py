"""What a file is, from its first bytes."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from undertow.checkpoints.files.sniff import sniff


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_header_whose_length_looks_like_a_pickle_s_start(protocol, tmp_path):
    """The length is little-endian: a header of 0x0480 bytes makes the file begin with 80 04."""
    path = tmp_path / "lora.safetensors"
    wanted = protocol * 256 + 0x80
    for padding in range(2000):
        save_file({"a": torch.ones(2)}, path, metadata={"note": "x" * padding})
        if int.from_bytes(path.read_bytes()[:8], "little") == wanted:
            break
    assert path.read_bytes()[:2] == bytes([0x80, protocol])
    assert sniff(path) == "safetensors"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_stay_pickles(protocol, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": {"a": [1.0] * 100}}, protocol))
    assert sniff(path) == "pickle"
    path.write_bytes(bytes([0x80, protocol]) + b"\xff" * 6 + b"{" + b"." * 100)
    assert sniff(path) == "pickle", "no header is that long"
