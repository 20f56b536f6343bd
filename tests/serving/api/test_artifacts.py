"""Pictures by hash: fetched, cached, uploaded, and bombs refused."""

import hashlib
import struct
import zlib

import pytest

from tests.serving.api.stand_in import DRAWN, is_problem, picture_bytes

PNG = {"Content-Type": "image/png"}


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_a_picture_is_fetched_once_and_cached_for_good(api):
    job = api.submit()
    api.work()
    picture = api.client.get(f"/v1/jobs/{job['id']}").json()["pictures"][0]
    answer = api.client.get(picture["url"])
    assert hashlib.sha256(answer.content).hexdigest() == picture["sha256"]
    assert answer.headers["etag"] == f'"{picture["sha256"]}"'
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = api.client.get(picture["url"], headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = api.client.head(picture["url"])
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == picture["bytes"]


@pytest.mark.parametrize("name", ["0" * 64, "0" * 63, "x", "..a", "A" * 64])
def test_a_picture_that_there_is_not(api, name):
    is_problem(api.client.get(f"/v1/artifacts/{name}"), 404, "artifact_not_found")


def test_a_picture_whose_file_is_gone_is_not_there(api):
    job = api.submit()
    api.work()
    picture = api.client.get(f"/v1/jobs/{job['id']}").json()["pictures"][0]
    api.artifacts.path(picture["sha256"]).unlink()
    is_problem(api.client.get(picture["url"]), 404, "artifact_not_found", "submit the job again")


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_an_uploaded_picture_can_be_drawn_from(api, form):
    content = picture_bytes(form.upper(), (64, 64))
    answer = api.client.post("/v1/artifacts", content=content, headers={"Content-Type": f"image/{form}"})
    assert answer.status_code == 201
    upload = answer.json()
    assert (upload["width"], upload["height"], upload["bytes"]) == (64, 64, len(content))
    assert api.client.get(upload["url"]).content == content
    job = api.submit(image={"artifact": upload["sha256"]}, strength=0.5)
    assert job["request"]["image"] == {"artifact": upload["sha256"], "size": [64, 64]}


@pytest.mark.parametrize(
    ("content", "kind", "status", "code", "word"),
    [
        (bomb(50_000, 50_000), "image/png", 422, "invalid_request", "at most 16,777,216 pixels; make it smaller"),
        (bomb(8_000, 8_000), "image/png", 422, "invalid_request", "8000x8000"),
        (bomb(64, 64), "image/png", 422, "invalid_request", "damaged"),
        (b"", "image/png", 422, "invalid_request", "picture"),
        (b"%PDF-1.4", "image/png", 422, "invalid_request", "PDF"),
        (b"<svg></svg>", "image/png", 422, "invalid_request", "SVG"),
        (picture_bytes("GIF"), "image/png", 422, "invalid_request", "GIF"),
        (picture_bytes("PNG", (64, 64))[:-30], "image/png", 422, "invalid_request", "damaged"),
        (picture_bytes("JPEG"), "image/png", 415, "unsupported_media_type", "image/jpeg"),
        (picture_bytes(), "image/gif", 415, "unsupported_media_type", "image/png"),
        (picture_bytes(), "", 415, "unsupported_media_type", "image/png"),
    ],
)
def test_an_upload_that_is_no_picture_is_refused(api, content, kind, status, code, word):
    answer = api.client.post("/v1/artifacts", content=content, headers={"Content-Type": kind} if kind else {})
    is_problem(answer, status, code, word)


def test_a_bomb_inside_of_a_request_is_refused_before_it_is_decoded(api):
    import base64

    body = {**DRAWN, "image": base64.b64encode(bomb(50_000, 50_000)).decode()}
    is_problem(api.client.post("/v1/jobs", json=body), 422, "invalid_request", "at most 16,777,216 pixels")


def test_an_upload_has_a_bound_of_bytes_and_pixels(make_api):
    api = make_api(max_body_bytes=2000, max_pixels=64)
    is_problem(api.client.post("/v1/artifacts", content=b"x" * 3000, headers=PNG), 413, "too_large", "3,000")
    is_problem(
        api.client.post("/v1/artifacts", content=picture_bytes(size=(9, 8)), headers=PNG), 422, "invalid_request"
    )
    assert api.client.post("/v1/artifacts", content=picture_bytes(), headers=PNG).status_code == 201


def test_a_preview_is_asked_for_and_then_there(api):
    job = api.submit()["id"]
    first = api.client.get(f"/v1/jobs/{job}/preview")
    assert is_problem(first, 404, "preview_not_found", "come back")["may_retry"] is True
    assert api.store.job(job).preview_until > api.clock()
    asked = api.store.job(job).preview_until
    for ahead, later in ((5.0, False), (20.0, True)):  # a browser asks at every step; it is written now and then
        api.clock.ahead = ahead
        api.client.get(f"/v1/jobs/{job}/preview")
        assert (api.store.job(job).preview_until > asked) is later
    (claim,) = api.claim()
    api.artifacts.put_preview(job, picture_bytes("JPEG"))
    preview = api.client.get(f"/v1/jobs/{job}/preview")
    assert (preview.headers["content-type"], preview.headers["cache-control"]) == ("image/jpeg", "no-store")
    api.publish(claim)
    over = api.client.get(f"/v1/jobs/{job}/preview")
    assert is_problem(over, 404, "preview_not_found", "succeeded")["may_retry"] is False
