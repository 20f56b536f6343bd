"""The staged forward, gradient checkpointing and the injected kernel."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.minis import M15, MINIS, MXL, TIMESTEPS, build, conditioning_for, latents_for, pair
from undertow.attention.chosen import auto_attention, auto_attention_float32
from undertow.attention.math import math_attention
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Conv2d, Linear, WeightRows
from undertow.nn.attention import AttentionProjections, SpatialSelfAttention
from undertow.nn.embeddings import guidance_sinusoid, sinusoid
from undertow.nn.perturbation import PerturbedRows
from undertow.nn.resnet import ResBlock
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

SIZE = (8, 8)
"""Small, with a bottleneck of one or four cells."""

TOLERANCE = 1e-5
"""float32, the same operations in another memory layout or order."""


@pytest.mark.parametrize("name", ["M15", "MXL", "MPIX"])
@torch.no_grad()
def test_the_stages_composed_are_the_forward(name):
    unet, mini = pair(name)[0], MINIS[name]
    latents, given, ports = latents_for(mini, *SIZE), conditioning_for(mini), Ports()
    inputs = unet.stage_inputs(TIMESTEPS, given, ports)
    hidden, skips = unet.encode(latents, inputs)
    assert [tuple(skip.shape[1:]) for skip in skips] == mini.config.skip_shapes(*SIZE)
    kept = list(skips)
    output = unet.decode(unet.bridge(hidden, inputs), skips, inputs)
    assert torch.equal(output, unet(latents, TIMESTEPS, given))
    assert all(a is b for a, b in zip(skips, kept, strict=True)), "decoding leaves the caller's list whole"


@torch.no_grad()
def test_source_document_002_through_the_stages():
    """R107, R109, R118: 9 skips, 4x256x8x8 at the bottleneck, output of the input's size."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig.cifar10()).eval()
    given = Conditioning(class_labels=torch.tensor([0, 5, 3, 9]))
    inputs = unet.stage_inputs(torch.tensor([100, 500, 800, 300]), given, Ports())
    assert inputs.embedding.shape == (4, 256)
    hidden, skips = unet.encode(torch.randn(4, 3, 32, 32), inputs)
    assert len(skips) == 9
    assert hidden.shape == unet.bridge(hidden, inputs).shape == (4, 256, 8, 8)
    assert unet.decode(hidden, skips, inputs).shape == (4, 3, 32, 32)


