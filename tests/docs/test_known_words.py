"""Examples are prompts that the embedded model was trained on."""

import re
from pathlib import Path

import pytest

from undertow.checkpoints.files.words import read_vocabulary
from undertow.embedded import embedded_models

ROOT = Path(__file__).parents[2]
PLACES = ("README.md", "docs/**/*.md", "benchmarks/**/*.py", "page/src/**/*.tsx", "page/src/**/*.ts")
PROMPT = re.compile(r"""(?<=["'`])[a-z][a-z ]* on [a-z]+ background(?=["'`])""")
MISSPELLED = {"red aple on white background"}
"""On purpose: what the doctor says of it is shown."""


def prompts() -> list[tuple[str, str]]:
    files = [file for place in PLACES for file in sorted(ROOT.glob(place))]
    return [(str(file.relative_to(ROOT)), prompt) for file in files for prompt in PROMPT.findall(file.read_text())]


@pytest.mark.parametrize("model", ["emoji", "emoji-turbo"])
def test_an_example_has_no_word_that_the_embedded_model_does_not_know(model):
    vocabulary = read_vocabulary(embedded_models()[model])
    assert vocabulary is not None
    found = prompts()
    assert {file for file, _ in found} >= {"README.md", "docs/guides/service.md", "page/src/draw/stage.tsx"}
    assert [one for one in found if one[1] not in MISSPELLED and vocabulary.unknown([one[1]])] == []
