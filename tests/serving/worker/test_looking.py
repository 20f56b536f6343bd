"""Jobs that are looked into, and diagnoses: the same pictures to the byte, and what was seen beside them."""

import json
import threading
from io import BytesIO

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from tests.services import service_of
from undertow.inspection.profile import PEAK_SIDE
from undertow.serving.api.app import create_app
from undertow.serving.failures import FailureCode
from undertow.serving.jobs import JobState

ALL = {"attention_maps": {"words": ["apple"], "self_attention": True}, "activations": True, "debug": "sampler,layers"}


def files_of(place, id):
    """What was seen of a job, by name."""
    job = place.store.job(id)
    assert job.state is JobState.SUCCEEDED, job.failure
    found = {one.name: one for one in job.result.inspection}
    assert all(place.store.artifact(one.sha256, "key") == one.file for one in found.values())
    return found, {
        name: json.loads(place.artifacts.read(one.sha256)) for name, one in found.items() if name.endswith(".json")
    }


def probes_of(worker):
    engine = worker.models.take("tiny").engine
    return engine.probes, [one for one in worker.models.take("tiny").service.unet.modules() if one._forward_hooks]


def test_a_job_and_its_neighbors_keep_their_bytes_while_it_is_looked_into(make_place):
    place, other = make_place(), {"seed": 2, "adapters": [{"source": "one"}]}
    plain = place.draw(place.worker(), place.submit(seed=1), place.submit(**other))
    place = make_place()
    worker, inspected, beside = place.worker(), place.submit(seed=1, inspect=ALL), place.submit(**other)
    assert place.draw(worker, inspected, beside) == plain
    assert place.store.job(beside).result.report["rows"] == 4, "they shared forwards"
    assert probes_of(worker) == ([], [])
    assert place.store.job(beside).result.inspection == ()

    found, read = files_of(place, inspected)
    assert {(one.kind, name, one.picture) for name, one in found.items()} == {
        ("attention_maps", "attention-1.json", 0),
        ("attention_maps", "attention-1.png", 0),
        ("attention_maps", "attention-1.npz", 0),
        ("activations", "activations.json", None),
        ("activations", "activations.png", None),
        ("activations", "activations-film.png", None),
        ("debug", "debug.json", None),
    }
    expected = service_of("sd1").visualize_attention(
        "red apple", words=("apple",), seed=1, steps=3, size=(32, 32), self_attention=True
    )
    maps = read["attention-1.json"]
    assert maps["contexts"][0]["steps"] == 3
    np.testing.assert_allclose(maps["words"]["apple"]["heat"], expected.maps["apple"], atol=2e-5)
    arrays = np.load(BytesIO(place.artifacts.read(found["attention-1.npz"].sha256)))
    np.testing.assert_allclose(arrays["word apple"], expected.maps["apple"], atol=1e-5)
    assert any(name.startswith("entropy ") for name in arrays)
    with Image.open(BytesIO(place.artifacts.read(found["activations-film.png"].sha256))) as film:
        assert film.format == "PNG"
    names = service_of("sd1").unet.config.layer_names()
    assert list(read["activations.json"]["layers"]) == names
    assert all(len(one["std"]) == 3 for one in read["activations.json"]["layers"].values())
    layers = {(one["module"], one["side"]): one for one in read["debug.json"]["layers"]}
    assert layers["conv_out", "output"]["records"] == 2 * 3, "of its own rows, with and without the prompt"
    assert sum(line.startswith("[sampler]") for line in read["debug.json"]["lines"]) >= 3


def test_maps_of_a_job_whose_worker_was_lost_cover_every_step(make_place):
    place = make_place()
    id = place.submit(inspect={"attention_maps": True})
    place.run_until(place.worker("killed"), id, 2)
    place.draw(place.worker("second", lost=("killed",)), id)
    _, read = files_of(place, id)
    assert read["attention-1.json"]["contexts"][0]["steps"] == 3
    assert list(read["attention-1.json"]["words"]) == ["red", "apple"]
    assert place.store.job(id).result.replayed_steps == 0


