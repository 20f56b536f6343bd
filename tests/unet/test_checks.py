"""Every input that cannot be used is refused at the door, with the argument, its value and the remedy.

The tests' own type checks would refuse wrong ranks before the door does, so records are filled past them here;
tests/compile/test_doors.py calls the network without them.
"""

from dataclasses import replace

import pytest
import torch

from tests.golden.minis import (
    CONTEXT,
    M15,
    MINIS,
    MPIX,
    MXL,
    TIMESTEPS,
    Mini,
    build,
    conditioning_for,
    latents_for,
    pair,
)
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.nn.attention import ImageTokens
from undertow.nn.free_u import FreeUFactors
from undertow.nn.perturbation import PerturbedRows
from undertow.unet.checks import check_inputs, check_values
from undertow.unet.conditioning import Conditioning, Ports, Residuals
from undertow.unet.config import ClassLabels

SITE = "mid_block.attentions.0.transformer_blocks.0.attn2"


def _unchecked(record, **changes):
    """A copy of a frozen record with fields that its annotations do not allow."""
    made = replace(record)
    for field, value in changes.items():
        object.__setattr__(made, field, value)
    return made


def _refused(mini: Mini, argument: str, *, latents=None, timesteps=None, ports=None, **conditioning) -> InvalidInput:
    """The refusal of one wrong argument among good ones."""
    latents = latents_for(mini) if latents is None else latents
    timesteps = TIMESTEPS if timesteps is None else timesteps
    given = _unchecked(conditioning_for(mini), **conditioning)
    with pytest.raises(InvalidInput) as caught:
        check_inputs(mini.config, torch.float32, latents, timesteps, given, Ports() if ports is None else ports)
    assert caught.value.argument == argument
    assert caught.value.expected
    return caught.value


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        (torch.zeros(4, 16, 16), "rank 4"),
        (torch.zeros(2, 4, 16, 16, 1), "rank 4"),
        (torch.zeros(2, 16, 16, 4), "4 channels at axis 1"),
        (torch.zeros(2, 4, 16, 16).half(), "torch.float32"),
        (torch.zeros(2, 4, 16, 16).long(), "torch.float32"),
        (torch.zeros(0, 4, 16, 16), "at least one"),
        (torch.zeros(2, 4, 0, 16), "at least one"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else value,
)
def test_latents(latents, says):
    error = _refused(M15, "latents", latents=latents)
    assert says in error.expected


@pytest.mark.parametrize(("name", "hint"), [("M9", "inpainting"), ("M8", "InstructPix2Pix")])
def test_missing_extra_channels_come_with_a_hint(name, hint):
    error = _refused(MINIS[name], "latents", latents=latents_for(M15))
    assert hint in error.remedy


@pytest.mark.parametrize(
    "timesteps",
    [
        torch.tensor(3.0),
        torch.tensor([3.0]),
        torch.tensor([[3.0], [4.0]]),
        torch.tensor([True, False]),
        torch.tensor([3j, 4j]),
    ],
    ids=str,
)
def test_timesteps(timesteps):
    _refused(M15, "timesteps", timesteps=timesteps)


@pytest.mark.parametrize(
    ("context", "says"),
    [
        (None, "text embeddings"),
        (torch.zeros(7, CONTEXT), f"[2, tokens, {CONTEXT}]"),
        (torch.zeros(1, 7, CONTEXT), f"[2, tokens, {CONTEXT}]"),
        (torch.zeros(2, 7, CONTEXT + 1), f"[2, tokens, {CONTEXT}]"),
        (torch.zeros(2, 0, CONTEXT), "at least one token"),
        (torch.zeros(2, 7, CONTEXT).half(), "torch.float32"),
    ],
    ids=["missing", "rank", "rows", "width", "no tokens", "type"],
)
def test_context(context, says):
    assert says in _refused(M15, "context", context=context).expected


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 7), torch.ones(2, 6, dtype=torch.bool), torch.ones(1, 7, dtype=torch.bool)]
)
def test_context_mask(mask):
    _refused(M15, "context_mask", context_mask=mask)


@pytest.mark.parametrize(
    "regions",
    [
        torch.ones(2, 7, 4, 4),
        torch.ones(2, 7, 16, dtype=torch.bool),
        torch.ones(2, 7, 4, 4, 1, dtype=torch.bool),
        torch.ones(1, 7, 4, 4, dtype=torch.bool),
        torch.ones(2, 6, 4, 4, dtype=torch.bool),
    ],
    ids=["type", "rank", "rank 5", "rows", "tokens"],
)
def test_regions(regions):
    _refused(M15, "regions", regions=regions)


@pytest.mark.parametrize("pooled", [None, torch.zeros(2, 17), torch.zeros(16), torch.zeros(2, 16).half()])
def test_pooled(pooled):
    _refused(MXL, "pooled", pooled=pooled)


