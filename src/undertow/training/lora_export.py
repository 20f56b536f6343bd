"""A LoRA that was trained, as the record that is written into a file."""

from torch import nn

from undertow.adapters.lora.additive import LowRank
from undertow.adapters.lora.write import Component, TrainedLora
from undertow.checkpoints.read.model import LoadedModel
from undertow.nn.adaptable import Conv2d
from undertow.training.captioned import CaptionedPictures
from undertow.training.lora import LoraSettings, TrainableLora
from undertow.training.low_rank import TrainableUpdate


def export_lora(
    lora: TrainableLora, model: LoadedModel, pictures: CaptionedPictures, settings: LoraSettings, title: str
) -> TrainedLora:
    """Returns the trained updates with their metadata, in the form that `write_lora` writes."""
    unet, text, found = model.require_unet(), model.require_text(), model.report.identification
    updates: dict[Component, dict[str, LowRank]] = {
        "unet": {name: _learned(update, unet.get_submodule(name), settings.gain) for name, update in lora.unet.items()}
    }
    for encoder, learned in zip(text.encoders, lora.for_text() or (), strict=False):
        component: Component = "text_encoder_2" if encoder.kind == "openclip_g" else "text_encoder"
        updates[component] = {
            f"text_model.{name}": _learned(update, encoder.clip.get_submodule(name), settings.gain)
            for name, update in learned.items()
        }
    return TrainedLora(
        updates=updates,
        title=title,
        family=model.family,
        variant=found.variant,
        prediction=found.prediction.value,
        config=unet.config,
        notes={
            "ss_sd_model_name": model.path.name,
            "ss_num_train_images": str(len(pictures)),
            "ss_steps": str(settings.fit.steps),
            "ss_learning_rate": f"{settings.fit.learning_rate:g}",
            "modelspec.resolution": f"{pictures.size}x{pictures.size}",
        },
    )


def _learned(update: TrainableUpdate, layer: nn.Module, gain: float) -> LowRank:
    down, up = update.down[0].detach(), update.up[0].detach()
    if isinstance(layer, Conv2d):
        down, up = down.unflatten(1, (layer.in_channels, *layer.kernel_size)), up[:, :, None, None]
    return LowRank(down=down, up=up, scale=gain)