def test_sd15_has_attention_where_trap_t1_says():
    """Down 0-2, middle, up 1-3; the first decoder level is ResNet only."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.sd15())
    assert [block.attentions is not None for block in unet.down_blocks] == [True, True, True, False]
    assert [block.attentions is not None for block in unet.up_blocks] == [False, True, True, True]
    assert unet.mid_block.attentions is not None


@torch.no_grad()
def test_residuals_of_zero_change_nothing():
    unet, latents, given = pair("M15")[0], latents_for(M15, *SIZE), conditioning_for(M15)
    skips = tuple(torch.zeros(2, *shape) for shape in M15.config.skip_shapes(*SIZE))
    ports = Ports(residuals=Residuals(skips=skips, middle=torch.zeros(2, 128, 1, 1)))
    assert torch.equal(unet(latents, TIMESTEPS, given, ports), unet(latents, TIMESTEPS, given))


@pytest.mark.parametrize("name", ["M15", "MXL", "MPIX"])
@torch.no_grad()
def test_channels_last_memory_gives_the_same_numbers(name):
    """The layout that `load_unet` uses; two rows of 12x12 cells take another route than of 8x8."""
    mini = MINIS[name]
    unet, given = build(mini).to(memory_format=torch.channels_last), conditioning_for(mini)
    for size in (SIZE, (12, 12)):
        reference = pair(name)[0](latents_for(mini, *size), TIMESTEPS, given)
        output = unet(latents_for(mini, *size), TIMESTEPS, given)
        assert (output - reference).abs().max() <= TOLERANCE * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("name", ["M15", "MPIX"])
def test_checkpointing_gives_the_same_gradients(name):
    """R51, R68. Only while training; the layers run once more in the backward pass."""
    mini = MINIS[name]
    calls, gradients = {}, {}
    for checkpointing in (False, True, ("mid_block",), ("down_blocks.0", "up_blocks.1")):
        unet = build(mini).train()
        unet.gradient_checkpointing = checkpointing
        count = []
        unet.mid_block.resnets[0].register_forward_hook(lambda *_, count=count: count.append(1))
        latents = latents_for(mini, *SIZE).requires_grad_()
        unet(latents, TIMESTEPS, conditioning_for(mini)).square().mean().backward()
        gradients[checkpointing] = [latents.grad, *(p.grad for p in unet.parameters())]
        calls[checkpointing] = len(count)
    assert calls == {False: 1, True: 2, ("mid_block",): 2, ("down_blocks.0", "up_blocks.1"): 1}
    for checkpointing in calls:
        for plain, recomputed in zip(gradients[False], gradients[checkpointing], strict=True):
            assert torch.equal(plain, recomputed)


@torch.no_grad()
def test_checkpointing_is_idle_outside_training():
    unet = build(MINIS["MUNC"])
    unet.gradient_checkpointing = True
    count = []
    unet.mid_block.resnets[0].register_forward_hook(lambda *_: count.append(1))
    unet(latents_for(MINIS["MUNC"]), TIMESTEPS)
    assert len(count) == 1


def test_dropout_is_in_the_res_blocks_and_idle_in_evaluation():
    config = UNetConfig(levels=MINIS["MUNC"].config.levels, norm_groups=8, dropout=0.5, in_channels=1, out_channels=1)
    torch.manual_seed(0)
    unet, latents = UNet(config), latents_for(MINIS["MUNC"])
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
    assert {block.dropout.p for block in blocks} == {0.5}
    assert not torch.equal(unet(latents, TIMESTEPS), unet(latents, TIMESTEPS))
    unet.eval()
    assert torch.equal(unet(latents, TIMESTEPS), unet(latents, TIMESTEPS))


@torch.no_grad()
def test_the_kernel_is_injected_everywhere():
    seen = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append(query.shape)
        return math_attention(query, key, value, mask)

    latents, given = latents_for(MXL, *SIZE), conditioning_for(MXL)
    output = build(MXL, attention=kernel)(latents, TIMESTEPS, given)
    assert len(seen) == 2 * len(MXL.config.cross_attentions())
    assert (output - pair("MXL")[0](latents, TIMESTEPS, given)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("name", "kernel"), [("M15", auto_attention), ("M21", auto_attention_float32)])
def test_the_config_decides_whether_scores_must_be_float32(name, kernel):
    kernels = {module.kernel for module in pair(name)[0].modules() if isinstance(module, AttentionProjections)}
    assert kernels == {kernel}


def test_the_weight_port_reaches_every_layer():
    """R39: an update in any Linear or convolution of the network would change the output: its gradient is not zero."""
    mini = MINIS["MXL"]
    unet, latents, given = build(mini), latents_for(mini, 8, 8), conditioning_for(mini)
    layers = {name: m for name, m in unet.named_modules() if isinstance(m, Linear | Conv2d)}
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        layer.allocate_slots(1, 2)
        layer.slots.down.normal_(generator=generator)
        layer.slots.up.requires_grad_()
    rows = WeightRows(slots=torch.tensor([[0], [0]]), gains=torch.tensor([[1.0], [0.0]]))
    output = unet(latents, TIMESTEPS, given, Ports(weights=rows))
    gradients = [layer.slots.up for layer in layers.values()]
    first = torch.autograd.grad(output[0].square().sum(), gradients, retain_graph=True)
    assert [name for name, gradient in zip(layers, first, strict=True) if not gradient.any()] == []
    second = torch.autograd.grad(output[1].square().sum(), gradients)
    assert not any(gradient.any() for gradient in second), "gain 0, and rows do not touch each other"


def test_type_and_device_are_the_weights():
    unet = build(MINIS["MUNC"]).to(torch.bfloat16)
    assert unet.dtype == torch.bfloat16
    assert unet.device == torch.device("cpu")


@torch.no_grad()
def test_the_output_is_normalized_and_activated_before_its_convolution():
    """With the config's groups and epsilon, which a wide epsilon shows."""
    config = replace(MINIS["MUNC"].config, norm_eps=0.5, norm_groups=4)
    unet, seen = build(replace(MINIS["MUNC"], config=config)), []
    unet.conv_norm_out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    output = unet(latents_for(MINIS["MUNC"], *SIZE), TIMESTEPS)
    groups = seen[0].double().unflatten(1, (4, -1)).flatten(2)
    normal = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 0.5).sqrt()
    norm, last = unet.conv_norm_out, unet.conv_out
    normal = normal.view_as(seen[0]) * norm.weight[:, None, None] + norm.bias[:, None, None]
    expected = F.conv2d(normal * normal.sigmoid(), last.weight.double(), last.bias.double(), padding=1)
    assert (output - expected).abs().max() <= TOLERANCE * float(expected.abs().max())
    for block in (module for module in unet.modules() if isinstance(module, ResBlock | SpatialSelfAttention)):
        for part in (module for module in block.modules() if isinstance(module, torch.nn.GroupNorm)):
            assert (part.eps, part.num_groups) == (0.5, 4)


