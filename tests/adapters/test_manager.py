"""The manager knows no kind by name: a fourth one is a class in its table, and a file is opened and read once."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.adapters.beside import control_file, picture, prompt_file
from tests.adapters.lora.files import is_attention, kohya, layers_of, write
from tests.golden.minis import M15, build, conditioning_for, latents_for
from undertow import Adapter
from undertow.adapters.files import opened as opening
from undertow.adapters.kind import AdapterKind, RowAdapters, RowInput
from undertow.adapters.kinds import KINDS
from undertow.adapters.lora import planned_layer
from undertow.adapters.manager import AdapterManager
from undertow.adapters.pictures import LatentGrid
from undertow.checkpoints.files import weights
from undertow.engine.forward import forward
from undertow.engine.rows import Row
from undertow.errors import InvalidInput
from undertow.unet.conditioning import Residuals

SIDE = 16
GRID = LatentGrid(cells=(SIDE, SIDE), factor=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Offset:
    """A number that is added behind the middle block."""

    path: Path
    content_hash: str
    value: float
    size_bytes: int = 4
    title: str = "Offset"


@dataclass(frozen=True, kw_only=True, eq=False)
class OffsetInput(RowInput):
    value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedOffset:
    adapter: Adapter
    loaded: Offset

    def note(self, *, guided):
        return "an offset"

    def tile(self, grid):
        return self

    def rows(self, window, step, steps, *, conditional):
        gain = self.adapter.gain(step, steps) * self.adapter.factor("middle")
        return (OffsetInput(value=gain * self.loaded.value),) if gain and conditional else ()


class OffsetKind(AdapterKind[Offset, ResolvedOffset, OffsetInput]):
    loaded, resolved, inputs = Offset, ResolvedOffset, (OffsetInput,)

    @staticmethod
    def identify(opened):
        return "an offset" if "offset" in opened.names else None

    def read(self, opened):
        return Offset(path=opened.path, content_hash=opened.content_hash(), value=float(opened.weights.read("offset")))

    def points(self, loaded):
        return ("middle",)

    def resolve(self, adapter, loaded, *, hint=None, layers=None):
        return ResolvedOffset(adapter=adapter, loaded=loaded)

    def ports(self, rows, inputs, ports, runner, at_once):
        totals = torch.tensor([sum(one.value for one in row) for row in inputs])
        if not totals.any():
            return ports
        shape = rows[0].unet.config.skip_shapes(*rows[0].latents.shape[2:])[-1]
        return replace(ports, residuals=Residuals(middle=totals[:, None, None, None].expand(-1, *shape)))


@pytest.fixture(scope="module")
def unet():
    return build(M15).requires_grad_(False)


@pytest.fixture(scope="module")
def files(unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    save_file({"offset": torch.tensor(2.0)}, folder / "offset.safetensors")
    return {
        "lora": write(folder / "style.safetensors", kohya(layers_of(unet, is_attention))),
        "control": control_file(folder / "edges", unet, seed=1),
        "image_prompt": prompt_file(folder / "look.safetensors", unet, seed=2),
        "offset": folder / "offset.safetensors",
    }


def rows_with(unet, *adapters):
    return [
        Row(
            unet=unet,
            latents=latents_for(M15, SIDE, SIDE, batch=1),
            timestep=torch.tensor([500.0]),
            conditioning=conditioning_for(M15, batch=1),
            adapters=each,
        )
        for each in adapters
    ]


def test_a_fourth_kind_is_a_class_in_the_table(unet, files):
    manager = AdapterManager(unet, None, kinds=(OffsetKind, *KINDS))
    half = Adapter(files["offset"], name="half", scale=0.5)
    resolved = manager.resolve((half, Adapter(files["lora"]))).adapters
    assert [one.note(guided=True) for one in resolved] == ["an offset", "added to the model's weights while it draws"]
    assert manager.summarize((half,))[0].points == ("middle",)
    with pytest.raises(InvalidInput, match=r"blocks of offset is 'skips\.0'"):
        manager.resolve((Adapter(files["offset"], blocks={"skips.0": 1.0}),))
    tiled = manager.tile(resolved[:1], GRID)
    on, off = tiled.row(0, 1), tiled.row(0, 1, conditional=False)
    assert off.inputs == ()
    first, second, plain = (one.prediction for one in forward(rows_with(unet, on, off, RowAdapters()), manager))
    assert torch.equal(second, plain)
    assert (first - plain).abs().max() > 1e-3
    ports = manager.ports(rows_with(unet, on, off))
    assert ports.residuals.middle.amax((1, 2, 3)).tolist() == [1.0, 0.0]
    assert AdapterManager(unet, None).ports(rows_with(unet, off)).residuals is None
    (edges,) = manager.resolve((Adapter(files["control"], image=picture(1)),)).adapters
    both, alone = (manager.tile(those, GRID).row(0, 1) for those in ((edges, resolved[0]), (edges,)))
    middle = manager.ports(rows_with(unet, both, alone)).residuals.middle
    torch.testing.assert_close(middle[0], middle[1] + 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "control", "image_prompt"])
def test_a_file_is_opened_once_and_every_layer_built_once(kind, unet, files, monkeypatch):
    """Identified, read and hashed from one opening; once in memory, not opened again."""
    counts = Counter()

    def counted(module, name):
        original = getattr(module, name)

        def spy(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    counted(weights, "read_header")
    counted(opening, "locate")
    counted(planned_layer, "build_update")
    manager = AdapterManager(unet, None)
    image = None if kind == "lora" else picture(1)
    for _ in range(2):
        manager.resolve((Adapter(files[kind], image=image),))
    assert counts["locate"] == 1
    assert counts["read_header"] == 1 + (kind == "image_prompt"), "an IP-Adapter has an image encoder too"
    assert counts["build_update"] == (len(layers_of(unet, is_attention)) if kind == "lora" else 0)
