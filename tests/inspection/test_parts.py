"""Probes and records beside the U-Net: ControlNets, text encoders, and the autoencoder."""

from dataclasses import replace

import pytest
import torch

from tests.adapters.beside import control_file, picture
from undertow import Adapter, GenerationRequest, InvalidInput
from undertow.engine.engine import Engine
from undertow.inspection.probe import ModuleProbe

REQUEST = GenerationRequest(prompt="red apple", steps=2, seed=3)
OTHER = GenerationRequest(prompt="green tree", steps=2, seed=4)


@pytest.fixture
def probed(service):
    yield service
    service.disable_layer_hooks()
    service.engine.probes.clear()


@pytest.fixture(scope="module")
def controlled(service, tmp_path_factory):
    file = control_file(tmp_path_factory.mktemp("control"), service.unet, seed=5)
    return replace(REQUEST, adapters=(Adapter(file, image=picture(3), name="edges"),))


def test_text_encoders_are_recorded_and_no_bit_changes(probed):
    plain = probed.run(REQUEST)
    recorder = probed.log_layer_output("text_encoder.clip.encoder.layers.*.mlp.fc1")
    assert torch.equal(probed.run(REQUEST).latents, plain.latents), "its encoding was kept, and is computed once more"
    layers = {one.module for one in recorder.records}
    assert layers == {f"text_encoder.clip.encoder.layers.{index}.mlp.fc1" for index in range(len(layers))}
    assert len(recorder.records) == 2 * len(layers), "of the prompt and of the empty negative one"
    width = probed.model.text.encoders[0].clip.encoder.layers[0].mlp.fc1.out_features
    assert recorder.records[0].shape == (1, 77, width)
    assert recorder.records[0].seconds > 0


def test_what_replaces_a_text_encoders_numbers_is_kept_for_no_other_request(probed):
    plain = probed.run(REQUEST).latents
    probe = ModuleProbe(patterns=("text_encoder.clip.encoder.layers.0",), probe=lambda site, x: torch.zeros_like(x))
    probed.engine.probes.append(probe)
    assert not torch.equal(probed.run(REQUEST).latents, plain)
    probed.engine.probes.clear()
    assert torch.equal(probed.run(REQUEST).latents, plain)


def test_the_autoencoder_is_recorded_as_debug_vae_counts_it(probed):
    recorder = probed.enable_layer_hooks("vae.decoder.*")
    result = probed.run(replace(REQUEST, count=2), debug="vae")
    outputs = [one for one in recorder.records if one.module == "vae.decoder.conv_out"]
    assert [one.origin.picture for one in outputs] == [0, 1]
    assert outputs[0].shape == (1, 3, 32, 32)
    line = next(line for line in result.report.debug if line.startswith("[vae] decoder.conv_out"))
    assert f"0 NaN, 0 Inf out of {outputs[0].shape[1] * 32 * 32} values" in line
    assert "vae.decoder.mid_block.attentions.0" in {one.module for one in recorder.records}
    assert not any(one.module == "" or one.module.startswith("up_blocks") for one in recorder.records)


def test_an_answer_for_the_autoencoder_is_refused(probed):
    probed.engine.probes.append(ModuleProbe(patterns=("vae.decoder.conv_in",), probe=lambda site, x: x))
    with pytest.raises(InvalidInput, match=r"vae\.decoder\.conv_in is a tensor, expected None"):
        probed.run(REQUEST)


def test_controlnets_are_recorded_for_the_rows_in_which_they_act(probed, controlled):
    plain = probed.run(controlled).latents
    recorder = probed.enable_layer_hooks("controlnet.*.controlnet_mid_block")
    results = probed.generate_many([controlled, OTHER])
    assert torch.equal(results[0].latents, plain)
    outputs = [one for one in recorder.records if one.side == "output"]
    assert {one.module for one in outputs} == {"controlnet.edges.controlnet_mid_block"}
    assert sorted((one.origin.step, one.origin.branch) for one in outputs) == [
        (step, branch) for step in range(2) for branch in ("cond", "uncond")
    ]


def test_a_controlnet_whose_residuals_are_replaced_by_nothing_does_nothing(probed, controlled):
    plain = probed.run(REQUEST).latents
    probe = ModuleProbe(patterns=("controlnet.edges.controlnet_*",), probe=lambda site, x: torch.zeros_like(x))
    probed.engine.probes.append(probe)
    assert torch.equal(probed.run(controlled).latents, plain)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("vae.decodr.*", "vae.decoder"),
        ("text_encoder.clip.encodr", "text_encoder.clip.encoder"),
        ("text_encoder_2.clip", "it has no text_encoder_2"),
    ],
)
def test_patterns_that_match_nothing_are_refused_at_once_with_names_that_are_near(probed, pattern, near):
    with pytest.raises(InvalidInput, match=near):
        probed.enable_layer_hooks(pattern)


def test_names_of_a_controlnet_are_looked_for_when_it_acts(probed, controlled):
    probed.enable_layer_hooks("controlnet.edges.controlnet_mid_blok")
    probed.run(REQUEST)
    with pytest.raises(InvalidInput, match=r"controlnet\.edges\.controlnet_mid_block"):
        probed.run(controlled)


def test_forwards_that_no_pattern_names_keep_their_graphs(service):
    class Graphs:
        capabilities = replace(service.runner.capabilities, observable=False, fixed_shapes=True)
        runs = 0

        def run(self, network, *inputs):
            Graphs.runs += 1
            return network(*inputs)

    engine = Engine(service.model, adapters=service.adapters, runner=Graphs())
    engine.probes.append(ModuleProbe(patterns=("vae.decoder.*", "controlnet.*"), probe=lambda site, x: None))
    engine.submit(REQUEST).result()
    assert Graphs.runs == 2
