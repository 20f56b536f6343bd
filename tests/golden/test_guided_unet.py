"""What guidance does inside the U-Net, against diffusers' processors and hooks: case F1 of the parity plan."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from diffusers.models.unets import unet_2d_blocks
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import CrossAttnStoreProcessor
from diffusers.pipelines.pag.pag_utils import PAGMixin
from diffusers.utils.torch_utils import fourier_filter
from torch import Tensor, nn

from tests.few import few
from tests.golden.conftest import EFFECT, T0, change, largest_difference
from tests.golden.minis import MINIS, TIMESTEPS, build_twin, conditioning_for, latents_for, pair, run_twin
from undertow.diffusion.guidance import Perturbation
from undertow.errors import InvalidInput
from undertow.nn.free_u import FreeUFactors
from undertow.nn.perturbation import PerturbedRows, blur_queries
from undertow.unet.conditioning import Conditioning, Ports
from undertow.unet.free_u import FreeU
from undertow.unet.free_u_factors import free_u_factors
from undertow.unet.perturbation import perturbed_rows
from undertow.unet.self_attentions import first_self_attention, self_attentions_in

IDENTITY = Perturbation(kind="identity")
ALONE = 1e-5
"""float32: a batch of two and two batches of one sum in another order (U8)."""

# ours, and the expressions with which diffusers finds the same modules
LAYERS = [
    ("M15", ("mid_block",), ["mid"]),
    ("M21", ("mid_block",), ["mid"]),
    ("MXL", ("mid_block",), ["mid"]),
    ("MXL", ("mid_block.attentions.0.transformer_blocks.1",), ["mid.*transformer_blocks.1"]),
    ("M15", ("up_blocks.1", "down_blocks.2.attentions.0"), ["up_blocks.1", "down_blocks.2.attentions.0"]),
]


class Pag(PAGMixin):
    """diffusers' own way to put the processors of perturbed-attention guidance into a U-Net."""

    def __init__(self, unet: nn.Module, layers: list[str]):
        self.unet = unet
        self.set_pag_applied_layers(layers)
        self._set_pag_attn_processor(layers, do_classifier_free_guidance=False)


def _rows(given: Conditioning, *rows: int) -> Conditioning:
    """Chosen rows of a conditioning."""
    fields = ("context", "context_mask", "pooled", "time_ids", "class_labels", "guidance")
    chosen = {name: value[list(rows)] for name in fields if (value := getattr(given, name)) is not None}
    return replace(given, **chosen)


@pytest.mark.parametrize(("name", "layers", "found"), LAYERS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_identity_attention_is_diffusers_pag(name: str, layers, found, size):
    mini = MINIS[name]
    unet = pair(name)[0]
    twin = build_twin(mini, unet)
    Pag(twin, found)
    latents, given = latents_for(mini, *size, batch=1).repeat(2, 1, 1, 1), _rows(conditioning_for(mini), 0, 0)
    timesteps = TIMESTEPS[[1, 1]]
    perturbation = Perturbation(kind="identity", layers=layers)
    ports = Ports(self_attention=perturbed_rows(mini.config, [None, perturbation]))
    ours = unet(latents, timesteps, given, ports)
    assert largest_difference(ours, run_twin(twin, latents, timesteps, given)) <= T0
    # Random attention is nearly uniform, so what it is replaced with is felt, but less than a missing feature.
    assert change(ours[1:], ours[:1]) > EFFECT / 10


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 40.0])
@pytest.mark.parametrize("size", [4, 7, 16])
def test_blur_is_the_gaussian_of_diffusers_seg(sigma: float, size: int):
    """diffusers 0.42 asks the wrong way round whether sigma is infinite; a threshold below any sigma sets it right."""
    query = torch.randn(2, size * size, 6, generator=torch.Generator().manual_seed(0))
    kernel = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    # diffusers shortens the kernel to the map, size + 1 for even sizes, and so do the authors
    expected = _gaussian_blur_2d(query.clone(), kernel, sigma, sigma_threshold_inf=-1.0)
    ours = blur_queries(query, torch.full((2,), sigma), size)
    assert largest_difference(ours, expected) <= T0
    assert change(ours, query) > EFFECT or sigma == 0.3