@pytest.mark.parametrize("ids", [None, torch.zeros(2, 5), torch.zeros(1, 6)])
def test_time_ids(ids):
    _refused(MXL, "time_ids", time_ids=ids)


@pytest.mark.parametrize(
    "labels",
    [
        None,
        torch.zeros(2),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(1, dtype=torch.long),
        torch.zeros(2, 1).long(),
    ],
)
def test_class_labels(labels):
    _refused(MPIX, "class_labels", class_labels=labels)


@pytest.mark.parametrize("guidance", [torch.zeros(1), torch.zeros(2, 1)])
def test_guidance(guidance):
    _refused(MINIS["MLCM"], "guidance", guidance=guidance)


@pytest.mark.parametrize(
    ("mini", "field", "value", "argument"),
    [
        (MPIX, "context", torch.zeros(2, 7, 24), "context"),
        (MPIX, "context_mask", torch.ones(2, 7, dtype=torch.bool), "context_mask"),
        (MPIX, "regions", torch.ones(2, 7, 4, 4, dtype=torch.bool), "regions"),
        (M15, "pooled", torch.zeros(2, 16), "pooled or time_ids"),
        (M15, "time_ids", torch.zeros(2, 6), "pooled or time_ids"),
        (M15, "class_labels", torch.zeros(2).long(), "class_labels"),
        (M15, "guidance", torch.ones(2), "guidance"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_network_does_not_use_is_refused(mini, field, value, argument):
    """Ignoring it would leave the caller believing that it had an effect."""
    error = _refused(mini, argument, **{field: value})
    assert "nothing" in error.expected


SHAPES = M15.config.skip_shapes(16, 16)


def _skips(**changes):
    shapes = {str(i): (2, *shape) for i, shape in enumerate(SHAPES)} | changes
    return tuple(torch.zeros(shape) for shape in shapes.values())


@pytest.mark.parametrize(
    ("residuals", "argument"),
    [
        (Residuals(skips=_skips()[:-1]), "skips"),
        (Residuals(skips=_skips()[::-1]), "skips"),
        (Residuals(skips=_skips(**{"3": (2, 32, 16, 16)})), "skips"),
        (Residuals(skips=_skips(**{"3": (1, *SHAPES[3])})), "skips"),
        (Residuals(middle=torch.zeros(2, 128, 4, 4)), "middle"),
        (Residuals(middle=torch.zeros(1, 128, 2, 2)), "middle"),
        (Residuals(middle=torch.zeros(2, 64, 2, 2)), "middle"),
        (Residuals(middle=torch.zeros(2, 128, 2, 2).half()), "middle"),
        (Residuals(skips=(_skips()[0].double(), *_skips()[1:])), "skips[0]"),
        (Residuals(running=_skips()[:-1]), "running"),
        (Residuals(running=(None, *_skips()[:0:-1])), "running"),
        (Residuals(running=(_skips()[0].double(), *_skips()[1:])), "running[0]"),
    ],
    ids=[
        *("count", "order", "size", "rows", "middle size", "middle rows", "middle channels", "middle type", "type"),
        *("running count", "running order", "running type"),
    ],
)
def test_residuals(residuals, argument):
    _refused(M15, f"ports.residuals.{argument}", ports=Ports(residuals=residuals))


def test_the_first_wrong_skip_is_named():
    error = _refused(
        M15, "ports.residuals.skips", ports=Ports(residuals=Residuals(skips=_skips(**{"3": (2, 32, 16, 16)})))
    )
    assert "[3] (2, 32, 16, 16) instead of (2, 32, 8, 8)" in str(error)


GOOD = ImageTokens(keys=torch.zeros(2, 4, 128), values=torch.zeros(2, 4, 128), gain=torch.ones(2))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"keys": torch.zeros(1, 4, 128)}, ".keys"),
        ({"keys": torch.zeros(2, 4, 64), "values": torch.zeros(2, 4, 64)}, ".keys"),
        ({"values": torch.zeros(2, 5, 128)}, ".values"),
        ({"gain": torch.ones(1)}, ".gain"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ".mask"),
        ({"keys": torch.zeros(2, 4, 128).half(), "values": torch.zeros(2, 4, 128).half()}, ".keys"),
        ({"area": torch.ones(2, 5)}, ".area"),
    ],
    ids=["rows", "width", "values", "gain", "mask", "type", "area"],
)
def test_image_tokens(changes, part):
    _refused(M15, f"ports.image[{SITE!r}][1]{part}", ports=Ports(image={SITE: (GOOD, _unchecked(GOOD, **changes))}))


def test_image_tokens_for_an_unknown_site_are_refused():
    """They would be ignored, and the picture would show nothing of the reference."""
    for site in ("mid_block.attentions.0", SITE.replace("attn2", "attn1"), "up_blocks.0.attentions.0"):
        error = _refused(M15, f"ports.image[{site!r}]", ports=Ports(image={site: (GOOD,)}))
        assert "16 names" in error.expected


