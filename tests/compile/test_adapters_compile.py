"""Adapters inside a compiled U-Net: one graph with slots, one without, and none for what is in them.

Run without type checks, which the compiler cannot trace: pytest -o addopts= tests/compile
"""

from random import Random

import pytest
import torch

from tests.adapters.lora.files import layers_of, low_rank
from tests.compile.test_unet_compile import SMALL_TEXT, Counter
from tests.golden.minis import build, conditioning_for, latents_for, randomize
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.residuals import ControlRow, residual_port
from undertow.adapters.image_prompt.image_port import ImagePromptRow, ImagePromptTokens, image_port
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.bank import AdapterCapacity, Bank
from undertow.adapters.lora.merge import MergedWeights
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates
from undertow.encoders.image import ImageFeatures
from undertow.engine.rows import Row
from undertow.unet.conditioning import Ports

TOLERANCE = 1e-5
"""float32, of the largest value; the traced graph runs the same operations."""


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_a_hundred_swaps_gains_mixtures_and_merges_make_two_graphs():
    """With and without the weight port; whatever is in slots, in gains or merged is values."""
    unet, counter, random = build(SMALL_TEXT), Counter(), Random(0)
    bank = Bank(unet, AdapterCapacity(slots=2, rank=4, per_row=2))
    merged, layers = MergedWeights(unet), layers_of(unet)
    files = []
    for number in range(5):
        chosen = dict(list(layers.items())[number :: 2 + number])
        rank = 1 + number % 4
        updates = {
            name: LowRank(down=down, up=up)
            for name, shape in chosen.items()
            for down, up in [low_rank(f"{number}{name}", shape, rank)]
        }
        files.append(LayerUpdates(key=number, title=str(number), updates=updates, factors={}))
    compiled = torch.compile(unet.predict, fullgraph=True, dynamic=False, backend=counter)
    call = latents_for(SMALL_TEXT, 8, 8), torch.tensor([3.0, 871.5]), conditioning_for(SMALL_TEXT)

    def mixture():
        few = random.sample(files, 2)
        rows = [
            [ScaledUpdates(layers=each, gain=random.uniform(-1, 1)) for each in few if random.random() < 0.7]
            for _ in "ab"
        ]
        return rows if any(rows) else [[ScaledUpdates(layers=few[0], gain=1.0)], []]

    compiled(*call, Ports(weights=bank.assign_slots(mixture(), fixed_shapes=True)))
    compiled(*call, Ports())
    outputs = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for turn in range(100):
            if turn % 10 == 9:
                merged.set_active([ScaledUpdates(layers=random.choice(files), gain=random.uniform(-1, 1))])
            ports = Ports() if turn % 7 == 6 else Ports(weights=bank.assign_slots(mixture(), fixed_shapes=True))
            output = compiled(*call, ports).prediction
            if turn % 10 == 0:
                assert (output - unet(*call, ports)).abs().max() <= TOLERANCE * max(1, output.abs().max())
            outputs.append(output)
        merged.set_active(())
    assert counter.graphs == 2
    assert bank.writes > 20
    assert len({output.sum().item() for output in outputs}) > 80


@pytest.mark.slow
@torch.no_grad()
def test_control_and_pictures_of_any_mixture_make_four_graphs():
    """With and without each port; who uses it, how strongly and with what is values."""
    unet, counter, random = build(SMALL_TEXT), Counter(), Random(0)
    control = ControlNet.from_unet(unet, (4, 8)).eval()
    randomize(control, 1)
    prompt = ImagePrompt.new(unet, 6, tokens=2).eval()
    inputs = latents_for(SMALL_TEXT, 8, 8), torch.tensor([3.0, 871.5]), conditioning_for(SMALL_TEXT)
    parts = zip(inputs[0].split(1), inputs[1].split(1), inputs[2].rows(), strict=True)
    rows = [Row(unet=unet, latents=x, timestep=t, conditioning=given) for x, t, given in parts]

    def controlled():
        gains = tuple(random.uniform(-1, 1) for _ in control.points)
        return ControlRow(network=control, hint=control.embed_hint(torch.rand(1, 3, 16, 16)), gains=gains)

    def seen():
        pairs = prompt.keys_values(prompt.tokens(ImageFeatures(pooled=torch.randn(1, 6))))
        gain = random.uniform(-1, 1)
        return ImagePromptRow(
            sites={site: ImagePromptTokens(keys=k, values=v, gain=gain) for site, (k, v) in pairs.items()}
        )

    def mixture(kinds):
        each = [[make() for make in kinds if random.random() < 0.7] for _ in rows]
        each[0] += [make() for make in kinds if not any(isinstance(one, KINDS[make.__name__]) for one in each[0])]
        controls = [[one for one in row if isinstance(one, ControlRow)] for row in each]
        pictures = [[one for one in row if isinstance(one, ImagePromptRow)] for row in each]
        return Ports(residuals=residual_port(rows, controls), image=image_port(unet.config, pictures, like=inputs[0]))

    choices = [(), (controlled,), (seen,), (controlled, seen)]
    compiled = torch.compile(unet.predict, fullgraph=True, dynamic=False, backend=counter)
    for kinds in choices:
        compiled(*inputs, mixture(kinds))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for turn in range(60):
            ports = mixture(random.choice(choices))
            output = compiled(*inputs, ports).prediction
            if turn % 10 == 0:
                assert (output - unet(*inputs, ports)).abs().max() <= TOLERANCE * max(1, output.abs().max())
    assert counter.graphs == 4


KINDS = {"controlled": ControlRow, "seen": ImagePromptRow}