def test_an_infinite_blur_is_the_mean_and_none_keeps_every_bit():
    query = torch.randn(3, 4 * 6, 5, generator=torch.Generator().manual_seed(0))
    blurred = blur_queries(query, torch.tensor([0.0, math.inf, 9999999.0]), 4)
    assert torch.equal(blurred[0], query[0])
    assert largest_difference(blurred[1:], query[1:].mean(1, keepdim=True).expand_as(query[1:])) <= T0
    flat = blur_queries(torch.ones(1, 24, 5), torch.tensor([1.5]), 4)
    assert largest_difference(flat, torch.ones(1, 24, 5)) <= T0, "the weights of every cell sum to 1"


@pytest.mark.parametrize("name", few(["M15", "MXL"], 1))
@pytest.mark.parametrize("sigma", [0.8, math.inf])
def test_blurred_queries_are_diffusers_seg(name: str, sigma: float):
    """Hooks on to_q as diffusers' guider places them, with its own blur."""
    mini = MINIS[name]
    unet = pair(name)[0]
    twin = build_twin(mini, unet)
    layers = ("up_blocks.1", "down_blocks.1.attentions.1")
    sites = self_attentions_in(mini.config, layers)
    kernel = 0 if math.isinf(sigma) else math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    threshold = math.inf if math.isinf(sigma) else -1.0  # their question is inverted, see above

    def blur(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return _gaussian_blur_2d(output, kernel, sigma, threshold)

    for site in sites:
        twin.get_submodule(f"{site}.to_q").register_forward_hook(blur)
    latents, given = latents_for(mini), conditioning_for(mini)
    perturbation = Perturbation(kind="blurred", layers=layers, sigma=sigma)
    ports = Ports(self_attention=perturbed_rows(mini.config, [perturbation] * 2))
    ours = unet(latents, TIMESTEPS, given, ports)
    assert largest_difference(ours, run_twin(twin, latents, TIMESTEPS, given)) <= T0
    assert change(ours, unet(latents, TIMESTEPS, given)) > EFFECT / 10


BATCH = (
    None,
    IDENTITY,
    Perturbation(kind="blurred", layers=("mid_block", "up_blocks.1"), sigma=1.0),
    Perturbation(kind="blurred", sigma=math.inf),
    Perturbation(kind="identity", layers=("down_blocks.1", "up_blocks.2.attentions.1")),
)


def _five(name: str) -> tuple[Tensor, Tensor, Conditioning]:
    mini = MINIS[name]
    timesteps = torch.tensor([3.0, 871.5, 500.0, 20.0, 999.0])
    return latents_for(mini, 8, 16, batch=5), timesteps, conditioning_for(mini, batch=5)


@pytest.mark.parametrize("name", ["M15", "MXL", "MPIX"])
def test_rows_with_unlike_perturbations_equal_solo_runs(name: str):
    mini, unet = MINIS[name], pair(name)[0]
    batch = BATCH if name == "M15" else (*BATCH[:4], Perturbation(kind="identity", layers=("up_blocks.1",)))
    latents, timesteps, given = _five(name)
    together = unet(latents, timesteps, given, Ports(self_attention=perturbed_rows(mini.config, batch)))
    plain = unet(latents, timesteps, given)
    for row, perturbation in enumerate(batch):
        ports = Ports(self_attention=perturbed_rows(mini.config, [perturbation]))
        one = slice(row, row + 1)
        alone = unet(latents[one], timesteps[one], _rows(given, row), ports)
        assert largest_difference(together[one], alone) <= ALONE
        assert perturbation is None or change(together[one], plain[one]) > 1e-3


def test_perturbed_rows_are_bit_equal_at_equal_numbers_of_rows():
    """G4: whoever the four neighbours are, and whatever guidance does to them."""
    mini, unet = MINIS["M15"], pair("M15")[0]
    latents, timesteps, given = _five("M15")
    settings = [None, FreeU(), FreeU(keyed="index"), None, FreeU(version=2)]
    ports = Ports(self_attention=perturbed_rows(mini.config, BATCH), free_u=free_u_factors(mini.config, settings))
    together = unet(latents, timesteps, given, ports)
    for row, (perturbation, setting) in enumerate(zip(BATCH, settings, strict=True)):
        ports = Ports(
            self_attention=perturbed_rows(mini.config, [perturbation] * 5),
            free_u=free_u_factors(mini.config, [setting] * 5),
        )
        repeated = unet(latents[[row] * 5], timesteps[[row] * 5], _rows(given, *[row] * 5), ports)
        assert torch.equal(together[row], repeated[0])


@pytest.mark.parametrize("name", ["M15", "MPIX"])
def test_rows_without_a_perturbation_keep_every_bit(name: str):
    """Neighbours are perturbed in the same layers, and nothing of it reaches a row that is not."""
    mini, unet = MINIS[name], pair(name)[0]
    latents, timesteps, given = _five(name)
    blurred = Perturbation(kind="blurred", layers=("mid_block", "up_blocks.1"), sigma=1.0)
    rows = perturbed_rows(mini.config, [None, IDENTITY, blurred, None, blurred])
    free_u = free_u_factors(mini.config, [None, FreeU(version=2), None, None, FreeU(keyed="index")])
    together = unet(latents, timesteps, given, Ports(self_attention=rows, free_u=free_u))
    plain = unet(latents, timesteps, given)
    assert torch.equal(together[[0, 3]], plain[[0, 3]])
    assert not torch.equal(together[[1, 2, 4]], plain[[1, 2, 4]])


@pytest.mark.parametrize("name", few(["M15", "MXL", "MSSD"], 2))
@pytest.mark.parametrize("size", [(24, 17), (8, 24)])
def test_free_u_by_index_is_diffusers(name: str, size):
    mini = MINIS[name]
    unet = pair(name)[0]
    twin = build_twin(mini, unet)
    setting = FreeU(b1=1.5, b2=1.6, s1=0.9, s2=0.2, keyed="index")
    twin.enable_freeu(s1=setting.s1, s2=setting.s2, b1=setting.b1, b2=setting.b2)
    latents, given = latents_for(mini, *size), conditioning_for(mini)
    ports = Ports(free_u=free_u_factors(mini.config, [setting] * 2))
    ours = unet(latents, TIMESTEPS, given, ports)
    assert largest_difference(ours, run_twin(twin, latents, TIMESTEPS, given)) <= T0
    assert change(ours, unet(latents, TIMESTEPS, given)) > EFFECT


@pytest.mark.parametrize("name", ["M15", "MXL"])
@pytest.mark.parametrize("version", [1, 2])
def test_free_u_by_channels_is_the_authors(monkeypatch, name: str, version: int):
    """The authors' code (ChenyangSi/FreeU, and ComfyUI's nodes) in the place where diffusers calls its own."""
    mini = MINIS[name]
    unet = pair(name)[0]
    twin = build_twin(mini, unet)
    setting = FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2, version=version)
    first = mini.config.levels[0].channels
    factors = {4 * first: (setting.b1, setting.s1), 2 * first: (setting.b2, setting.s2)}
    widths = []

    def authors(resolution_idx, hidden, skip, **_):
        widths.append(hidden.shape[1])
        if hidden.shape[1] in factors:
            backbone, low = factors[hidden.shape[1]]
            half = hidden.shape[1] // 2
            if version == 2:
                mean = hidden.mean(1).unsqueeze(1)
                smallest, largest = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
                backbone = (backbone - 1) * ((mean - smallest) / (largest - smallest)) + 1
            hidden[:, :half] = hidden[:, :half] * backbone
            skip = fourier_filter(skip, threshold=1, scale=low)
        return hidden, skip

    monkeypatch.setattr(unet_2d_blocks, "apply_freeu", authors)
    twin.enable_freeu(s1=1, s2=1, b1=1, b2=1)
    latents, given = latents_for(mini), conditioning_for(mini)
    ours = unet(latents, TIMESTEPS, given, Ports(free_u=free_u_factors(mini.config, [setting] * 2)))
    assert largest_difference(ours, run_twin(twin, latents, TIMESTEPS, given)) <= T0
    assert change(ours, unet(latents, TIMESTEPS, given)) > EFFECT / 10
    assert {4 * first, 2 * first} <= set(widths)