def test_weight_rows():
    for count in (1, 3):
        rows = WeightRows(slots=torch.zeros(count, 1, dtype=torch.long), gains=torch.ones(count, 1))
        _refused(M15, "ports.weights.slots", ports=Ports(weights=rows))


@pytest.mark.parametrize("field", ["identity", "blur"])
def test_perturbed_rows(field):
    values = torch.ones(3) if field == "blur" else torch.ones(3, dtype=torch.bool)
    site = SITE.replace("attn2", "attn1")
    ports = Ports(self_attention={site: PerturbedRows(**{field: values})})
    error = _refused(M15, f"ports.self_attention[{site!r}].{field}", ports=ports)
    assert "[2]" in error.expected
    unknown = Ports(self_attention={SITE: PerturbedRows(**{field: values[:2]})})
    assert "16 names" in _refused(M15, f"ports.self_attention[{SITE!r}]", ports=unknown).expected


LAYER = "up_blocks.1.resnets.0"


def _factors(**changes) -> FreeUFactors:
    good = FreeUFactors(backbone=torch.ones(2), skip=torch.ones(2), structural=torch.zeros(2, dtype=torch.bool))
    return _unchecked(good, **changes)


@pytest.mark.parametrize("field", ["backbone", "skip", "structural"])
def test_free_u_factors(field):
    for wrong in (torch.ones(3), torch.ones(2, 1), torch.ones(())):
        ports = Ports(free_u={LAYER: _factors(**{field: wrong})})
        assert "[2]" in _refused(M15, f"ports.free_u[{LAYER!r}].{field}", ports=ports).expected
    error = _refused(M15, "ports.free_u['mid_block']", ports=Ports(free_u={"mid_block": _factors()}))
    assert error.expected == "a decoder layer, up_blocks.0.resnets.0 to up_blocks.3.resnets.2"


@pytest.mark.parametrize("mini", [M15, MXL, MPIX, MINIS["MLCM"]], ids=["M15", "MXL", "MPIX", "MLCM"])
def test_what_fits_is_let_in(mini):
    """All at once, so that no check refuses what is right."""
    given, ports = conditioning_for(mini), Ports()
    sites = mini.config.cross_attentions()
    skips = tuple(torch.zeros(2, *shape) for shape in mini.config.skip_shapes(16, 16))
    ports = Ports(
        weights=WeightRows(slots=torch.zeros(2, 3, dtype=torch.long), gains=torch.ones(2, 3)),
        residuals=Residuals(skips=skips, middle=torch.zeros_like(skips[-1]), running=(None, *skips[1:])),
        free_u={LAYER: _factors()},
        self_attention={mini.config.self_attentions()[0]: PerturbedRows(blur=torch.ones(2))},
        image={
            site: (
                ImageTokens(
                    keys=torch.zeros(2, 4, width),
                    values=torch.zeros(2, 4, width),
                    gain=torch.ones(2),
                    mask=torch.ones(2, 4, dtype=torch.bool),
                    area=torch.ones(2, rows * columns),
                ),
            )
            for (site, width), (rows, columns) in zip(
                sites.items(), mini.config.attention_grids(16, 16).values(), strict=True
            )
        },
    )
    if given.context is not None:
        shape = given.context.shape[:2]
        given = replace(
            given,
            context_mask=torch.ones(shape, dtype=torch.bool),
            regions=torch.ones(*shape, 3, 5, dtype=torch.bool),
        )
    for timesteps in (TIMESTEPS, TIMESTEPS.long()):
        check_inputs(mini.config, torch.float32, latents_for(mini), timesteps, given, ports)
        check_values(mini.config, latents_for(mini), timesteps, given, ports)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["latents", "context", "pooled", "time_ids"])
def test_non_finite_numbers_are_counted(field, value):
    latents, given = latents_for(MXL), conditioning_for(MXL)
    if field == "latents":
        latents[1, 2, 3, 4] = value
    else:
        getattr(given, field).view(-1)[1] = value
    with pytest.raises(InvalidInput, match="non-finite in 1 of") as caught:
        pair("MXL")[0](latents, TIMESTEPS, given)
    assert caught.value.argument == field


def test_non_finite_guidance_is_refused():
    given = replace(conditioning_for(MINIS["MLCM"]), guidance=torch.tensor([7.5, torch.nan]))
    with pytest.raises(InvalidInput, match="guidance is non-finite"):
        pair("MLCM")[0](latents_for(M15), TIMESTEPS, given)


