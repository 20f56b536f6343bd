"""Faults planted in one row are named by module, step, row and cause; upcasting one module saves the picture."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from tests.services import fresh_service, service_of
from undertow import BatchLimits, GenerationRequest, InvalidInput
from undertow.attention.chunked import chunked_attention
from undertow.engine.options import RunOptions
from undertow.errors import NonFiniteError

REQUEST = GenerationRequest(prompt="red apple", steps=3, seed=3)
NEIGHBOR = GenerationRequest(prompt="green tree", steps=3, seed=4)
FOUR = BatchLimits(padded_to=4)

FIRST_DOWN = "down_blocks.1.attentions.0.transformer_blocks.0"
CLOSE = 0.02
"""Of latents drawn in float16 to those in float32, relative to the largest: without any fault it is 0.004."""


class Planted:
    """Multiplies what a module gives to one row, in float32, and stores it in the module's type: an overflow in
    float16, and nothing of the kind in float32."""

    def __init__(self, module, *, picture=0, request=0, step=1, branch="cond", factor=3e5):
        self.module, self.factor, self.where = module, factor, (request, picture, step, branch)

    def _concerned(self, rows):
        asked = [(row.origin.request, row.origin.picture, row.origin.step, row.origin.branch) for row in rows]
        return [index for index, one in enumerate(asked) if one == self.where]

    def wants(self, rows):
        return bool(self._concerned(rows))

    @contextmanager
    def attached(self, unet, rows):
        module, concerned = unet.get_submodule(self.module), self._concerned(rows)
        plain = module.forward

        def forward(*args, **kwargs):
            output = plain(*args, **kwargs).clone()
            for index in concerned:
                row = output[index].float()
                output[index] = (row * (self.factor / row.abs().max())).to(output.dtype)
            return output

        module.forward = forward
        try:
            yield
        finally:
            del module.forward


@pytest.fixture
def half():
    """A float16 service, whose probes are taken off."""
    service = service_of("sd1", torch.float16)
    yield service
    service.engine.probes.clear()


@pytest.mark.parametrize(
    ("module", "upcast"),
    [
        ("conv_in", "conv_in"),
        (f"{FIRST_DOWN}.attn1.to_q", f"{FIRST_DOWN}.attn1"),
        (f"{FIRST_DOWN}.norm3", f"{FIRST_DOWN}.norm3"),
        ("up_blocks.1.resnets.1.conv_shortcut", "up_blocks.1.resnets.1.conv_shortcut"),
    ],
)
def test_an_overflow_is_named_and_computed_in_float32_for_its_row_alone(half, module, upcast):
    plain = half.generate_many([REQUEST, NEIGHBOR], limits=FOUR)
    whole = service_of("sd1")
    for service in (half, whole):
        service.engine.probes.append(Planted(module))
    try:
        found, neighbor = half.generate_many([REQUEST, NEIGHBOR], limits=FOUR)
        expected = whole.run(REQUEST)
    finally:
        whole.engine.probes.clear()
    (fault,) = found.report.faults
    assert (fault.module, fault.cause) == (module, "overflow")
    assert (fault.origin.request, fault.origin.step, fault.origin.branch) == (0, 1, "cond")
    assert upcast in found.report.upcast
    assert any(line.startswith(f"computed {upcast}") for line in found.report.decisions)
    assert torch.equal(neighbor.latents, plain[1].latents)
    assert not neighbor.report.faults
    assert not neighbor.report.upcast
    assert not torch.equal(found.latents, plain[0].latents)
    assert float((found.latents - expected.latents).abs().max() / expected.latents.abs().max()) < CLOSE
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in half.unet.modules())


def test_queries_that_fused_attention_hides_are_found(half):
    """CPU flash attention gives finite numbers where queries are infinite."""
    half.engine.probes.append(Planted(f"{FIRST_DOWN}.attn1.to_q", factor=7e4))
    half.engine.rescue, rescue = None, half.engine.rescue
    try:
        hidden = half.run(REQUEST, non_finite="keep")
    finally:
        half.engine.rescue = rescue
    assert hidden.latents.isfinite().all(), "the prediction does not tell"
    (fault,) = half.run(REQUEST).report.faults
    assert fault.hidden
    assert "hides" in str(fault)


def test_failing_names_module_step_row_and_cause(half):
    half.engine.probes.append(Planted("conv_in"))
    with pytest.raises(NonFiniteError, match=r"^conv_in in float16: overflow: .*step 1, branch cond") as error:
        half.run(REQUEST, non_finite="fail")
    assert error.value.fault.cause == "overflow"
    with pytest.raises(NonFiniteError, match=r"^conv_in in float16: overflow: "):
        half.run(REQUEST, debug="nan")


def test_clamping_is_counted_and_changes_the_picture(half):
    half.engine.probes.append(Planted("conv_in"))
    upcast, cut = half.run(REQUEST), half.run(REQUEST, non_finite="clamp")
    assert cut.report.clamped["conv_in"] > 0
    assert any("the picture changed" in line for line in cut.report.decisions)
    assert not upcast.report.clamped
    assert not torch.equal(upcast.latents, cut.latents)


def test_a_weight_that_is_not_finite_is_named():
    service = fresh_service("sd1")
    with torch.no_grad():
        service.unet.get_submodule("mid_block.resnets.1.conv2").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 of .* numbers that are not finite") as error:
        service.run(REQUEST)
    assert (error.value.layer, error.value.fault.cause) == ("mid_block.resnets.1.conv2", "weight")


def test_conditioning_and_latents_are_named():
    service = fresh_service("sd1")  # what is broken is kept as the text's encoding
    run = replace(REQUEST, steps=1)

    class Broken:
        def wants(self, rows):
            for row in rows:
                if row.origin.branch == "cond":
                    row.conditioning.context[0, 0, 0] = float("nan")
            return False

        def attached(self, unet, rows):
            return nullcontext()

    service.engine.probes.append(Broken())
    try:
        with pytest.raises(NonFiniteError) as error:
            service.run(run)
    finally:
        service.engine.probes.clear()
    assert (error.value.layer, error.value.fault.cause) == ("context", "conditioning")
    noise = torch.full((1, 4, 16, 16), float("inf"))
    with pytest.raises((NonFiniteError, InvalidInput), match="latents"):
        service.run(run, latents=noise)


def test_scores_that_overflow_are_told_from_projections():
    """The chunked kernel keeps scores in the input's type between its two products."""
    service = service_of("sd1", torch.float16)
    attention = service.unet.get_submodule(f"{FIRST_DOWN}.attn1")
    before, attention.kernel = attention.kernel, chunked_attention
    probes = [Planted(f"{FIRST_DOWN}.attn1.{one}", factor=30_000.0) for one in ("to_q", "to_k")]
    service.engine.probes.extend(probes)
    try:
        result = service.run(REQUEST)
    finally:
        attention.kernel = before
        service.engine.probes.clear()
    (fault,) = result.report.faults
    assert (fault.module, fault.cause) == (f"{FIRST_DOWN}.attn1", "scores")


def test_the_default_is_to_go_on():
    assert RunOptions().non_finite == "upcast"
