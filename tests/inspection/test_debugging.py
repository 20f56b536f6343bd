"""Records of layers, by the names of source document 000, and for one request among others."""

import json
import threading

import pytest
import torch

from undertow import GenerationRequest, InvalidInput
from undertow.engine.rows import Origin
from undertow.inspection.records import LayerStatistics, TensorRecord, numbers_of

REQUEST = GenerationRequest(prompt="red apple", steps=2, seed=3)
ROWS = 4
"""Two steps of two branches."""


@pytest.fixture
def debugged(service):
    yield service
    service.disable_layer_hooks()
    assert not service.engine.probes


def test_numbers_are_counted_and_measured():
    nan, inf = float("nan"), float("inf")
    found = numbers_of(torch.tensor([1.0, 3.0, nan, inf, -inf]))
    assert (found.low, found.high, found.mean, found.std, found.nan, found.inf) == (1.0, 3.0, 2.0, 1.0, 1, 2)
    assert numbers_of(torch.tensor([nan])).mean is None
    ranges = numbers_of(torch.tensor([1.0, 3.0]), moments=False)
    assert (ranges.low, ranges.high, ranges.mean) == (1.0, 3.0, None)


def test_statistics_of_many_records_are_those_of_all_their_numbers():
    every = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)) * 4 + 1
    sums = LayerStatistics(module="m", kind="Linear", side="output")
    for step, values in enumerate(every):
        found = numbers_of(values)
        sums.add(
            TensorRecord(
                module="m", kind="Linear", side="output", origin=Origin(step=step), call=0, shape=(2, 5),
                dtype="float16", low=found.low, high=found.high, mean=found.mean, std=found.std,
            )
        )  # fmt: skip
    assert sums.mean == pytest.approx(float(every.mean()), rel=1e-5)
    assert sums.std == pytest.approx(float(every.std(correction=0)), rel=1e-5)
    assert sums.largest_at == int(every.abs().amax(dim=(1, 2)).argmax())
    assert 2**sums.headroom == pytest.approx(65504 / float(every.abs().max()))


@pytest.mark.parametrize("every", [0, -2])
def test_a_step_in_none_is_refused_at_once(debugged, every):
    with pytest.raises(InvalidInput, match="expected 1 or more"):
        debugged.enable_layer_hooks("mid_block.*", every=every)
    assert not debugged.engine.probes


def test_hooks_record_every_row_and_leave_bits_and_layers_alone(debugged):
    plain = debugged.run(REQUEST).latents
    debugged.enable_layer_hooks("mid_block.resnets.*")
    debugged.log_layer_input("conv_in")
    debugged.log_layer_output("conv_out")
    debugged.log_final_prediction()
    assert torch.equal(debugged.run(REQUEST).latents, plain)
    info = debugged.get_debug_info()
    sums = info.layer_statistics
    assert ("conv_in", "input") in sums
    assert ("conv_in", "output") not in sums
    assert sums["", "output"].records == ROWS
    assert sums["", "output"].high == sums["conv_out", "output"].high, "the last layer gives the prediction"
    assert sums["mid_block.resnets.0", "output"].seconds > 0
    steps = {(one.origin.step, one.origin.branch) for one in info.records}
    assert steps == {(step, branch) for step in range(2) for branch in ("cond", "uncond")}
    assert "mid_block.resnets.0 output: 4 of shape [1, 64, 8, 8] float32, NaN 0, Inf 0" in str(info)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in debugged.unet.modules())


def test_a_pattern_that_matches_nothing_is_refused_at_once(debugged):
    with pytest.raises(InvalidInput, match="mid_block"):
        debugged.enable_layer_hooks("mid_blok")
    with pytest.raises(InvalidInput, match="patterns is empty"):
        debugged.enable_layer_hooks([])
    assert not debugged.engine.probes


def test_debug_true_tells_everything_and_changes_no_bit(debugged):
    plain = debugged.run(REQUEST)
    result = debugged.generate("red apple", steps=2, seed=3, debug=True)
    assert torch.equal(result.latents, plain.latents)
    assert not plain.report.debug
    lines = result.report.debug
    for start in (
        "[sampler] step 1: sigma",
        "[vae] decoder.up_blocks.0",
        "[layer] conv_in output",
        "vae_output: shape",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.startswith("[vae]") and "0 NaN, 0 Inf out of" in line for line in lines)
    assert debugged.get_debug_info().layer_statistics["conv_out", "output"].records == ROWS


def test_only_the_rows_of_the_request_that_asks_are_recorded(debugged):
    other = threading.Thread(target=lambda: debugged.run(GenerationRequest(prompt="green tree", steps=2, seed=9)))
    other.start()
    debugged.run(REQUEST, debug="layers")
    other.join()
    assert debugged.get_debug_info().layer_statistics["conv_out", "output"].records == ROWS


def test_records_are_json_that_anybody_reads(debugged):
    recorder = debugged.log_layer_output("conv_out")
    debugged.run(REQUEST)
    record = json.loads(recorder.records[0].to_json())
    assert record["module"] == "conv_out"
    assert record["origin"]["branch"] in ("cond", "uncond")
    assert record["shape"] == [1, 4, 16, 16]
