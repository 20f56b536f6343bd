"""Models into files: diffusers folders and single files, whole or not at all."""
