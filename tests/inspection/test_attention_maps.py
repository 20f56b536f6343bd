"""Maps are the softmax of queries and keys, whatever the batch, and change no bit of a picture."""

import math
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.services import service_of
from undertow import Adapter, AdapterCapacity, GenerationRequest, InvalidInput, Region, UNet, UNetConfig, Views
from undertow.inspection.attention_choice import AttentionChoice
from undertow.inspection.attention_maps import AttentionMapProbe
from undertow.inspection.hidden_words import HiddenTokens
from undertow.inspection.projections import Projected
from undertow.inspection.self_attention import SelfAttentionProbe, reduced

REQUEST = GenerationRequest(prompt="red apple", steps=2, seed=3, size=(32, 48))
OTHER = GenerationRequest(prompt="a green tree", steps=3, seed=4, size=(32, 48), guidance_scale=1.0)
LONG = GenerationRequest(prompt="red apple, " * 12, steps=1, seed=3)

CLOSE = {"atol": 1e-6, "rtol": 1e-5}
"""Float32 beside float64: shares of attention are at most 1."""


class Naive:
    """Scores written out in float64 from what layers receive and their weights: the mean of everything at one size."""

    def __init__(self):
        self.found, self.inputs = defaultdict(list), {}

    def wants(self, rows):
        return True

    @contextmanager
    def attached(self, unet, rows):
        def seen(site):
            def hook(layer, inputs):
                x, given = inputs
                for index, row in enumerate(rows):
                    if row.origin.branch == "cond":
                        self._add(site, layer, x[index].double(), given.context[index].double(), given.height, row)

            return hook

        handles = [
            unet.get_submodule(site).register_forward_pre_hook(seen(site)) for site in unet.config.cross_attentions()
        ]
        yield
        for handle in handles:
            handle.remove()

    def _add(self, site, layer, x, context, height, row):
        q, k = x @ layer.to_q.weight.double().T, context @ layer.to_k.weight.double().T
        q, k = (one.unflatten(1, (layer.heads, -1)).transpose(0, 1) for one in (q, k))
        shares = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(0)
        maps = shares.T.unflatten(1, (height, -1))[None]
        self.found[row.origin.request].append(F.interpolate(maps, size=row.latents.shape[2:], mode="bilinear")[0])

    def heat(self, request):
        return torch.stack(self.found[request]).mean(0).float()


@contextmanager
def probing(service, *probes):
    service.engine.probes[:] = probes
    try:
        yield
    finally:
        service.engine.probes.clear()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_maps_are_the_mean_softmax_over_layers_heads_and_steps(family):
    service, naive = service_of(family), Naive()
    probe = AttentionMapProbe(unet=service.unet)
    with probing(service, probe, naive):
        service.run(REQUEST)
    (maps,) = probe.maps()
    assert maps.heat.shape == (77, 16, 24)
    assert (maps.branch, maps.steps) == ("cond", 2)
    torch.testing.assert_close(maps.heat, naive.heat(0), **CLOSE)
    torch.testing.assert_close(maps.heat.sum(0), torch.ones(16, 24))


def test_a_prompt_of_several_chunks_has_as_many_tokens(service):
    probe, naive = AttentionMapProbe(unet=service.unet), Naive()
    with probing(service, probe, naive):
        service.run(LONG)
    (maps,) = probe.maps()
    assert maps.heat.shape[0] == len(maps.reading.kinds) == 154
    torch.testing.assert_close(maps.heat, naive.heat(0), **CLOSE)


def test_no_bit_of_a_picture_changes_and_nothing_is_left(service):
    plain = service.run(REQUEST).latents
    with probing(service, AttentionMapProbe(unet=service.unet), SelfAttentionProbe(unet=service.unet)):
        assert torch.equal(service.run(REQUEST).latents, plain)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in service.unet.modules())


def test_unlike_requests_in_one_batch_have_the_maps_that_they_have_alone(service):
    together, alone = AttentionMapProbe(unet=service.unet), []
    with probing(service, together):
        service.generate_many([REQUEST, OTHER])
    for request in (REQUEST, OTHER):
        probe = AttentionMapProbe(unet=service.unet)
        with probing(service, probe):
            service.run(request)
        alone.append(probe.maps()[0])
    for index, expected in enumerate(alone):
        (found,) = together.maps(index)
        assert [word.text for word in found.reading.words] == [word.text for word in expected.reading.words]
        torch.testing.assert_close(found.heat, expected.heat, atol=1e-5, rtol=1e-4)


