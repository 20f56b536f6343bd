"""Names that are refused without torch are those of the catalogues."""

from typing import get_args

import pytest

from undertow import GenerationRequest, InvalidInput, known_names
from undertow.cli.model_loading import Precision
from undertow.diffusion.grids import GRIDS
from undertow.diffusion.parameterizations import PARAMETERIZATIONS
from undertow.encoders.prompts import DIALECTS
from undertow.engine.guidance_method import METHODS
from undertow.sampling.catalogue import SAMPLERS
from undertow.step_counts import EVALUATIONS


def test_every_catalogue_has_the_names_that_are_known_without_it():
    named = {
        name: {alias for aliases in entry.aliases.values() for alias in aliases} - {name}
        for name, entry in SAMPLERS.items()
    }
    assert {name: set(aliases) for name, aliases in known_names.SAMPLERS.items()} == named
    assert set(known_names.GRIDS) == GRIDS.keys()
    assert set(known_names.GUIDANCE) == METHODS.keys()
    assert set(known_names.DIALECTS) == DIALECTS.keys()
    assert set(known_names.PREDICTIONS.values()) == set(get_args(known_names.Prediction))
    assert set(PARAMETERIZATIONS) <= set(known_names.PREDICTIONS)
    precisions = [one.value for one in Precision]
    assert precisions == [*known_names.PRECISIONS] == [*get_args(known_names.PrecisionName)]
    options = {name: {key: option.bounds for key, option in entry.options.items()} for name, entry in SAMPLERS.items()}
    assert {name: found for name, found in options.items() if found} == known_names.SAMPLER_OPTIONS
    paths = {name: {path.__name__ for path in entry.paths} for name, entry in SAMPLERS.items()}
    everywhere = set(get_args(known_names.PathName))
    assert {name: found for name, found in paths.items() if found != everywhere} == {
        name: set(found) for name, found in known_names.SAMPLER_PATHS.items()
    }
    assert {name for name, entry in SAMPLERS.items() if entry.inverse} == set(known_names.INVERSE_SAMPLERS)
    discarding = {name for name, entry in SAMPLERS.items() if entry.discards_penultimate}
    assert discarding == set(known_names.DISCARDING_SAMPLERS)
    assert {name: entry.evaluations for name, entry in SAMPLERS.items() if (entry.evaluations or 1) > 1} == EVALUATIONS


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("sampler", "eulr", "did you mean 'euler' or"),
        ("sampler", "DPM++ 2M Karas", "did you mean 'DPM++ 2M"),
        ("schedule", "karas", "did you mean 'karras'?"),
        ("dialect", "a11", "did you mean 'a1111'?"),
        ("guidance_method", "cfg+pga", "did you mean 'pag'?"),
        ("guidance_method", "cfg(", "a name with options, like pag(scale=2,end=0.5)"),
    ],
)
def test_a_misspelled_name_is_refused_when_the_request_is_made(field, value, words):
    with pytest.raises(InvalidInput, match=rf"^{field} is ") as refusal:
        GenerationRequest(prompt="owl", **{field: value})
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampler", "model"),
        ("sampler", "DPM++ 2M Karras"),
        ("sampler", "dpmpp_2m_karras"),
        ("sampler", "EulerAncestralDiscreteScheduler"),
        ("schedule", "Automatic"),
        ("schedule", "SGM Uniform"),
        ("guidance_method", "cfg + pag(scale=2, layers=mid_block|up_blocks.0) + rescale"),
    ],
)
def test_names_of_other_tools_are_taken(field, value):
    assert getattr(GenerationRequest(prompt="owl", **{field: value}), field) == value
