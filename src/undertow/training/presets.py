"""Ready settings for each data set: what `undertow train` starts from, before its options are applied."""

from undertow.lookup import look_up
from undertow.training.augmentation import Augmentation
from undertow.training.config import TrainingConfig, pixel_unet
from undertow.training.data import Cifar10, DataSource, Digits, ImageFolder
from undertow.training.objective import Ddpm, Flow
from undertow.training.pictures import Pictures

OBJECTIVES: dict[str, Ddpm | Flow] = {
    "ddpm": Ddpm(prediction="v", schedule="cosine", min_snr_gamma=5.0),
    "flow": Flow(timesteps="logit_normal"),
}
"""Those that train well in minutes; `Ddpm()` alone is the original DDPM."""


def preset(data: DataSource, pictures: Pictures, objective: str) -> TrainingConfig:
    """Settings for `data`, whose pictures are `pictures`. Errors: `InvalidInput` for an unknown objective."""
    match data:
        case Digits():
            # 1,442 pictures: without distortions and dropout the network would learn them by heart.
            return TrainingConfig(
                data=data,
                objective=look_up(OBJECTIVES, objective, "objective"),
                unet=pixel_unet(pictures, widths=(32, 64, 64), dropout=0.1),
                steps=3000,
                batch_size=64,
                learning_rate=2e-3,
                augmentation=Augmentation(shift=0.02, rotation=5.0, scale=0.05, shear=0.05, background=-1.0),
            )
        case Cifar10() | ImageFolder():
            return TrainingConfig(
                data=data,
                objective=look_up(OBJECTIVES, objective, "objective"),
                unet=pixel_unet(pictures, widths=(64, 128, 256), resnets=2, dropout=0.1),
                steps=100_000,
                batch_size=128,
                learning_rate=2e-4,
                warmup_steps=1000,
                ema_decay=0.9995,
                augmentation=Augmentation(flip=True),
                sample_every=1000,
                checkpoint_every=1000,
            )
