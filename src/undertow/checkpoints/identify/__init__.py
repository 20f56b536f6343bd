"""What a checkpoint is, before weights are read: its parts, family, architecture, prediction type, noise schedule."""
