"""What can be trained on: three records, each with `open`, which reads its pictures into memory."""

from dataclasses import dataclass
from pathlib import Path

from undertow.errors import ConfigError
from undertow.training.cifar10 import load_cifar10
from undertow.training.digits import load_digits
from undertow.training.image_folder import load_image_folder
from undertow.training.pictures import Pictures, Split


@dataclass(frozen=True, kw_only=True)
class Digits:
    """scikit-learn's handwritten digits at size x size, see `digits`."""

    size: int = 16

    def open(self, split: Split = "train") -> Pictures:
        """Errors: `InvalidInput`, `MissingDependency`."""
        return load_digits(size=self.size, split=split)


@dataclass(frozen=True, kw_only=True)
class Cifar10:
    """CIFAR-10's own archives in a folder, see `cifar10`."""

    folder: str

    def open(self, split: Split = "train") -> Pictures:
        """Errors: `DataError`."""
        return load_cifar10(Path(self.folder), split=split)


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A folder with one sub-folder of pictures per class, see `image_folder`; all of it is for training."""

    folder: str
    size: int = 32
    channels: int = 3
    bad_pictures: str = "refuse"

    def __post_init__(self):
        if self.bad_pictures not in ("refuse", "skip"):
            raise ConfigError("data.bad_pictures", self.bad_pictures, "must be 'refuse' or 'skip'")
        if self.channels not in (1, 3):
            raise ConfigError("data.channels", self.channels, "must be 1 (gray) or 3 (RGB)")

    def open(self) -> Pictures:
        """Errors: `InvalidInput`, `DataError`."""
        return load_image_folder(
            Path(self.folder), size=self.size, channels=self.channels, bad_pictures=self.bad_pictures
        )


DataSource = Digits | Cifar10 | ImageFolder

DATA_SOURCES: dict[str, type[DataSource]] = {"digits": Digits, "cifar10": Cifar10, "folder": ImageFolder}
