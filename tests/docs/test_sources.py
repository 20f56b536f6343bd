"""Formulas say where they come from."""

import re

import pytest

from undertow.sampling.catalogue import SAMPLERS

SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|k-diffusion|diffusers|ComfyUI|A1111")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_says_where_its_formula_comes_from(name):
    """R167: a paper, or the program whose algorithm it is."""
    assert SOURCE.search(SAMPLERS[name].function.__doc__ or "")
