"""How many functions of undertow lie between a call and its result: what a reader has to follow.

    python -m benchmarks.hops [--src FOLDER]

Counts the functions of the package that run, and their files, for latents through `predict_noise`, a prompt to its
picture, what a LoRA adds to that, and a path to a module. Comprehensions and lambdas count as part of the function
around them. --src: the `src` folder of another revision, for its numbers.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
Function = tuple[str, str]


def called(work: Callable[[], object], package: Path) -> set[Function]:
    """File and name of every function of the package that runs meanwhile."""
    found: set[Function] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(package)):
            name = code.co_qualname.split(".<locals>.<")[0]
            if not name.startswith("<"):
                found.add((code.co_filename, name))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=ROOT / "src")
    options = parser.parse_args()
    if os.environ.get("HOPS") != str(options.src):  # again, with that package
        environment = os.environ | {"HOPS": str(options.src), "PYTHONPATH": f"{options.src.resolve()}:{ROOT}"}
        sys.exit(subprocess.run([sys.executable, "-m", "benchmarks.hops", *sys.argv[1:]], env=environment).returncode)

    import torch

    import undertow

    package = Path(undertow.__file__).parent
    service = undertow.load("emoji", dtype=torch.float32)
    random, config = torch.Generator().manual_seed(0), service.config
    context = undertow.PredictionContext(
        latents=torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=random),
        timestep=500.0,
        text_embeddings=torch.randn(1, 16, 192, generator=random),
        negative_embeddings=torch.randn(1, 16, 192, generator=random),
    )
    lora = (undertow.Adapter("mosaic"),)
    plain = called(lambda: service.generate("red apple on white background", steps=2), package)
    work = {
        "latents through predict_noise": called(lambda: service.predict_noise(context), package),
        "a prompt to its picture": plain,
        "what a LoRA adds": called(lambda: service.generate("red apple", steps=2, adapters=lora), package) - plain,
        "a path to a module": called(lambda: undertow.load_unet(package / "models" / "digits-flow"), package),
    }
    for name, functions in work.items():
        print(f"{name:32} {len(functions):4} functions in {len({file for file, _ in functions}):3} files")


if __name__ == "__main__":
    main()
