"""What another program says of a picture, held against what a request may be."""

from dataclasses import replace
from typing import Any

from undertow.engine.request import GenerationRequest
from undertow.errors import InvalidInput
from undertow.infotext.reading import NotUnderstood, Reading

TEXTS = ("prompt", "negative_prompt")
"""Without them the request is another one, so that what is wrong with them is an error."""

LONGEST = 60
"""Characters of a value that is listed."""


def within_limits(reading: Reading) -> Reading:
    """The reading with the values that a request may have; the others are listed as not understood."""
    fitting: dict[str, Any] = {}
    refused: list[NotUnderstood] = []
    for name, value in reading.request.items():
        if name in TEXTS:
            continue
        try:
            GenerationRequest.from_json({"prompt": "", **fitting, name: value})
        except InvalidInput as err:
            why = f"{err.argument.removeprefix('request.')} would have to be {err.expected}"
            refused.append(NotUnderstood(name=name.replace("_", " "), value=str(value)[:LONGEST], why=why))
        else:
            fitting[name] = value
    texts = {name: reading.request[name] for name in TEXTS if name in reading.request}
    return replace(reading, request=texts | fitting, not_understood=(*reading.not_understood, *refused))
