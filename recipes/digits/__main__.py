"""Trains both objectives on scikit-learn's digits, measures 1,000 samples of each, and writes docs/results/digits.md.

    python -m recipes.digits             trains what is not trained yet (runs/digits-ddpm, runs/digits-flow)
    python -m recipes.digits --install   also makes the two the models that ship in the package

What is measured is what ships: the averaged weights rounded to float16.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from undertow.checkpoints.read.class_model import ClassModel, load_class_model
from undertow.engine.class_pictures import sample_classes, sampling_settings
from undertow.engine.direct import SamplingSettings
from undertow.training.data import Digits
from undertow.training.evaluate import Fidelity, evaluate_samples
from undertow.training.figures import save_grid
from undertow.training.log import read_records
from undertow.training.pixel_models import train_pixel_model
from undertow.training.presets import preset
from undertow.training.run_folder import RunFolder, save_model

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
MODELS = ROOT / "src" / "undertow" / "models"

OBJECTIVES = ("ddpm", "flow")
PER_CLASS = 100
SHOWN_PER_CLASS = 8
FIRST_SEED = 1_000_000
GUIDANCE = 1.5

LEAST_ACCURACY = 0.97
LEAST_DIVERSITY = 0.8
MOST_COPIES = 0.10
MOST_MINUTES = 20


@dataclass(frozen=True, kw_only=True)
class Result:
    """One objective's figures."""

    model: ClassModel
    settings: SamplingSettings
    pixels: torch.Tensor
    fidelity: Fidelity
    steps: int
    training_seconds: float
    sampling_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the two runs")
    parser.add_argument("--install", action="store_true", help="make them the models that ship in the package")
    parser.add_argument("--machine", default=f"{torch.get_num_threads()} threads of {platform.machine()}")
    options = parser.parse_args()
    for objective in OBJECTIVES:
        trained(objective, options.runs / f"digits-{objective}")
    target = MODELS if options.install else options.runs / "float16"
    results = {name: measured(options.runs / f"digits-{name}", target / f"digits-{name}") for name in OBJECTIVES}
    save_grid(torch.cat([shown(result.pixels) for result in results.values()]), 10, RESULTS / "digits.png")
    (RESULTS / "digits.md").write_text(page(results, options.machine), encoding="utf-8")
    print(f"written: {RESULTS / 'digits.md'}, {RESULTS / 'digits.png'}, {target}")


def trained(objective: str, folder: Path) -> None:
    """Trains, or goes on training, unless the run is complete."""
    data = Digits()
    config = preset(data, data.open(), objective)
    resume = RunFolder(folder).checkpoints.is_dir()
    train_pixel_model(
        config, folder, resume=resume, cpu=True, on_record=lambda record: print(folder.name, record, flush=True)
    )


def measured(run: Path, shipped: Path) -> Result:
    """Writes the run's model in float16 to `shipped`, and measures that."""
    original = load_class_model(run)
    save_model(shipped, original.unet, original.scheduler, original.class_names, dtype=torch.float16)
    model = load_class_model(shipped, dtype=torch.float32)
    settings = sampling_settings(model.path, guidance=GUIDANCE)
    labels = [index % len(model.class_names) for index in range(PER_CLASS * len(model.class_names))]
    started = time.perf_counter()
    pixels = sample_classes(
        model,
        labels,
        range(FIRST_SEED, FIRST_SEED + len(labels)),
        settings,
        on_pictures=lambda count: print(f"{run.name}: {count} more samples", flush=True),
    )
    seconds = time.perf_counter() - started
    last = read_records(RunFolder(run).log)[-1]
    return Result(
        model=model,
        settings=settings,
        pixels=pixels,
        fidelity=evaluate_samples(
            pixels, torch.tensor(labels), training=Digits().open(), test=Digits().open(split="test")
        ),
        steps=last.step,
        training_seconds=last.seconds,
        sampling_seconds=seconds,
    )


def shown(pixels: torch.Tensor) -> torch.Tensor:
    """The first samples: rows of the ten digits."""
    return pixels[: 10 * SHOWN_PER_CLASS]


def page(results: dict[str, Result], machine: str) -> str:
    """docs/results/digits.md."""
    any_result = next(iter(results.values()))
    parameters = sum(parameter.numel() for parameter in any_result.model.unet.parameters())
    rows = [
        row("labeled as asked for", f"≥ {LEAST_ACCURACY:.0%}", results, lambda r: f"{r.fidelity.accuracy:.1%}"),
        row("diversity, real = 1", f"≥ {LEAST_DIVERSITY}", results, lambda r: f"{r.fidelity.diversity:.2f}"),
        row("copies", f"< {MOST_COPIES:.0%}", results, lambda r: f"{r.fidelity.copies:.1%}"),
        row("training, minutes", f"< {MOST_MINUTES}", results, lambda r: f"{r.training_seconds / 60:.1f}"),
        row("optimizer steps", "", results, lambda r: f"{r.steps:,}"),
        row("sampler, steps", "", results, lambda r: f"{r.settings.sampler}, {r.settings.steps}"),
        row("sampling 1,000 pictures, seconds", "", results, lambda r: f"{r.sampling_seconds:.0f}"),
    ]
    fidelity = any_result.fidelity
    return f"""# Digits: both objectives, trained and measured

A class-conditional U-Net of {parameters:,} parameters (16x16 pixels, widths 32, 64, 64) trained on the 1,442 training
pictures of scikit-learn's handwritten digits, once for DDPM (v-prediction, cosine schedule, min-SNR weights) and once
as a rectified flow (logit-normal timesteps). 1,000 samples of each, 100 per class, guidance {GUIDANCE:g}, seeds from
{FIRST_SEED:,}. Measured are the shipped float16 weights.

    python -m recipes.digits --install

{datetime.now(UTC).date().isoformat()}, torch {torch.__version__}, {machine}.
The same seed and number of threads give the same weights.

| | wanted | {" | ".join(results)} |
| --- | --- | {" | ".join("---" for _ in results)} |
{chr(10).join(rows)}

How it is measured (`undertow.training.evaluate`):

- *Labeled as asked for*: share of samples that an SVC (scikit-learn, RBF kernel, C = 10), trained on the real training
  pictures, gives the label they were drawn with. The SVC is right on {fidelity.test_accuracy:.1%} of the 355 real
  test pictures.
- *Diversity*: mean distance of a sample to its nearest neighbor among the 100 samples of its class, divided by the same
  for 100 real pictures per class ({fidelity.real_distance:.2f}; Euclidean, pixels in [-1, 1]).
- *Copies*: share of samples nearer to a training picture than {fidelity.copy_distance:.2f}, the 1st percentile of the
  training pictures' own nearest-neighbor distances. Of the real test pictures, which are no copies,
  {fidelity.test_copies:.1%} are that near.

Samples, not chosen: the first {SHOWN_PER_CLASS} rows of digits by {results_names(results)}. Both start from the same
noise, and almost the same digits come out: with the same pictures to learn from, both learn nearly the same map.

![Rows of the ten digits, drawn by both models](digits.png)
"""


def row(name: str, wanted: str, results: dict[str, Result], value: Callable[[Result], str]) -> str:
    return f"| {name} | {wanted} | {' | '.join(value(result) for result in results.values())} |"


def results_names(results: dict[str, Result]) -> str:
    return f", the first {SHOWN_PER_CLASS} by ".join(results)


if __name__ == "__main__":
    main()
