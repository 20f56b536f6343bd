"""The whole way on PostgreSQL, from HTTP to a worker and over a restart. The store has tests of its own on both."""

from fastapi.testclient import TestClient

from undertow.serving.api.app import create_app
from undertow.serving.store.records import Scope


def client_of(place, secret):
    app = create_app(place.settings, place.store, artifact_folder=place.artifacts, catalog=place.catalog)
    return TestClient(app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {secret}"})


def test_jobs_are_submitted_drawn_listed_canceled_and_survive_a_restart(make_place, postgres_url):
    place = make_place(database=postgres_url)
    _, secret = place.store.keys.create("mine", (Scope.SUBMIT, Scope.READ))
    client, wanted = client_of(place, secret), {"prompt": "red apple", "seed": 1, "steps": 2}
    drawn, canceled, left = (
        client.put(f"/v1/jobs/{name}", json={**wanted, "label": name}).json() for name in ("drawn", "canceled", "left")
    )
    assert client.delete(f"/v1/jobs/{canceled['id']}").json()["state"] == "canceled"
    first = place.worker("first")
    place.run_until(first, drawn["id"], 1)
    first.pulse.beat()
    first.models.close()  # and says nothing more: it is dead

    again = make_place(database=postgres_url)  # another machine, which shares the folder
    again.artifacts = place.artifacts
    client = client_of(again, secret)
    assert client.put("/v1/jobs/left", json={**wanted, "label": "left"}).json()["id"] == left["id"]
    worker = again.worker("second", lost=("first",))
    again.finish(worker, drawn["id"], left["id"])
    listed = {job["label"]: job for job in client.get("/v1/jobs").json()["jobs"]}
    assert {name: job["state"] for name, job in listed.items()} == {
        "drawn": "succeeded",
        "canceled": "canceled",
        "left": "succeeded",
    }
    pictures = [listed[name]["pictures"][0] for name in ("drawn", "left")]
    assert pictures[0]["sha256"] == pictures[1]["sha256"]
    assert client.get(pictures[0]["url"]).content[:4] == b"\x89PNG"
    kinds = [event.kind for event in again.store.events(drawn["id"]) if event.kind != "progress"]
    assert kinds == ["accepted", "started", "requeued", "started", "succeeded"]
    other = again.store.keys.create("other", (Scope.READ,))[1]
    assert client_of(again, other).get(f"/v1/jobs/{drawn['id']}").status_code == 404
