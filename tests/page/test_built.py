"""The files of both pages that ship are those that were built of the sources that are there, and are small."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from undertow.serving.api.studio import static_files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "page"
STUDIO, TRY = ROOT / "src/undertow/serving/page", ROOT / "src/undertow/export/page"
SHARED = ("manifest.ts", "package.json", "package-lock.json", "tsconfig.json")
SOURCES = {STUDIO: (*SHARED, "index.html", "vite.config.ts", "src"), TRY: (*SHARED, "vite.try.config.ts", "try")}
"""As in page/vite.config.ts and page/vite.try.config.ts."""
MOST_BYTES = 100_000
MOST_BYTES_OF_THE_RUNTIME = 4_000_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("page", [STUDIO, TRY], ids=["studio", "try"])
def test_the_page_was_built_of_these_sources(page):
    """Else `make page`. What was built is as it was then."""
    built = json.loads((page / "built.json").read_text())
    found = [PAGE / name for name in SOURCES[page]]
    files = sorted(
        file.relative_to(PAGE).as_posix()
        for one in found
        for file in ([one] if one.is_file() else one.rglob("*"))
        if file.is_file()
    )
    listed = "".join(f"{name} {sha256((PAGE / name).read_bytes())}\n" for name in files)
    assert built["sources"] == sha256(listed.encode()), "page/ changed since it was built: run make page"
    there = {file.relative_to(page).as_posix(): sha256(file.read_bytes()) for file in page.rglob("*") if file.is_file()}
    there.pop("built.json")
    assert there == built["files"]
    if page == STUDIO:
        assert there.keys() == static_files().keys()


def test_it_is_small():
    together = sum(len(gzip.compress(file.content)) for file in static_files().values())
    assert together < MOST_BYTES, f"{together:,} bytes compressed"
    assert len((TRY / "runtime.wasm.gz").read_bytes()) < MOST_BYTES_OF_THE_RUNTIME