def test_layers_heads_and_steps_are_chosen(service):
    site = next(iter(service.unet.config.cross_attentions()))
    layer, calls = service.unet.get_submodule(site), []
    probe = AttentionMapProbe(unet=service.unet, choice=AttentionChoice(layers=(site,), heads=(1,), steps=(1,)))

    def expected(module, inputs):
        (x, given) = inputs
        q, k = (
            to(of)[0].unflatten(1, (layer.heads, -1))[:, 1] for to, of in ((layer.to_q, x), (layer.to_k, given.context))
        )
        calls.append((q @ k.T * q.shape[-1] ** -0.5).softmax(-1).T.unflatten(1, (given.height, -1)))

    request = GenerationRequest(prompt="red apple", steps=2, seed=3, guidance_scale=1.0)
    with probing(service, probe):
        handle = layer.register_forward_pre_hook(expected)
        service.run(request)
        handle.remove()
    (maps,) = probe.maps()
    assert maps.steps == 1
    size = maps.heat.shape[1:]
    torch.testing.assert_close(maps.heat, F.interpolate(calls[1][None], size=size, mode="bilinear")[0], **CLOSE)


def test_lora_in_slots_has_the_maps_of_lora_merged(files):
    found = []
    for service, adapters in (
        (service_of("sd1"), ()),
        (service_of("sd1"), (Adapter(files["louder"], scale=4.0),)),
        (service_of("sd1", capacity=AdapterCapacity(slots=1, per_row=1)), (Adapter(files["louder"], scale=4.0),)),
    ):
        probe = AttentionMapProbe(unet=service.unet)
        with probing(service, probe):
            service.generate("red apple", steps=1, seed=3, adapters=adapters)
        service.adapters.unmerge()
        found.append(probe.maps()[0].heat)
    torch.testing.assert_close(found[1], found[2], atol=1e-5, rtol=1e-3)
    assert (found[1] - found[0]).abs().max() > 1e-4


