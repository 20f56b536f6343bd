"""What a job is forecast to take: LoRA that slots have no room for are merged, of which copies are kept; rows of other
jobs share its forwards."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.adapters.lora.files import is_attention, kohya, layers_of, normal, write
from tests.services import service_of
from undertow import Adapter, GenerationRequest
from undertow.memory import weights
from undertow.memory.families import family
from undertow.memory.forecast import forecast
from undertow.memory.machine import Machine
from undertow.serving.capacity import Capacity, are_merged
from undertow.serving.catalog.entries import AdapterEntry, ModelEntry
from undertow.serving.catalog.reading import read_adapter
from undertow.serving.settings import ServerSettings

SD15 = ModelEntry(
    name="sd15",
    source="sd15",
    path=Path("sd15"),
    subject=family("sd15"),
    dtype="float32",
    vae_dtype="float32",
    family="sd1",
)


def lora(name: str = "style", rank: int | None = 16, layers: tuple[str, ...] = ("down.attn1.to_q",)) -> AdapterEntry:
    return AdapterEntry(
        name=name, path=Path(name), kind="LoRA", title="", files=(), layers=layers, rank=rank, stored_bytes=2**20
    )


def work_with(*loras: AdapterEntry, rows: int | None = 2, residency: str = "auto"):
    request = GenerationRequest(
        prompt="a cat",
        size=(64, 64),
        adapters=tuple(Adapter(source=one.name, residency=residency) for one in loras),  # pyright: ignore[reportArgumentType]
    )
    capacity = Capacity(ServerSettings(models={"emoji": "emoji"}, budget_bytes=10**10))
    return capacity.work_of(request, SD15, {one.name: one for one in loras}, rows)


@pytest.mark.parametrize(
    ("loras", "residency", "merged"),
    [
        ((lora(),), "auto", False),
        ((lora(), lora("other")), "auto", False),
        ((lora(), lora("other"), lora("third")), "auto", True),
        ((lora(rank=17),), "auto", True),
        ((lora(rank=None),), "auto", True),
        ((lora(),), "merged", True),
        ((), "auto", False),
    ],
)
def test_those_that_slots_have_no_room_for_are_merged(loras, residency, merged):
    work = work_with(*loras, residency=residency)
    assert (work.merged, work.loras, work.adapter_bytes) == (merged, len(loras), len(loras) * 2**20)


def test_what_another_adapter_asks_for_is_not_a_loras():
    adapters = (Adapter(source="style"), Adapter(source="edges", image=Path("edges.png"), residency="merged"))
    request = GenerationRequest(prompt="a cat", size=(64, 64), adapters=adapters)
    assert not are_merged(request, [lora()])
    assert are_merged(replace(request, adapters=(replace(adapters[0], residency="merged"),)), [lora()])


def test_copies_of_merged_weights_are_counted():
    def held(entry: AdapterEntry) -> int:
        return forecast(SD15.subject, work_with(entry), Machine()).stage("denoise").weight_bytes

    unet = SD15.subject.unet
    inside, everywhere = held(lora(rank=64)), held(lora(rank=64, layers=("down.resnets.0.conv1",)))
    assert everywhere - inside == 4 * (weights.unet_weights(unet) - weights.transformer_weights(unet))


def test_rows_of_other_jobs_share_its_forwards():
    assert [work_with(rows=rows).batch for rows in (None, 2, 16)] == [2, 2, 16]


def test_a_file_says_its_rank_and_its_size(tmp_path):
    layers = {name: shape for name, shape in layers_of(service_of("sd1").unet).items() if is_attention(name)}
    tensors = kohya(layers)
    entry = read_adapter(write(tmp_path / "plain.safetensors", tensors), "plain")
    downs = [tensor for name, tensor in tensors.items() if "lora_down" in name]
    assert entry.rank == max(tensor.shape[0] for tensor in downs)
    assert entry.stored_bytes == sum(tensor.nbytes for tensor in tensors.values())
    stem = next(name for name in tensors if "lora_down" in name).removesuffix(".lora_down.weight")
    outputs = tensors[f"{stem}.lora_up.weight"].shape[0]
    dora = {**tensors, f"{stem}.dora_scale": normal(outputs, 1, seed="dora")}
    assert read_adapter(write(tmp_path / "dora.safetensors", dora), "dora").rank is None
