"""Time and memory of loading an SD1.5-size U-Net from a float16 file, beside diffusers and a plain torch load.

Writes a synthetic file with random weights (1.6 GiB) into a temporary folder, warms the page cache, and loads it in a
process of its own for each row. Anonymous memory is what the process itself owns; pages of the mapped file, which the
system may drop, are told apart. The promise is "model and one tensor": the excess over the model is the last column.

    python benchmarks/loading.py [--repeats 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

METHODS = (
    "undertow, LDM file",
    "undertow, LDM file, no validation",
    "undertow, LDM file, mmap",
    "undertow, LDM file, mmap, no validation",
    "undertow, folder",
    "diffusers, folder",
    "diffusers, LDM file",
)
SAMPLE_S = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        print("| how | seconds | model MiB | peak own memory over start MiB | peak minus model MiB |")
        print("|---|---|---|---|---|", flush=True)
        for method in METHODS:
            print(row(method, folder, options.repeats), flush=True)


def prepare(folder: Path) -> None:
    """The same random weights as one LDM file and as a diffusers folder."""
    import torch

    from undertow import UNet, UNetConfig
    from undertow.checkpoints.write.convert import convert
    from undertow.checkpoints.write.unet_folder import save_unet

    with torch.device("meta"):
        unet = UNet(UNetConfig.sd15()).half()
    unet = unet.to_empty(device="cpu")
    for parameter in unet.parameters():
        parameter.data.normal_(std=0.02)
    save_unet(unet, folder / "pipeline" / "unet")
    convert(folder / "pipeline" / "unet", folder / "model.safetensors", "ldm")


def row(method: str, folder: str, repeats: int) -> str:
    runs = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--one", method, folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = statistics.median(run["seconds"] for run in runs)
    model, peak = runs[0]["model"], max(run["peak"] for run in runs)
    return f"| {method} | {seconds:.2f} | {model:.0f} | {peak:.0f} | {peak - model:.0f} |"


def measure(method: str, folder: Path) -> dict[str, float]:
    """Seconds and MiB of one load."""
    load = loader(method, folder)
    for file in folder.rglob("*.safetensors"):
        with file.open("rb", buffering=0) as handle:  # into the page cache
            while handle.read(2**24):
                pass
    start_memory = own_memory()
    peak, running = [start_memory], True

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], own_memory())
            time.sleep(SAMPLE_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    unet = load()
    seconds = time.perf_counter() - start
    running = False
    watcher.join()
    size = sum(parameter.nbytes for parameter in unet.parameters())
    return {"seconds": seconds, "model": size / 2**20, "peak": (peak[0] - start_memory) / 2**10}


def loader(method: str, folder: Path):
    """The function to time; its imports are done before."""
    import torch

    if method.startswith("undertow"):
        from undertow.checkpoints.read.loading import LoadOptions
        from undertow.checkpoints.read.unet_loading import load_unet_from

        options = LoadOptions(mmap="mmap" in method, validate="no validation" not in method)
        source = folder / ("pipeline" if "folder" in method else "model.safetensors")
        return lambda: load_unet_from(source, options)
    from diffusers import UNet2DConditionModel

    if "folder" in method:
        return lambda: UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet", torch_dtype=torch.float16)
    return lambda: UNet2DConditionModel.from_single_file(
        str(folder / "model.safetensors"),
        config=str(folder / "pipeline"),
        subfolder="unet",
        torch_dtype=torch.float16,
        local_files_only=True,
    )


def own_memory() -> float:
    """KiB of memory that is the process's own, without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1])
    raise RuntimeError("this kernel does not tell a process's own memory")


if __name__ == "__main__":
    main()