def test_regions_by_attention_have_heat_inside_their_box_alone(service):
    probe = AttentionMapProbe(unet=service.unet)
    regions = (Region(prompt="tree", box=(0.0, 0.0, 0.5, 1.0)), Region(prompt="dog", box=(0.5, 0.0, 1.0, 1.0)))
    with probing(service, probe):
        service.generate("red apple", steps=1, seed=3, regions=regions, regions_by="attention")
    (maps,) = probe.maps()
    assert len(maps.reading.kinds) == 3 * 77
    pieces = service.model.text.pieces("dog")
    ((*places,),) = maps.reading.positions_of(pieces)
    assert min(places) >= 2 * 77, "behind those of the prompt and of the first region"
    width = maps.heat.shape[2]
    edge = 2  # of enlarging maps of half the size
    assert maps.heat[places][..., : width // 2 - edge].abs().max() == 0
    assert maps.heat[places][..., width // 2 + edge :].min() > 0


def test_views_are_put_together(service):
    probe = AttentionMapProbe(unet=service.unet)
    with probing(service, probe):
        service.generate("red apple", steps=1, seed=3, size=(32, 64), views=Views())
    (maps,) = probe.maps()
    assert maps.heat.shape == (77, 16, 32)
    torch.testing.assert_close(maps.heat.sum(0), torch.ones(16, 32))


def test_self_attention_is_reduced_to_entropies_and_what_cells_receive(service):
    call = Projected(site="", heads=2, queries=torch.randn(1, 6, 8), keys=torch.randn(1, 6, 8), mask=None, grid=(2, 3))
    q, k = (one[0].unflatten(1, (2, 4)).transpose(0, 1).double() for one in (call.queries, call.keys))
    shares = (q @ k.mT / 2).softmax(-1)
    probe = SelfAttentionProbe(unet=service.unet)
    with probing(service, probe):
        service.run(REQUEST)
    assert [one.site for one in probe.maps()] == service.unet.config.self_attentions()
    for one in probe.maps():
        assert abs(float(one.received.mean()) - 1) < 1e-5
        assert float(one.entropy.min()) >= 0
        assert float(one.entropy.max()) <= math.log(one.entropy.numel()) + 1e-5
    ((entropy, received),) = reduced(call, 0, None)
    torch.testing.assert_close(entropy.double(), -(shares * shares.log()).sum(-1).mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(received.double(), shares.mean(0).sum(0), atol=1e-6, rtol=1e-5)


def test_a_query_that_may_see_nothing_pays_no_attention():
    mask = torch.tensor([[[[True, False], [False, False]]]])
    call = Projected(site="", heads=1, queries=torch.ones(1, 2, 4), keys=torch.ones(1, 2, 4), mask=mask, grid=(1, 2))
    assert torch.equal(torch.cat(list(call.probabilities(0, None)), 1)[0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_large_maps_are_computed_in_parts(monkeypatch):
    call = Projected(site="", heads=2, queries=torch.randn(1, 9, 8), keys=torch.randn(1, 5, 8), mask=None, grid=(3, 3))
    (whole,) = call.probabilities(0, None)
    monkeypatch.setattr("undertow.inspection.projections.CHUNK_SCORES", 20)
    parts = list(call.probabilities(0, None))
    assert [part.shape[1] for part in parts] == [2, 2, 2, 2, 1]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_hidden_tokens_are_as_if_they_were_not_there_in_their_box_and_row_alone(service):
    site = next(iter(service.unet.config.cross_attentions()))
    layer, seen = service.unet.get_submodule(site), []
    box, places = (0.0, 0.0, 0.5, 1.0), [1, 2, 3]
    first = 0

    def see(module, inputs, output):
        seen.append((inputs, output))

    request = [REQUEST, GenerationRequest(prompt="dog", steps=2, seed=5, size=(32, 48))]
    handle = layer.register_forward_hook(see)
    service.generate_many(request)
    (inputs, plain) = seen[0]
    seen.clear()
    handle.remove()
    probe = HiddenTokens(
        unet=service.unet, hidden=lambda reading: places, box=box, rows=lambda origin: origin.request == first
    )
    with probing(service, probe, _Watching(site, see)):
        results = service.generate_many(request)
    (_, replaced) = seen[0]
    rows, columns = service.unet.config.grid_of(site, 16, 24)
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[:, : columns // 2] = True
    inside = inside.flatten()
    kept = [index for index in range(77) if index not in places]
    x, given = inputs
    with torch.inference_mode():
        expected = layer.attend(x[:1], replace(given, context=given.context[:1, kept], text=None))
    torch.testing.assert_close(replaced[0, inside], expected[0, inside], atol=1e-5, rtol=1e-4)
    assert torch.equal(replaced[0, ~inside], plain[0, ~inside])
    assert torch.equal(replaced[1:], plain[1:])
    assert torch.equal(results[1].latents, service.generate_many(request)[1].latents)


class _Watching:
    def __init__(self, site, see):
        self.site, self.see = site, see

    def wants(self, rows):
        return True

    @contextmanager
    def attached(self, unet, rows):
        handle = unet.get_submodule(self.site).register_forward_hook(self.see)
        yield
        handle.remove()


def test_boxes_of_hidden_tokens_are_of_whole_pictures(service):
    probe = HiddenTokens(unet=service.unet, hidden=lambda reading: [1], box=(0.0, 0.0, 0.5, 1.0))
    with probing(service, probe), pytest.raises(InvalidInput, match="windows"):
        service.generate("red apple", steps=1, seed=3, size=(32, 64), views=Views())


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"layers": ("up_blok.*",)}, "did you mean 'up_blocks"),
        ({"heads": (64,)}, "has "),
    ],
)
def test_a_log_of_what_the_network_lacks_is_refused_at_once(service, choice, said):
    with pytest.raises(InvalidInput, match=said), service.log_attention_maps(**choice):
        pass


def test_a_log_says_which_cells_went_by_and_leaves_requests_alone(service):
    with service.log_attention_maps(cells=(999,)) as log:
        assert log.maps() == []
        service.generate("red apple", steps=1, seed=3)
    with pytest.raises(InvalidInput, match="cells is 999, expected sizes of these layers' maps: 8"):
        log.maps()


def test_what_a_request_lacks_is_refused_before_it_is_drawn(service, monkeypatch):
    monkeypatch.setattr(service.engine, "submit_together", None)
    with pytest.raises(InvalidInput, match="cells is 3, expected sizes of these layers' maps: 8"):
        service.visualize_attention("red apple", cells=(3,))


def test_the_steps_of_a_refiner_are_averaged_with_those_before():
    service, naive = service_of("sdxl", refiner="refiner"), Naive()
    with probing(service, naive), service.log_attention_maps() as probe:
        service.generate("red apple", steps=3, seed=3, refiner_switch=0.5)
    found = probe.maps()
    layers = [len(unet.config.cross_attentions()) for unet in (service.unet, service.refiner.require_unet())]
    weights = [maps.steps * count for maps, count in zip(found, layers, strict=True)]
    assert sum(maps.steps for maps in found) == 3
    total = sum(weight * maps.heat for weight, maps in zip(weights, found, strict=True)) / sum(weights)
    torch.testing.assert_close(total, naive.heat(0), **CLOSE)
    assert all([word.text for word in maps.reading.words] == ["red", "apple"] for maps in found)


@pytest.mark.parametrize("choice", [{"layers": ()}, {"heads": (-1,)}, {"steps": ()}])
def test_a_choice_of_nothing_is_refused(choice):
    with pytest.raises(InvalidInput):
        AttentionChoice(**choice)


def test_networks_without_text_have_no_maps(pixel_unet):
    with pytest.raises(InvalidInput, match="without text"):
        AttentionChoice().require_cross(pixel_unet, (8, 8))


@pytest.fixture
def pixel_unet():
    with torch.device("meta"):
        return UNet(UNetConfig.cifar10())
