"""Where changes live: slots, merged weights, the choice between them, the library and the state around all."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.lora.comparing import T1
from tests.adapters.lora.files import is_attention, kohya, layers_of, low_rank, normal, write
from tests.golden.minis import M15, TIMESTEPS, conditioning_for, latents_for, pair
from undertow import Adapter, AdapterCapacity, InvalidInput, UNetState
from undertow.adapters.files.library import Library
from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.bank import Bank
from undertow.adapters.lora.kind import LoraKind, choose_residency
from undertow.adapters.lora.lora_file import Lora, read_lora
from undertow.adapters.lora.merge import MergedWeights
from undertow.adapters.lora.targets import Targets
from undertow.adapters.lora.updates import LayerUpdates, ScaledUpdates
from undertow.adapters.lora.weight_dependent import WeightDecomposed
from undertow.adapters.manager import AdapterManager
from undertow.adapters.pictures import LatentGrid
from undertow.adapters.state import injection_points
from undertow.errors import UndertowError
from undertow.unet.conditioning import Ports

GRID = LatentGrid(cells=(8, 8), factor=2)


def small_unet():
    return copy.deepcopy(pair("M15")[0])


def changes(unet, title, rank, *, wanted=is_attention):
    """Random low-rank changes of some layers, like those of a file."""
    updates = {}
    for name, shape in layers_of(unet, wanted).items():
        down, up = low_rank(title + name, shape, rank)
        updates[name] = LowRank(down=down, up=up, scale=0.5)
    return LayerUpdates(key=title, title=title, updates=updates, factors={})


def predict(unet, weights=None):
    with torch.no_grad():
        ports = None if weights is None else Ports(weights=weights)
        return unet(latents_for(M15), TIMESTEPS, conditioning_for(M15), ports)


def test_rows_of_a_bank_equal_merged_weights():
    unet = small_unet()
    one, other = changes(unet, "one", 4), changes(unet, "other", 2, wanted=lambda name: True)
    rows = [
        [ScaledUpdates(layers=one, gain=0.7)],
        [ScaledUpdates(layers=other, gain=-0.5), ScaledUpdates(layers=one, gain=1.0)],
    ]
    expected = []
    for row in rows:
        merged = MergedWeights(unet)
        merged.set_active(row)
        expected.append(predict(unet))
        merged.set_active(())
    bank = Bank(unet, AdapterCapacity(slots=2, rank=4, per_row=2))
    found = predict(unet, bank.assign_slots(rows))
    for index, result in enumerate(expected):
        scale = max(1.0, float(result[index].abs().max()))
        torch.testing.assert_close(found[index], result[index], rtol=0, atol=T1 * scale)
    assert float((expected[0] - expected[1]).abs().max()) > 0.1


def test_rows_beside_each_other_share_a_run_unless_they_are_to_be_apart():
    unet = small_unet()
    bank = Bank(unet, AdapterCapacity(slots=2, rank=4, per_row=2))
    one = ScaledUpdates(layers=changes(unet, "one", 4), gain=1.0)
    other = ScaledUpdates(layers=changes(unet, "other", 2), gain=0.5)
    rows = [[one], [one, other], [], [other, one]]

    def runs(**options):
        found = bank.assign_slots(rows, **options).runs
        assert found is not None
        return [(run.start, run.stop, run.slot, run.gain) for run in found]

    assert runs() == [(0, 2, 0, 1.0), (3, 4, 1, 0.5), (1, 2, 1, 0.5), (3, 4, 0, 1.0)], "in each row's own order"
    assert runs(apart=True)[:2] == [(0, 1, 0, 1.0), (1, 2, 0, 1.0)]
    assert bank.assign_slots(rows, fixed_shapes=True).runs is None, "one graph for all"


def test_a_slot_holds_a_layer_s_change_times_the_factor_that_its_adapter_has_there():
    unet = small_unet()
    plain = changes(unet, "one", 4)
    layer, other = list(plain.updates)[:2]
    rows = [[ScaledUpdates(layers=replace(plain, key="scaled", factors={layer: -0.25}), gain=0.7)]]
    bank = Bank(unet, AdapterCapacity(slots=1, rank=4, per_row=1))
    bank.assign_slots(rows)
    for name, factor in ((layer, -0.25), (other, 1.0)):
        update, slots = plain.updates[name], bank._sites[name]
        held = slots.up[0] @ slots.down[0]
        expected = factor * update.scale * update.up.flatten(1) @ update.down.flatten(1)
        torch.testing.assert_close(held, expected, rtol=1e-5, atol=1e-6)


def test_who_was_not_used_for_longest_makes_room():
    unet = small_unet()
    bank = Bank(unet, AdapterCapacity(slots=2, rank=4, per_row=1))
    three = [changes(unet, title, 4) for title in ("a", "b", "c")]

    def use(*numbers):
        assert bank.assign_slots([[ScaledUpdates(layers=three[number], gain=1.0)] for number in numbers]) is not None

    use(0)
    use(1)
    use(0)
    use(2)
    assert [tenant.title for tenant in bank.tenants] == ["a", "c"]
    assert bank.writes == 3
    use(0, 2)
    assert bank.writes == 3, "what is there is not copied again"
    use(1, 2)
    assert {tenant.title for tenant in bank.tenants} == {"b", "c"}, "what this very batch needs is not evicted"


def test_a_slot_keeps_nothing_of_its_last_tenant():
    unet = small_unet()
    bank = Bank(unet, AdapterCapacity(slots=1, rank=8, per_row=1))
    large, small = changes(unet, "large", 8, wanted=lambda name: True), changes(unet, "small", 2)
    fresh = Bank(copy.deepcopy(unet), AdapterCapacity(slots=1, rank=8, per_row=1))
    bank.assign_slots([[ScaledUpdates(layers=large, gain=1.0)]])
    bank.assign_slots([[ScaledUpdates(layers=small, gain=1.0)]])
    fresh.assign_slots([[ScaledUpdates(layers=small, gain=1.0)]])
    for name in bank.sites:
        for part in ("down", "up"):
            assert torch.equal(getattr(bank._sites[name], part), getattr(fresh._sites[name], part)), name


def test_a_batch_without_adapters_has_no_weight_port():
    bank = Bank(small_unet(), AdapterCapacity(slots=1, rank=2, per_row=1))
    assert bank.assign_slots([[], []]) is None


def test_sites_are_chosen_by_pattern_and_must_exist():
    unet = small_unet()
    bank = Bank(unet, AdapterCapacity(slots=1, rank=2, per_row=1, sites=("*.attn2.*",)))
    assert bank.sites
    assert all(".attn2." in site for site in bank.sites)
    assert bank.size_bytes < Bank(small_unet(), AdapterCapacity(slots=1, rank=2, per_row=1)).size_bytes
    assert "has no slots" in bank.objection(changes(unet, "x", 2).updates)
    with pytest.raises(InvalidInput, match="attn9"):
        Bank(unet, AdapterCapacity(sites=("*.attn9.*",)))


@pytest.mark.parametrize("settings", [{"slots": 0}, {"rank": 0}, {"per_row": 3, "slots": 2}])
def test_impossible_capacities_are_refused(settings):
    with pytest.raises(InvalidInput, match="capacity"):
        AdapterCapacity(**settings)


def weights_of(unet):
    return {name: tensor.clone() for name, tensor in unet.named_parameters()}


def assert_equal(unet, before):
    for name, tensor in unet.named_parameters():
        assert torch.equal(tensor, before[name]), name


def decomposed(base: LayerUpdates, unet):
    updates = {
        name: WeightDecomposed(inner=update, magnitude=1.5 + normal(update.up.shape[0], seed=name).abs())
        for name, update in base.updates.items()
    }
    return LayerUpdates(key="dora", title="dora", updates=updates, factors={})


@settings(max_examples=4)
@given(gains=st.lists(st.floats(-3, 3), min_size=1, max_size=6), half=st.booleans())
def test_whatever_is_merged_the_base_comes_back_bit_for_bit(gains, half):
    unet = small_unet().to(torch.float16 if half else torch.float32)
    before, merged = weights_of(unet), MergedWeights(unet)
    one, other = changes(unet, "one", 4), changes(unet, "other", 2, wanted=lambda name: True)
    for index, gain in enumerate(gains):
        merged.set_active([ScaledUpdates(layers=(one, other)[index % 2], gain=gain)])
    merged.set_active(())
    assert_equal(unet, before)
    assert merged.pristine_bytes == 0


def test_what_looks_at_the_weight_is_merged_first_whatever_the_order():
    unet = small_unet()
    additive = changes(unet, "additive", 4)
    dora, merged = decomposed(changes(unet, "inner", 2), unet), MergedWeights(unet)
    found = []
    for order in ((dora, additive), (additive, dora)):
        merged.set_active([ScaledUpdates(layers=each, gain=0.8) for each in order])
        found.append(weights_of(unet))
        merged.set_active(())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6)


def test_a_merge_that_overflows_is_refused_and_changes_nothing():
    unet = small_unet().half()
    before, merged = weights_of(unet), MergedWeights(unet)
    merged.set_active([ScaledUpdates(layers=changes(unet, "fine", 2), gain=1.0)])
    with pytest.raises(UndertowError, match=r"huge merged, .* is no longer finite in torch\.float16"):
        merged.set_active([ScaledUpdates(layers=changes(unet, "huge", 2), gain=1e9)])
    assert_equal(unet, before)
    assert merged.present == ()
    assert merged.pristine_bytes == 0, "or a later merge would start from copies that may be stale"


def test_the_choice_and_its_reason():
    unet = small_unet()
    bank = Bank(unet, AdapterCapacity(slots=1, rank=4, per_row=1))
    fits, large = changes(unet, "fits", 4).updates, changes(unet, "large", 5).updates
    dora = decomposed(changes(unet, "inner", 2), unet).updates
    assert choose_residency("x", fits, bank, "auto").residency == "banked"
    assert choose_residency("x", fits, bank, "merged").residency == "merged"
    assert choose_residency("x", fits, None, "auto").reason == "added to the model's weights while it draws"
    assert "rank 5" in choose_residency("x", large, bank, "auto").reason
    assert "dora" in choose_residency("x", dora, bank, "auto").reason
    with pytest.raises(InvalidInput, match="adapter_capacity"):
        choose_residency("x", large, bank, "banked")


@pytest.fixture
def lora_files(tmp_path):
    unet = small_unet()
    layers = layers_of(unet, is_attention)
    return unet, [write(tmp_path / f"{rank}.safetensors", kohya(layers, rank=rank)) for rank in (2, 3, 4)]


def test_the_library_reads_a_file_once_and_forgets_what_was_not_used_for_longest(lora_files):
    unet, files = lora_files
    targets, read = Targets.of(unet), []

    def reading(source) -> Lora:
        read.append(Path(source).stem)
        return read_lora(source, targets)

    sizes = [read_lora(path, targets).size_bytes for path in files]
    library = Library(reading, budget_bytes=sizes[1] + sizes[2])
    first = library.get(files[0])
    assert library.get(files[0]) is first
    del first  # what is in use would be found again
    library.get(files[1])
    library.get(files[2])
    assert read == ["2", "3", "4"]
    assert len(library) == 2
    library.get(files[0])
    assert read[-1] == "2", "it had made room"
    files[0].write_bytes(files[1].read_bytes())
    assert library.get(files[0]).report.ranks == library.get(files[1]).report.ranks, "written anew, read anew"


def test_a_state_comes_back_bit_for_bit_with_slots_merges_and_masks(lora_files):
    unet, files = lora_files
    manager = AdapterManager(unet, None, capacity=AdapterCapacity(slots=2, rank=4, per_row=1))
    state = UNetState(unet, manager)
    base = state.snapshot()
    resolved = manager.resolve_each([Adapter(files[0]), Adapter(files[1], residency="merged")])
    weights = manager.kind(LoraKind).weight_rows([manager.tile(resolved, GRID).row(0, 1).inputs] * 2)
    state.attention_masks["left"] = torch.ones(2, 2)
    adapted, expected = state.snapshot(), predict(unet, weights)
    assert state.active_adapters == ("3", "2")
    assert adapted.hash != base.hash

    state.restore(base)
    assert state.hash == base.hash
    assert state.active_adapters == ()
    assert state.attention_masks == {}
    state.restore(adapted)
    assert state.hash == adapted.hash
    assert torch.equal(predict(unet, weights), expected)
    manager.unmerge()
    assert state.hash == base.hash, "what was merged at the snapshot is undone from the pristine copies"
    state.restore(adapted)
    manager.unmerge()
    assert state.hash == base.hash, "also when they had been let go"


def test_the_last_update_is_that_of_weights_and_slots(lora_files):
    """It moves when something is written, and only then."""
    unet, files = lora_files
    manager = AdapterManager(unet, None, capacity=AdapterCapacity(slots=1, rank=4, per_row=1))
    state = UNetState(unet, manager)
    base, moments = state.snapshot(), [state.last_update]

    def arrange(*adapters: Adapter) -> None:
        manager.prepare_weights([manager.tile(manager.resolve_each(adapters), GRID).row(0, 1)])

    merged, banked = Adapter(files[1], residency="merged"), Adapter(files[0])
    changes = {
        "merged": lambda: arrange(merged),
        "into a slot": lambda: arrange(merged, banked),
        "out of the weights": manager.unmerge,
        "out of the slots": manager.kind(LoraKind).bank.clear,
        "restored": lambda: state.restore(base),
    }
    for name, change in changes.items():
        change()
        moments.append(state.last_update)
        assert moments[-1] > moments[-2], name
    for idle in (manager.unmerge, arrange, state.snapshot):
        idle()
        assert state.last_update == moments[-1]
    arrange(merged, banked)
    moment = state.last_update
    arrange(merged, banked)
    assert state.last_update == moment, "all of it lies there already"


def test_a_snapshot_of_another_network_is_refused():
    unet, other = small_unet(), copy.deepcopy(pair("MXL")[0])
    snapshot = UNetState(other, AdapterManager(other, None)).snapshot()
    state = UNetState(unet, AdapterManager(unet, None))
    before = state.hash
    with pytest.raises(InvalidInput, match="this very U-Net"):
        state.restore(snapshot)
    assert state.hash == before


def test_injection_points_name_every_place():
    unet = small_unet()
    points = injection_points(unet)
    ports = {port: [p.name for p in points if p.port == port] for port in ("weights", "residuals", "image")}
    assert set(ports["weights"]) == set(layers_of(unet))
    assert len(ports["residuals"]) == 12 + 1, "SD1 stores twelve skips"
    assert len(ports["image"]) == 16, "IP-Adapters of SD1 count sixteen cross-attentions"
