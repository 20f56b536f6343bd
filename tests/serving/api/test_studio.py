"""The page's files over HTTP, and what the API has for it: choices, adapters that are dropped, places in the queue."""

import pytest
import torch
from safetensors.torch import save

from tests.serving.api.stand_in import DRAWN, is_problem, open_api
from undertow.serving.api.studio import POLICY, static_files
from undertow.serving.catalog.catalog import Catalog
from undertow.serving.settings import ServerSettings


@pytest.fixture
def offering(tmp_path):
    """An API whose catalog looks into its own folder."""
    api = open_api(tmp_path, Catalog(ServerSettings(data=tmp_path)))
    yield api
    api.close()


BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0_"


def lora(wide: int, text: str = "attn2_to_k", *, stem: str | None = None, rank: int = 2) -> bytes:
    """A file of a LoRA for a model whose text is so wide. rank: of its second factor; the first one's is 2."""
    stem = BLOCK + text if stem is None else stem
    return save({f"{stem}.lora_down.weight": torch.zeros(2, wide), f"{stem}.lora_up.weight": torch.zeros(32, rank)})


def put(api, name: str, content: bytes, **more):
    headers = {"Content-Type": "application/octet-stream", **more.pop("headers", {})}
    return api.client.put(f"/v1/adapters/{name}", content=content, headers=headers, **more)


def test_the_page_is_public_and_may_load_nothing_from_elsewhere(api):
    api.key("somebody")
    assert api.client.get("/v1/models").status_code == 401
    answer = api.client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == POLICY
    assert "http:" not in POLICY
    assert "unsafe" not in POLICY
    for name in static_files():
        asset = api.client.get("/" + name.replace("index.html", ""))
        assert asset.status_code == 200
        assert asset.content == static_files()[name].content
        assert asset.headers["content-encoding"] == "gzip"
        assert asset.headers["cache-control"].endswith("immutable") is name.startswith("assets/")
        assert api.client.get(asset.url, headers={"If-None-Match": asset.headers["etag"]}).status_code == 304
    plain = api.client.get("/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["etag"] != answer.headers["etag"]


def test_nothing_but_the_page_is_served(api):
    for path in ("/assets/nothing.js", "/assets/..%2F..%2Fstudio.py", "/assets/%2Fetc%2Fpasswd"):
        is_problem(api.client.get(path), 404, "not_found")


def test_a_service_without_a_page_has_none(make_api):
    is_problem(make_api(page=False).client.get("/"), 405, "method_not_allowed")


def test_choices_are_what_a_request_may_say(api):
    reader = api.key("reader", "read")
    found = api.client.get("/v1/choices", headers=reader).json()
    assert found["key"] == {"name": "reader", "scopes": ["read"]}
    assert found["limits"]["max_steps"] == api.settings.max_steps
    writer = api.key("writer", "submit")
    for sampler in [one["name"] for one in found["samplers"]][:3]:
        for schedule in found["schedules"][:2]:
            wanted = {**found["request"], **DRAWN, "sampler": sampler, "schedule": schedule, "seed": 1}
            assert api.client.post("/v1/plan", json=wanted, headers=writer).status_code == 200, (sampler, schedule)


def test_an_adapter_that_fits_is_offered_at_once(offering):
    wide = offering.app.state.parts.catalog.model("emoji").subject.unet.context_dim
    answer = put(offering, "mine.safetensors", lora(wide), params={"model": "emoji"})
    assert (answer.status_code, answer.json()["kind"]) == (201, "LoRA"), answer.text
    assert (offering.settings.data / "adapters" / "mine.safetensors").is_file()
    assert "mine" in [one["name"] for one in offering.client.get("/v1/adapters").json()["adapters"]]
    offering.submit(adapters=["mine"])
    assert put(offering, "mine.safetensors", lora(wide)).status_code == 201  # the same file again
    is_problem(put(offering, "mine", lora(wide, "attn2_to_v")), 422, "invalid_request", "no other adapter")


def test_an_adapter_that_was_added_can_be_removed_and_no_other(offering):
    wide = offering.app.state.parts.catalog.model("emoji").subject.unet.context_dim
    safetensors = {"Content-Type": "application/x-safetensors"}
    assert put(offering, "mine", lora(wide), headers=safetensors).status_code == 201
    assert offering.client.delete("/v1/adapters/mine").status_code == 204
    assert not list((offering.settings.data / "adapters").iterdir())
    is_problem(offering.client.post("/v1/jobs", json={**DRAWN, "adapters": ["mine"]}), 422, "invalid_request", "mine")
    is_problem(offering.client.delete("/v1/adapters/mine"), 404, "not_found", "'mine'")
    is_problem(offering.client.delete("/v1/adapters/mosaic"), 409, "adapter_not_uploaded", "'mosaic'")


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("sdxl.safetensors", lora(2048), "adapter_mismatch", ["LoRA", "2048 wide", "emoji"]),
        ("torn.safetensors", lora(64)[:50], "unreadable_file", ["torn.safetensors cannot be used"]),
        ("notes.safetensors", b"hello", "unreadable_file", []),
        ("half", save({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}), "unreadable_file", ["lora_unet_x", "down"]),
        ("ranks", lora(64, rank=3), "unreadable_file", ["2x64 and 32x3", "no rank in common"]),
        ("other", lora(64, stem="lora_unet_x"), "adapter_mismatch", ["the layer lora_unet_x is none of its U-Net"]),
        ("..%2Fup", b"", "not_found", []),
        (".hidden", lora(64), "invalid_request", ["rename"]),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_with_the_reason(api, name, content, code, words):
    status = {"not_found": 404}.get(code, 422)
    is_problem(put(api, name, content), status, code, *words)
    folder = api.settings.data / "adapters"
    assert not folder.exists() or not list(folder.iterdir())


def test_a_file_that_is_too_large_is_not_kept(make_api):
    api = make_api(max_adapter_bytes=1024)
    is_problem(put(api, "large", bytes(2000)), 413, "too_large", "1,024")
    assert not list((api.settings.data / "adapters").iterdir())


def test_a_job_that_waits_can_be_drawn_earlier(api):
    ann, bob = api.key("ann"), api.key("bob")
    first, second = api.submit(ann, seed=1)["id"], api.submit(ann, seed=2)["id"]
    is_problem(api.client.patch(f"/v1/jobs/{second}", json={"priority": 5}, headers=bob), 404, "job_not_found")
    changed = api.client.patch(f"/v1/jobs/{second}", json={"priority": 5}, headers=ann)
    assert (changed.status_code, changed.json()["priority"]) == (200, 5)
    assert [one.id for one in api.store.queue()] == [second, first]
    events = [(one.kind, one.data) for one in api.store.events(second)]
    assert events[-1] == ("progress", {"priority": 5})
    assert [claim.job.id for claim in api.claim(1)] == [second]
    again = api.client.patch(f"/v1/jobs/{second}", json={"priority": 1}, headers=ann)
    is_problem(again, 409, "job_not_waiting", "running")
    for wrong, words in (
        ({"priority": 11}, "from -10 to 10"),
        ({"priority": "high"}, "a number"),
        ({}, "missing"),
        ({"prompt": "x"}, "expected a field of a change of a job"),
    ):
        is_problem(api.client.patch(f"/v1/jobs/{first}", json=wrong, headers=ann), 422, "invalid_request", words)
