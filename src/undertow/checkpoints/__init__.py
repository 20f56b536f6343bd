"""Reading and writing model weights, strictly."""