def test_the_conventions_of_free_u_differ_for_stable_diffusion_1():
    """Formats.md, section 5: the two lowest stages are equally wide there."""
    by_index, by_channels = (free_u_factors(MINIS["M15"].config, [FreeU(keyed=key)]) for key in ("index", "channels"))
    assert {name: float(f.backbone) for name, f in by_index.items()} == pytest.approx(
        {f"up_blocks.{stage}.resnets.{i}": 1.5 + 0.1 * stage for stage in (0, 1) for i in range(3)}
    )
    assert {name: float(f.backbone) for name, f in by_channels.items()} == pytest.approx(
        {
            **{f"up_blocks.{stage}.resnets.{i}": 1.5 for stage in (0, 1) for i in range(3)},
            "up_blocks.2.resnets.0": 1.5,
            "up_blocks.2.resnets.1": 1.6,
            "up_blocks.2.resnets.2": 1.6,
            "up_blocks.3.resnets.0": 1.6,
        }
    )


def test_unlike_free_u_in_one_batch_equals_solo_runs():
    mini, unet = MINIS["M15"], pair("M15")[0]
    latents, timesteps, given = _five("M15")
    settings = [None, FreeU(), FreeU(keyed="index"), FreeU(version=2), FreeU(b1=1.1, s1=0.5, keyed="index", version=2)]
    together = unet(latents, timesteps, given, Ports(free_u=free_u_factors(mini.config, settings)))
    for row, setting in enumerate(settings):
        ports, one = Ports(free_u=free_u_factors(mini.config, [setting])), slice(row, row + 1)
        alone = unet(latents[one], timesteps[one], _rows(given, row), ports)
        assert largest_difference(together[one], alone) <= ALONE