def test_a_profile_is_of_the_job_alone(make_place, monkeypatch):
    monkeypatch.setitem(PEAK_SIDE, "cpu", 64)
    place = make_place()
    id, other = place.submit(inspect={"profile": True}), place.submit(seed=2)
    place.draw(place.worker(), id, other)
    _, read = files_of(place, id)
    profile = read["profile.json"]
    assert (profile["rows"], profile["forwards"]) == (4, 3)
    assert [span["kind"] for span in profile["timeline"] if span["kind"] != "encode"] == ["denoise"] * 3 + ["decode"]
    assert len(profile["layers"]) == len(service_of("sd1").unet.config.layer_names())


def test_words_in_another_order_fail_the_job_before_it_is_drawn_and_no_other(place):
    """Only tokens tell it; other mistakes are refused when the job is submitted."""
    maps, worker = {"words": ["apple red"]}, place.worker()
    id, other = place.submit(prompt="red apple", inspect={"attention_maps": maps}), place.submit(seed=2)
    place.draw(worker, other)
    (job,) = place.finish(worker, id)
    assert (job.failure.code, job.progress.step) == (FailureCode.INVALID_REQUEST, 0)
    assert "one behind the other" in job.failure.detail
    assert probes_of(worker) == ([], [])


def test_the_files_of_a_repeated_job_are_there_again(place):
    wanted = {"prompt": "red apple", "seed": 1, "steps": 1, "inspect": {"activations": True}}
    first, worker = place.submit(**{**wanted, "reuse": True}), place.worker()
    place.draw(worker, first)
    again = place.store.job(place.submit(**{**wanted, "reuse": True}))
    assert (again.state, again.result.reused) == (JobState.SUCCEEDED, True)
    assert again.result.inspection == place.store.job(first).result.inspection
    assert place.store.job(place.submit(**{**wanted, "reuse": True, "inspect": None})).state is JobState.QUEUED


def test_a_diagnosis_says_what_the_doctor_finds(place):
    """Guidance of 30 is one of the doctor's own planted faults."""
    app = create_app(place.settings, place.store, artifact_folder=place.artifacts, catalog=place.catalog)
    worker, stop = place.worker(), threading.Event()

    def work():
        while not stop.wait(0.01):
            worker.run_once()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with TestClient(app, base_url="http://127.0.0.1") as client:
            wanted = {"prompt": "red apple", "guidance_scale": 30.0, "steps": 1, "adapters": [{"source": "one"}]}
            answer = client.post("/v1/diagnose", json={**wanted, "only": ["guidance-high", "float16-headroom"]})
            found = answer.json()
            subject = client.post("/v1/jobs", json=wanted, headers={"Prefer": "wait=60"}).json()
            of_job = client.post(subject["links"]["diagnosis"], json={"only": "guidance-high"}).json()
            wrong = client.post("/v1/diagnose", json={**wanted, "only": ["guidance-hgh"]})
            never = client.post("/v1/diagnose", json={**wanted, "only": ["provenance"]})
            stored = client.get(client.get(answer.headers["location"]).json()["files"][0]["url"]).json()
    finally:
        stop.set()
        thread.join()
    assert answer.status_code == 200, answer.text
    assert [one["rule"] for one in found["findings"]] == ["guidance-high"]
    (finding,) = found["findings"]
    assert finding["changes"] == [{"where": "request", "name": "guidance_scale", "value": 5.0}]
    assert finding["evidence"]
    assert finding["prevention"]
    assert (found["model"], found["subject"], stored) == ("tiny", None, found)
    assert of_job["subject"] == subject["id"]
    assert [one["rule"] for one in of_job["findings"]] == ["guidance-high"]
    assert "did you mean 'guidance-high'" in wrong.json()["detail"]
    assert "only is 'provenance', expected a rule of nan, picture, slow, memory" in never.json()["detail"]
