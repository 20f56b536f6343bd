"""The API and the worker in one process, with the same classes."""

import json
import threading
import time
import urllib.request

from tests.serving.worker.places import open_place
from undertow.serving.worker.process import run_in_one_process
from undertow.serving.worker.supervisor import listening


def test_a_client_gets_a_picture_from_one_process(catalog, tmp_path):
    open_place(tmp_path, catalog).store.close()  # with costs, so that nothing is measured
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    settings = catalog.settings.from_json({**catalog.settings.to_json(), "data": str(tmp_path), "port": port})
    stop = threading.Event()
    service = threading.Thread(target=run_in_one_process, args=(settings, stop))
    service.start()
    try:
        job = post(f"http://127.0.0.1:{port}/v1/jobs", {"prompt": "red apple", "steps": 2})
        assert job["state"] == "succeeded"
    finally:
        stop.set()
        service.join(30)
    assert not service.is_alive()


def post(url, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", "Prefer": "wait=60"}
    )
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=90) as found:
                return json.load(found)
        except (ConnectionError, OSError):
            assert time.monotonic() < until
            time.sleep(0.1)
