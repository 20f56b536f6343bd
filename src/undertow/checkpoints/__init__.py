"""Files of weights: reading and writing them, strictly."""

from undertow.checkpoints.folder import load_unet_folder, save_unet

__all__ = ["load_unet_folder", "save_unet"]