@pytest.mark.parametrize("name", few(["M15", "MXL", "M21"], 1))
@pytest.mark.parametrize("size", [(16, 16), (32, 24)])
def test_the_attention_of_the_bottleneck_is_what_diffusers_sag_stores(name: str, size):
    mini = MINIS[name]
    unet = pair(name)[0]
    twin, store = build_twin(mini, unet), CrossAttnStoreProcessor()
    twin.mid_block.attentions[0].transformer_blocks[0].attn1.processor = store
    latents, given = latents_for(mini, *size), conditioning_for(mini)
    site = first_self_attention(mini.config, "mid_block")
    ours = unet(latents, TIMESTEPS, given, observed=(site,))
    run_twin(twin, latents, TIMESTEPS, given)
    heads = twin.mid_block.attentions[0].transformer_blocks[0].attn1.heads
    expected = store.attention_probs.unflatten(0, (2, heads)).mean(1).sum(1)
    assert largest_difference(ours.observations[site].flatten(1), expected) <= T0
    scale = 2 ** (len(mini.config.levels) - 1)
    assert ours.observations[site].shape == (2, size[0] // scale, size[1] // scale)
    assert torch.equal(ours.prediction, unet(latents, TIMESTEPS, given)), "watching changes nothing"


def _one_row(config_name: str, change: dict[str, PerturbedRows] | None = None, **ports: object) -> object:
    mini = MINIS[config_name]
    return pair(config_name)[0](
        latents_for(mini, batch=1),
        TIMESTEPS[:1],
        conditioning_for(mini, batch=1),
        Ports(self_attention=change, **ports),
    )


def _factors(rows: int, backbone: float = 1.0) -> FreeUFactors:
    return FreeUFactors(
        backbone=torch.full((rows,), backbone), skip=torch.ones(rows), structural=torch.zeros(rows, dtype=torch.bool)
    )


def _layers(*names: str) -> Perturbation:
    return Perturbation(kind="identity", layers=names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: perturbed_rows(MINIS["M15"].config, [_layers("mid")]), "layers is 'mid', expected a part of down_blo"),
        (lambda: perturbed_rows(MINIS["M15"].config, [_layers("mid_block", "down_blocks.3")]), "'down_blocks.3'"),
        (lambda: perturbed_rows(MINIS["MSSD"].config, [IDENTITY]), "a part of down_blocks.1, down_blocks.2, up_bloc"),
        (
            lambda: first_self_attention(MINIS["MSSD"].config, "mid_block"),
            "layers is 'mid_block', expected a part of down_bl",
        ),
        (lambda: _one_row("M15", {"mid_block": PerturbedRows()}), "one of the 16 names"),
        (
            lambda: _one_row("MPIX", {"mid_block.attentions.0": PerturbedRows(identity=torch.tensor([True, False]))}),
            r"identity is \[2\], expected one value per row, \[1\]",
        ),
        (lambda: FreeU(b1=math.nan), "FreeU's b1 is nan"),
        (lambda: FreeU(s2=-0.1), "FreeU's s2 is -0.1"),
        (lambda: _one_row("M15", free_u={"up_blocks.0": _factors(1)}), "up_blocks.0.resnets.0 to up_blocks.3.resnets"),
        (lambda: _one_row("M15", free_u={"up_blocks.0.resnets.0": _factors(2)}), r"backbone is \[2\]"),
        (lambda: _one_row("M15", free_u={"up_blocks.0.resnets.0": _factors(1, math.nan)}), "non-finite"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(make, message: str):
    with pytest.raises(InvalidInput, match=message):
        make()
