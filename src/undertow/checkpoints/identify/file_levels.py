"""The levels of noise of a single file, by its header. Imports no torch."""

from dataclasses import replace

from undertow.checkpoints.files.weights import Described
from undertow.checkpoints.keymap.contents import Contents
from undertow.schedulers.betas import ScaledLinearBetas
from undertow.schedulers.levels import CarriedLevels, DiscreteLevels

TABLE = "alphas_cumprod"
"""What LDM calls the table that it saves beside the weights."""


def levels_of_file(file: Described, contents: Contents, *, zero_terminal_snr: bool) -> DiscreteLevels | CarriedLevels:
    """Stable Diffusion's, unless the file carries a table of as many. With zero terminal SNR, if the file says so, the
    highest is the same whatever the table."""
    usual = DiscreteLevels(betas=ScaledLinearBetas())
    if zero_terminal_snr:
        return replace(usual, zero_terminal_snr=True)
    name = contents.names.get(TABLE)
    if name is None or file.tensors[name].shape != (usual.steps,):
        return usual
    return CarriedLevels(steps=usual.steps)