@pytest.mark.parametrize("port", ["skips[2]", "middle", "running[3]", "keys", "values", "gain", "area"])
def test_non_finite_ports_are_refused_by_name(port):
    """A ControlNet that overflows in f16 is named, not the U-Net."""
    skips, middle = _skips(), torch.zeros(2, 128, 2, 2)
    running = _skips()
    tokens = replace(GOOD, keys=torch.zeros(2, 4, 128), values=torch.zeros(2, 4, 128), gain=torch.ones(2))
    tokens = replace(tokens, area=torch.ones(2, 4))
    target = {"skips[2]": skips[2], "middle": middle, "running[3]": running[3]}.get(port)
    (getattr(tokens, port) if target is None else target).view(-1)[0] = torch.nan
    residuals = Residuals(skips=skips, middle=middle, running=running)
    ports = Ports(residuals=residuals, image={SITE: (tokens,)})
    with pytest.raises(InvalidInput, match="non-finite in 1 of") as caught:
        pair("M15")[0](latents_for(M15), TIMESTEPS, conditioning_for(M15), ports)
    assert caught.value.argument.endswith(port)


@pytest.mark.parametrize(
    "port", ["weights.gains", "free_u['up_blocks.1.resnets.0'].backbone", f"free_u[{LAYER!r}].skip"]
)
def test_non_finite_gains_and_factors_are_refused_by_name(port):
    bad = torch.tensor([1.0, torch.nan])
    if port == "weights.gains":
        ports = Ports(weights=WeightRows(slots=torch.zeros(2, 1, dtype=torch.long), gains=bad[:, None]))
    else:
        ports = Ports(free_u={LAYER: _factors(**{port.split(".")[-1]: bad})})
    with pytest.raises(InvalidInput, match="non-finite in 1 of 2 values") as caught:
        check_values(M15.config, latents_for(M15), TIMESTEPS, conditioning_for(M15), ports)
    assert caught.value.argument == f"ports.{port}"


def test_numbers_without_values_are_no_reason_to_refuse():
    """A picture of no tokens has keys of no values."""
    empty = ImageTokens(keys=torch.zeros(2, 0, 128), values=torch.zeros(2, 0, 128), gain=torch.ones(2))
    check_values(M15.config, latents_for(M15), TIMESTEPS, conditioning_for(M15), Ports(image={SITE: (empty,)}))


def test_values_on_another_device_are_not_waited_for():
    latents, given = latents_for(M15).to("meta"), conditioning_for(M15).to(device="meta")
    check_values(M15.config, latents, TIMESTEPS.to("meta"), given, Ports())
    labels = Conditioning(class_labels=torch.tensor([99, 99], device="meta"))
    check_values(MPIX.config, latents_for(MPIX), TIMESTEPS, labels, Ports())


def test_labels_of_a_network_without_a_null_class_say_nothing_of_one():
    config = replace(MPIX.config, added=ClassLabels(count=10))
    for label, refused in ((0, False), (9, False), (10, True), (-1, True)):
        given = Conditioning(class_labels=torch.tensor([3, label]))
        if refused:
            with pytest.raises(InvalidInput, match=r"numbers from 0 to 9; classes count from 0$"):
                check_values(config, latents_for(MPIX), TIMESTEPS, given, Ports())
        else:
            check_values(config, latents_for(MPIX), TIMESTEPS, given, Ports())


@pytest.mark.parametrize("timesteps", [[-1.0, 3.0], [3.0, 1000.5], [3.0, float("nan")], [3.0, float("inf")]], ids=str)
def test_timesteps_out_of_range(timesteps):
    with pytest.raises(InvalidInput, match="timesteps is"):
        pair("M15")[0](latents_for(M15), torch.tensor(timesteps), conditioning_for(M15))


def test_the_range_of_timesteps_is_the_configs():
    for timesteps in (torch.tensor([0, 1000]), torch.tensor([0.0, 1000.0])):
        pair("M15")[0](latents_for(M15), timesteps, conditioning_for(M15))
    unbounded = replace(MINIS["MUNC"], config=replace(MINIS["MUNC"].config, max_timestep=None))
    unet = build(unbounded)
    unet(latents_for(unbounded), torch.tensor([-5.0, 4000.0]))
    with pytest.raises(InvalidInput, match="timesteps is non-finite"):
        unet(latents_for(unbounded), torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize("label", [-1, 11])
def test_class_labels_out_of_range(label):
    with pytest.raises(InvalidInput, match=r"class_labels is .*0 to 10.*10 means no class"):
        pair("MPIX")[0](latents_for(MPIX), TIMESTEPS, Conditioning(class_labels=torch.tensor([3, label])))


def test_conditioning_that_is_needed_is_asked_for():
    for name, argument in (("M15", "context"), ("MPIX", "class_labels")):
        with pytest.raises(InvalidInput) as caught:
            pair(name)[0](latents_for(MINIS[name]), TIMESTEPS)
        assert caught.value.argument == argument
