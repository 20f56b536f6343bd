"""The recipe of the embedded text-to-image model: `python -m recipes.emoji`."""
