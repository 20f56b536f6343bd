"""Departures as folders: replayed from a module's weights or by both models; of another version or damaged, refused."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.services import fresh_service
from undertow import CorruptFile, GenerationRequest, InvalidInput, UnknownCheckpoint
from undertow.inspection.bundle import DESCRIPTION, TENSORS, Bundle, read_bundle, replay, write_bundle
from undertow.inspection.departure_figure import save_departure_figure
from undertow.inspection.diff import compare

REQUEST = GenerationRequest(prompt="red apple", steps=1, seed=3, guidance_scale=1.0)
SIDE = {"source": "emoji", "adapters": []}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A departure of a norm whose epsilon was changed, and one of an attention whose heads were."""

    norm: Path
    heads: Path
    figure: Path


@pytest.fixture(scope="module")
def other():
    return fresh_service("sd1")


@pytest.fixture(scope="module")
def found(service, other, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    norm = other.unet.get_submodule("mid_block.resnets.0.norm1")
    attention = other.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    sides = {"a": SIDE, "b": SIDE}
    places = Found(norm=folder / "norm", heads=folder / "heads", figure=folder / "growth.png")

    def write(place: Path) -> None:
        comparison, caught = compare(service, other, REQUEST, alone=False)
        assert caught is not None
        write_bundle(place, comparison, caught, REQUEST, sides)
        if not places.figure.exists():
            layers = tuple(f"unet.{name}" for name in service.config.layer_names())
            save_departure_figure(comparison, layers, places.figure)

    norm.eps *= 1000
    write(places.norm)
    norm.eps /= 1000
    attention.heads //= 2
    write(places.heads)
    yield places
    attention.heads *= 2


def test_a_bundle_replays_from_the_weights_in_it(found):
    bundle = read_bundle(found.norm)
    assert bundle.module == "unet.mid_block.resnets.0.norm1"
    assert bundle.request == REQUEST
    assert {"step.latents", "step.timestep", "step.context", "module.input", "b.weight"} <= bundle.tensors.keys()
    seen = replay(bundle)
    assert seen.reproduced
    assert seen.now == pytest.approx(seen.then, rel=1e-3)
    assert max(seen.a, seen.b) < 1e-5
    assert "computed from its weights" in seen.sentence()


def test_weights_that_agree_here_do_not_reproduce_it(found):
    bundle = read_bundle(found.norm)
    settings = bundle.description["recomputed"]["settings"]
    settings["b"] = settings["a"]
    seen = replay(bundle)
    assert not seen.reproduced
    assert "not reproduced here" in seen.sentence()


def test_a_departure_in_code_is_replayed_by_both_models(found, service, other):
    """On the inputs of the step, without drawing."""
    bundle = read_bundle(found.heads)
    assert not bundle.is_self_contained
    with pytest.raises(InvalidInput, match="two models"):
        replay(bundle)
    assert replay(bundle, service, other).now == pytest.approx(bundle.description["departure"]["error"])
    assert not replay(bundle, service, service).reproduced


def changed(found: Found, tmp_path: Path, **description: object) -> Path:
    whole = json.loads((found.norm / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(whole | description))
    (tmp_path / TENSORS).write_bytes((found.norm / TENSORS).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("version", "remedy"), [(3, r"version 3.*reads version 2; pip install -U undertow"), (1, "write it again")]
)
def test_a_bundle_of_another_version_is_refused_with_the_remedy(found, tmp_path, version, remedy):
    with pytest.raises(UnknownCheckpoint, match=remedy):
        read_bundle(changed(found, tmp_path, version=version))


def test_damaged_bundles_are_refused(found, tmp_path):
    with pytest.raises(UnknownCheckpoint, match=r"no bundle\.json.*undertow diff A B --bundle"):
        read_bundle(tmp_path)
    with pytest.raises(UnknownCheckpoint, match="no bundle of a departure"):
        read_bundle(changed(found, tmp_path, format="a letter"))
    departure = json.loads((found.norm / DESCRIPTION).read_text())["departure"]
    for edited in ({"departure": {**departure, "module": "unet.conv_in"}}, {"tolerance": 1.0}):
        with pytest.raises(CorruptFile, match="it was edited since; copy the folder again"):
            read_bundle(changed(found, tmp_path, **edited))
    place = changed(found, tmp_path)
    data = bytearray((place / TENSORS).read_bytes())
    data[-1] ^= 1
    (place / TENSORS).write_bytes(bytes(data))
    with pytest.raises(CorruptFile, match=r"SHA-256 differs; copy the folder again"):
        read_bundle(place)
    (place / DESCRIPTION).write_text("{")
    with pytest.raises(CorruptFile, match="not JSON"):
        read_bundle(place)


def test_settings_that_do_not_go_with_the_tensors_are_refused(found):
    bundle = read_bundle(found.norm)
    bundle.description["recomputed"]["settings"]["a"]["num_groups"] = 7
    with pytest.raises(CorruptFile, match="cannot be computed"):
        replay(bundle)
    tensors = {name: one for name, one in bundle.tensors.items() if name != "module.input"}
    with pytest.raises(CorruptFile, match=r"module\.input is missing"):
        replay(Bundle(folder=bundle.folder, description=bundle.description, tensors=tensors))


def test_growth_is_drawn(found):
    """Its looks are those of docs/images/inside-departure.png."""
    assert found.figure.read_bytes().startswith(b"\x89PNG")


def test_tensors_of_a_bundle_are_plain(found):
    assert all(type(one) is torch.Tensor for one in read_bundle(found.norm).tensors.values())
