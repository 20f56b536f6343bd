"""Whether the same requests still give the same bits as at another revision.

    python -m benchmarks.bits --against REVISION

Draws 24 unlike requests with the embedded emoji model (every kind of request, adapters of every kind, regions, views,
high resolution, several samplers and guidance methods) and predicts noise with tiny random SD1, SD2 and SDXL
pipelines, in float32 on one thread, once with the code as it is and once with the `src` of the other revision, and
names what differs. The SHA-256 of the latents are kept in out/bits.json; they depend on the processor, so they are
compared on one machine only. Exits with 1 when something differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "bits.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="only record when left out")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="", help="names that contain this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bits-") as place:
        adapters = Path(place) / "adapters"
        now = hashes(ROOT, adapters, options.only)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(now, indent=1) + "\n")
        if options.against is None:
            print(f"{len(now)} recorded in {options.out}")
            return
        then = hashes(checked_out(options.against, Path(place)), adapters, options.only)
    different = [name for name in now | then if now.get(name) != then.get(name)]
    for name in now:
        print(f"{'differs' if name in different else 'equal':8} {name}")
    print(f"{len(now) - len(different)} of {len(now)} equal to {options.against}")
    sys.exit(bool(different))


def checked_out(revision: str, place: Path) -> Path:
    """A tree with the `src` of a revision, and with its `tests`, whose tiny pipelines are built with it."""
    archive = subprocess.run(["git", "archive", revision, "src", "tests"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", place], input=archive.stdout, check=True)
    return place


def hashes(tree: Path, adapters: Path, only: str) -> dict[str, str]:
    """SHA-256 of the result of each case, by its name, with the code in a tree."""
    environment = os.environ | {
        "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.bits.record", str(adapters), only]
    found = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
