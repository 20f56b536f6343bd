"""Reading and writing model weights, strictly."""

from undertow.checkpoints.read.unet_loading import load_unet_folder
from undertow.checkpoints.write.unet_folder import save_unet

__all__ = ["load_unet_folder", "save_unet"]
