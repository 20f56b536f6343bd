"""The doors as users meet them: without the tests' type checks, which would refuse wrong ranks and types first."""

import pytest
import torch

import undertow
from tests.golden.minis import CONTEXT, M15, MPIX, MUNC, TIMESTEPS, conditioning_for, latents_for, pair
from undertow import Conditioning, InvalidInput
from undertow.checkpoints.write.unet_folder import save_unet

NAMES = {"M15": M15, "MPIX": MPIX}


@pytest.mark.parametrize(
    ("name", "call", "argument"),
    [
        ("M15", {"latents": torch.zeros(4, 16, 16)}, "latents"),
        ("M15", {"timesteps": torch.tensor(3.0)}, "timesteps"),
        ("M15", {"context": torch.zeros(7, CONTEXT)}, "context"),
        ("M15", {"context_mask": torch.ones(2, 7)}, "context_mask"),
        ("M15", {"pooled": torch.zeros(16)}, "pooled or time_ids"),
        ("M15", {"guidance": torch.tensor(7.5)}, "guidance"),
        ("MPIX", {"class_labels": torch.zeros(2)}, "class_labels"),
        ("MPIX", {"class_labels": torch.zeros(2, 1, dtype=torch.long)}, "class_labels"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_wrong_ranks_and_types_are_refused_by_argument(name, call, argument):
    unet, given = pair(name)[0], vars(conditioning_for(NAMES[name]))
    latents = call.pop("latents", latents_for(NAMES[name]))
    timesteps = call.pop("timesteps", TIMESTEPS)
    with pytest.raises(InvalidInput) as caught:
        unet(latents, timesteps, Conditioning(**{**given, **call}))
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument} is ")


@pytest.mark.parametrize("argument", [{"backend": "tensorrt"}, {"dtype": "float16"}, {"dtype": torch.int8}], ids=str)
def test_load_unet_refuses_what_it_does_not_know(argument, tmp_path):
    save_unet(pair("MUNC")[0], tmp_path)
    with pytest.raises(InvalidInput) as caught:
        undertow.load_unet(tmp_path, **argument)
    assert caught.value.argument == next(iter(argument))


def test_a_good_call_passes_these_doors():
    assert pair("MUNC")[0](latents_for(MUNC), TIMESTEPS).shape == (2, 1, 16, 16)
