"""Changes a sample of lines, one at a time, and counts the changes that some test notices.

    python -m benchmarks.mutants [--rooms diffusion sampling nn unet engine] [--count 120] [--seed 0] [--workers 2]

The tests of a room run once under coverage; each mutant then meets the tests that execute its line, until one fails.
What is done is kept in out/mutants and not done again while src and tests stay as they are; a larger count only adds to
a smaller one. Writes docs/results/tests.md.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from .mutations import Mutant, places
from .page import write_page
from .selection import Selection, measure
from .trial import CONTROL, Room, try_all

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "mutants"

GOLDEN = "tests/golden"
ROOMS = {
    "diffusion": ["tests/diffusion", f"{GOLDEN}/test_schedulers.py", f"{GOLDEN}/test_more_schedulers.py"],
    "sampling": ["tests/sampling", f"{GOLDEN}/test_sampler_steps.py", f"{GOLDEN}/test_k_diffusion.py"],
    "nn": ["tests/nn", "tests/attention", "tests/unet", f"{GOLDEN}/test_unet.py", f"{GOLDEN}/test_guided_unet.py"],
    "unet": [
        "tests/unet",
        *(f"{GOLDEN}/test_{name}.py" for name in ("unet", "unet_config", "guided_unet", "t2i")),
    ],
    "engine": ["tests/engine", *(f"{GOLDEN}/test_{name}.py" for name in ("pipelines", "guided_pipelines"))],
}

IMPORTED_ONCE = (
    "torch",
    "torch._dynamo",
    "torchsde",
    "scipy.integrate",
    "beartype",
    "jaxtyping",
    "PIL.Image",
    "safetensors.torch",
    "transformers.models.clip.modeling_clip",
    "diffusers.schedulers",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
)
"""What takes long to import and does not import undertow."""

OPTIONS = ["-p", "no:cacheprovider", "--basetemp=temporary", "-Wignore::pytest.PytestAssertRewriteWarning"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=list(ROOMS))
    parser.add_argument("--count", type=int, default=120, help="mutants of each room, 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    for room in options.rooms:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            try_room(room, options.count, options.seed, options.workers, Path(folder))
        write_page(OUT, ROOT / "docs/results/tests.md", list(ROOMS))


def try_room(room: str, count: int, seed: int, workers: int, folder: Path) -> None:
    first = folder / "0"
    copy_tree(first)
    state = {"digest": digest(first), "seed": seed}
    store, contexts = OUT / f"{room}.jsonl", OUT / f"{room}-contexts.json"
    old = json.loads(store.read_text().splitlines()[0]) if store.exists() and contexts.exists() else {}
    if any(old.get(name) != value for name, value in state.items()):
        in_child(lambda: measure([*OPTIONS, *ROOMS[room]], f"src/undertow/{room}").save(contexts), first)
        header = state | {"room": room, "possible": len(places(first, f"src/undertow/{room}"))}
        store.write_text(json.dumps(header) + "\n")
    selection = Selection.load(contexts)
    done = {json.loads(line)["key"] for line in store.read_text().splitlines()[1:]}
    left = [one for one in sample(first, room, count, seed) if one.key not in done]
    print(f"{room}: {len(selection.seconds)} tests, {len(done)} mutants tried before, {len(left)} to try", flush=True)
    original = folder / "original"
    shutil.copytree(first / "src", original / "src")

    def record(mutant: Mutant, outcome: str, killer: str) -> None:
        if mutant.kind == CONTROL:
            if outcome != "survived":
                raise RuntimeError(f"a mutant that changes nothing was {outcome} by {killer or 'an import'}")
            return
        line = {"key": mutant.key, "file": mutant.file, "line": mutant.lines[0], "kind": mutant.kind}
        line |= {"change": mutant.change, "outcome": outcome, "killer": killer}
        line |= {"date": datetime.now(UTC).date().isoformat()}
        with store.open("a") as file:
            file.write(json.dumps(line) + "\n")

    shared = Room(options=OPTIONS, tests=ROOMS[room], selection=selection, original=original, record=record)
    trees = [first, *(folder / str(number) for number in range(1, workers))]
    for tree in trees[1:]:
        shutil.copytree(first, tree)
    started = [start(partial(try_all, left[number::workers], shared), tree) for number, tree in enumerate(trees)]
    ended = [os.waitpid(process, 0)[1] for process in started]
    if any(ended):
        raise SystemExit(f"the trials of {room} ended early")


def sample(root: Path, room: str, count: int, seed: int) -> list[Mutant]:
    found = places(root, f"src/undertow/{room}")
    random.Random(f"{seed} {room}").shuffle(found)
    mutants: dict[str, Mutant] = {}
    for place in found:
        if count and len(mutants) == count:
            break
        if mutant := place.mutant():
            mutants.setdefault(mutant.key, mutant)
    return list(mutants.values())


def copy_tree(tree: Path) -> None:
    """What git knows or would know, so that mutants never touch the sources."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def digest(tree: Path) -> str:
    total = hashlib.sha256()
    for path in sorted([*(tree / "src").rglob("*.py"), *(tree / "tests").rglob("*.py")]):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def start(run: Callable[[], None], tree: Path) -> int:
    """Forks a process at home in a copy of the tree; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(tree)
        sys.path[:] = [
            str(tree / "src"),
            *(path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "src"))),
        ]
        os.environ["PYTHONPATH"] = str(tree / "src")
        run()
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def in_child(run: Callable[[], None], tree: Path) -> None:
    if os.waitstatus_to_exitcode(os.waitpid(start(run, tree), 0)[1]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
