"""Networks of a model as files that other programs run, each checked against what PyTorch computes.

`formats.py` says what there is, `parts.py` what of a model is exported, `exporting.py` does it; a file for each format.
"""
