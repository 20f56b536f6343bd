"""The embedded model pruned and taught again: its size, its speed, and what its pictures show.

    python -m benchmarks.pruning [--widths 0.75] [--steps 200] [--out runs/pruning] [--page docs/results/compression.md]

For each width: `emoji` is pruned as by `undertow prune --width`, drawn with, recovered by feature distillation from the
unpruned model for so many steps (a run that was interrupted goes on), and drawn with again. The same prompts and seeds
for all; seconds of a forward are medians of turns; one thread.
"""

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.lib.timing import interleaved_medians
from recipes.emoji.draw import draw
from recipes.emoji.editions import FIRST
from recipes.emoji.evaluate import Kind, kinds, measure
from recipes.emoji.render import FONT, Glyphs
from recipes.emoji.sections import replace_section
from recipes.emoji.text_to_image import TextToImage
from recipes.emoji.turbo import training_pictures
from undertow.checkpoints.read.model import LoadedModel
from undertow.checkpoints.read.model_loading import load_model
from undertow.embedded import embedded_models
from undertow.training.captioned import CaptionedPictures
from undertow.training.distillation import DistillationSettings, train_distilled
from undertow.training.distillation_export import write_with_unet
from undertow.training.feature_distillation import FeatureDistillation
from undertow.training.fit import FitSettings
from undertow.training.pruning.prune import PruningSettings, prune
from undertow.unet.conditioning import Conditioning
from undertow.unet.unet import UNet

PICTURES = 1024
ROWS = 2
"""Of a forward that is timed: the two of classifier-free guidance."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A U-Net and what is said of it. note: how it was made."""

    name: str
    note: str
    unet: UNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.75])
    parser.add_argument("--steps", type=int, default=200, help="of recovery, 32 pictures each")
    parser.add_argument("--prompts", type=int, default=200, help="of each kind: one emoji, and two")
    parser.add_argument("--repeats", type=int, default=51, help="forwards that are timed")
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"), help="of the runs of recovery")
    parser.add_argument("--page", type=Path, help="replace its section `pruned`")
    parser.add_argument("--machine", default=platform.machine(), help="for the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    glyphs = Glyphs(FONT)
    glyphs.require()
    model = load_model(embedded_models()["emoji"], dtype=torch.float32, channels_last=True)
    pictures = training_pictures(PICTURES, FIRST, glyphs)
    versions = list(_versions(model, pictures, options))
    seconds = interleaved_medians({one.name: _forward(one.unet) for one in versions}, options.repeats)
    lines = [
        "| U-Net | weights | size in f16 | a forward | one emoji right | two right | how it was made |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = seconds[versions[0].name]
    for version in versions:
        count = sum(one.numel() for one in version.unet.parameters())
        taken = seconds[version.name]
        shares = [_share(model, version.unet, kind, glyphs) for kind in _kinds(options.prompts)]
        speed = f"{1000 * taken:.1f} ms ({taken / whole:.0%})".replace("%", " %")
        row = (version.name, f"{count:,}", f"{2 * count / 2**20:.1f} MiB", speed, *shares, version.note)
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    if options.page is not None:
        widths = " ".join(f"{width:g}" for width in options.widths)
        command = f"python -m benchmarks.pruning --widths {widths} --steps {options.steps} --prompts {options.prompts}"
        head = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {options.machine}, one thread."
        page = replace_section(options.page.read_text(encoding="utf-8"), "pruned", "\n".join([head, "", *lines]))
        options.page.write_text(page, encoding="utf-8")


def _versions(model: LoadedModel, pictures: CaptionedPictures, options: argparse.Namespace) -> Iterator[Version]:
    yield Version(name="emoji", note="as it ships", unet=model.require_unet())
    for width in options.widths:
        settings = PruningSettings(width=width, batches=16, batch_size=16)
        found = prune(model, pictures, settings, on_stage=lambda title: print(title, flush=True))
        widths = ", ".join(map(str, found.unet.config.block_out_channels))
        note = f"channels {widths}; predictions {found.error:.1%} apart".replace("%", " %")
        yield Version(name=f"width {width:g}", note=note, unet=found.unet)
        steps, folder = options.steps, options.out / f"{width:g}"
        if steps:
            recovered = _recovered(model, pictures, found.unet, steps, folder)
            yield Version(name=f"width {width:g}, recovered", note=f"{steps} steps of 32 pictures", unet=recovered)


def _recovered(model: LoadedModel, pictures: CaptionedPictures, start: UNet, steps: int, folder: Path) -> UNet:
    settings = DistillationSettings(
        fit=FitSettings(
            steps=steps, batch_size=32, learning_rate=5e-4, warmup_steps=20, ema_decay=0.99, checkpoint_every=50
        ),
        method=FeatureDistillation(unet=start.config),
        timesteps="logit_normal",
        min_snr_gamma=2.0,
    )
    unet = train_distilled(model, pictures, settings, folder, start=start, on_record=lambda one: print(one, flush=True))
    if not (folder / "model").is_dir():
        write_with_unet(unet, model, folder / "model")
    return unet.eval()


def _forward(unet: UNet) -> Callable[[], object]:
    config = unet.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(ROWS, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    context = torch.randn(ROWS, 16, config.context_dim or 0, generator=generator)
    given = Conditioning(context=context)

    @torch.inference_mode()
    def forward() -> object:
        return unet(latents.to(memory_format=torch.channels_last), 500.0, given)

    return forward


def _kinds(prompts: int) -> tuple[Kind, Kind]:
    one, _, two = kinds(prompts)
    return one, two


def _share(model: LoadedModel, unet: UNet, kind: Kind, glyphs: Glyphs) -> str:
    """Pictures with the right emoji and background, of the prompts of a kind."""
    (text,) = model.require_text().encoders
    networks = TextToImage(text, unet.eval())
    found = measure(kind, lambda captions, seeds: draw(networks, model.require_vae(), captions, seeds), glyphs)
    return f"{found.right:.1%}".replace("%", " %")


if __name__ == "__main__":
    main()