@pytest.mark.parametrize("name", ["M15", "MXL", "MPIX", "MLCM"])
@torch.no_grad()
def test_the_embedding_is_the_sum_of_what_the_network_is_told(name):
    """Timestep, guidance, pooled text and sizes, class: each through its own layers, and one SiLU for all blocks."""
    unet, mini = pair(name)[0], MINIS[name]
    config, given = mini.config, conditioning_for(mini)
    angles = {"cos_first": config.cos_first, "frequency_shift": config.frequency_shift}
    time = sinusoid(TIMESTEPS, config.timestep_sinusoid_dim, **angles)
    guidance = None
    if given.guidance is not None:
        assert torch.equal(unet.embed(TIMESTEPS, replace(given, guidance=None)), unet.time_embedding(time))
        guidance = guidance_sinusoid(given.guidance, config.guidance_dim)
    expected = unet.time_embedding(time, guidance)
    if given.class_labels is not None:
        expected = expected + unet.class_embedding.weight[given.class_labels]
    if given.time_ids is not None:
        sizes = [sinusoid(ids, config.added.sinusoid_dim, **angles).flatten() for ids in given.time_ids]
        expected = expected + unet.add_embedding(torch.cat((given.pooled, torch.stack(sizes)), dim=-1))
    assert (unet.embed(TIMESTEPS, given) - expected).abs().max() <= TOLERANCE * float(expected.abs().max())
    inputs = unet.stage_inputs(TIMESTEPS, given, Ports())
    assert (inputs.embedding - expected * expected.sigmoid()).abs().max() <= TOLERANCE


def test_stages_receive_what_conditioning_and_ports_hold():
    unet, given = build(M15), replace(conditioning_for(M15), context_mask=torch.ones(2, 7, dtype=torch.bool))
    given = replace(given, regions=torch.ones(2, 7, 4, 4, dtype=torch.bool))
    rows = WeightRows(slots=torch.zeros(2, 1, dtype=torch.long), gains=torch.ones(2, 1))
    ports = Ports(weights=rows, image={}, self_attention={}, free_u={})
    inputs = unet.stage_inputs(TIMESTEPS, given, ports)
    assert inputs.attention.context is given.context
    assert inputs.attention.mask.shape == (2, 1, 1, 7)
    assert inputs.regions is given.regions
    assert inputs.weights is inputs.attention.weights is rows
    assert inputs.attention.image is ports.image
    assert inputs.attention.perturbed is ports.self_attention
    assert inputs.free_u is ports.free_u
    assert unet.stage_inputs(TIMESTEPS, conditioning_for(M15), ports).attention.mask is None
    for training, wanted, used in ((True, True, True), (True, False, False), (False, True, False)):
        unet.train(training).gradient_checkpointing = wanted
        assert unet.stage_inputs(TIMESTEPS, given, ports).checkpointing is used


def test_every_attention_knows_its_name():
    unet = pair("MSSD")[0]
    attentions = {name: module for name, module in unet.named_modules() if isinstance(module, AttentionProjections)}
    assert {name: module.site for name, module in attentions.items()} == {name: name for name in attentions}


@torch.no_grad()
def test_observing_goes_with_every_port_and_changes_no_bit():
    """Residuals on skips, on the running activations and after the middle, and what guidance perturbs."""
    unet, latents, given = pair("MPIX")[0], latents_for(MINIS["MPIX"], *SIZE), conditioning_for(MINIS["MPIX"])
    generator = torch.Generator().manual_seed(3)
    skips = tuple(torch.randn(2, *s, generator=generator) for s in MINIS["MPIX"].config.skip_shapes(*SIZE))
    blurred = PerturbedRows(blur=torch.ones(2))
    sites = ("mid_block.attentions.0", "up_blocks.0.attentions.1")
    for ports in (
        Ports(residuals=Residuals(skips=skips)),
        Ports(residuals=Residuals(middle=skips[-1])),
        Ports(residuals=Residuals(running=skips)),
        Ports(self_attention={"down_blocks.1.attentions.0": blurred}),
    ):
        output = unet(latents, TIMESTEPS, given, ports, sites)
        assert torch.equal(output.prediction, unet(latents, TIMESTEPS, given, ports))
        assert {site: tuple(seen.shape) for site, seen in output.observations.items()} == dict.fromkeys(
            sites, (2, 2, 2)
        )
        assert not torch.equal(output.prediction, unet(latents, TIMESTEPS, given))


def test_only_self_attentions_are_observed():
    unet, inputs = pair("MPIX")[0], (latents_for(MINIS["MPIX"], *SIZE), TIMESTEPS, conditioning_for(MINIS["MPIX"]))
    with pytest.raises(InvalidInput, match="observed is 'mid_block', expected one of the"):
        unet(*inputs, observed=("mid_block",))


def test_inputs_are_checked_on_both_ways_in():
    unet, latents = pair("MPIX")[0], latents_for(MINIS["MPIX"], *SIZE)
    for observed in (None, ()):
        with pytest.raises(InvalidInput, match="class_labels"):
            unet(latents, TIMESTEPS, observed=observed)
        latents_with_nan = latents.clone()
        latents_with_nan[0, 0, 0, 0] = torch.nan
        with pytest.raises(InvalidInput, match="latents is non-finite"):
            unet(latents_with_nan, TIMESTEPS, conditioning_for(MINIS["MPIX"]), observed=observed)
