"""The rows of a picture beside those that forwards really have."""

import pytest
from PIL import Image

from tests.services import service_of
from undertow import GenerationRequest, Region
from undertow.engine.row_count import rows_of_picture

PICTURE = Image.new("RGB", (32, 32))
LEFT = Region(prompt="a pear", box=(0.0, 0.0, 0.5, 1.0))


def test_regions_by_attention_have_no_rows_of_their_own():
    """At most as many as without: rows with more tokens share no forward with others."""
    request = GenerationRequest(prompt="a cat", regions=(LEFT,), regions_by="attention")
    assert rows_of_picture(request, service_of("sd1").config) == 2


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({"guidance_scale": 1.0}, 1),
        ({}, 2),
        ({"guidance_method": "cfg+pag"}, 3),
        ({"prompt": "a cat AND a dog"}, 3),
        ({"regions": (LEFT,)}, 3),
        ({"guidance_method": "pag", "guidance_scale": 1.0}, 2),
        ({"guidance_method": "cfg(scale=1|3)", "steps": 3, "image": PICTURE, "strength": 0.7}, 2),
    ],
)
def test_rows_are_counted_before_anything_is_encoded(asked, rows):
    service = service_of("sd1")
    request = GenerationRequest(**{"prompt": "a cat", "steps": 1, "size": (32, 32), **asked})
    assert rows_of_picture(request, service.config) == rows
    seen = []
    hook = service.model.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        service.run(request)
    finally:
        hook.remove()
    assert max(seen) == rows
