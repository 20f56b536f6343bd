"""The recipe of the embedded digit models: `python -m recipes.digits`."""
