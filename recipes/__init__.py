"""Recipes of the embedded models: how each is trained from nothing, measured and described on its card."""
