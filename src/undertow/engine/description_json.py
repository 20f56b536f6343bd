"""The JSON that repeats a picture, as it is written into its file: nothing in it says where things lie here."""

import json
from dataclasses import replace
from pathlib import Path

from undertow.checkpoints.files.hashes import model_hash
from undertow.checkpoints.files.place import is_hub_id, model_name
from undertow.engine.metadata import Description
from undertow.engine.named_files import file_name, stored_adapters
from undertow.engine.report import Report

LONGEST = 8_000_000
"""Bytes of text in a PNG file that libpng, and so browsers and viewers, accept (PNG_USER_CHUNK_MALLOC_MAX)."""


def description_json(report: Report, index: int, *, embed: bool = True) -> str:
    """A `Description` as JSON, with pictures as bytes (embed) unless that makes it larger than other programs read."""
    request = replace(report.request, steps=report.request.step_count)
    if request.high_resolution is None:  # whose first pass may have another size
        request = replace(request, size=report.size)
    path, refiner = report.files.model, report.files.refiner
    description = Description(
        request=request,
        index=index,
        model=report.model,
        model_hash=None if path is None else model_hash(path),
        refiner=None if refiner is None else model_name(refiner),
        refiner_hash=None if refiner is None else model_hash(refiner),
        embedding_hashes=report.files.embedding_hashes(),
        computing=report.computing,
    )
    text = _shareable(description, embed)
    return text if len(text) <= LONGEST else _shareable(description, embed=False)


def _shareable(description: Description, embed: bool) -> str:
    """As JSON in which files are names, not places on this machine."""
    json_ = description.to_json(embed=embed, files=False)
    json_["computing"] = description.computing.chosen()
    for adapter in stored_adapters(json_["request"]):
        for name in ("source", "encoder"):
            place = adapter[name]
            if isinstance(place, str) and not (is_hub_id(place) and not Path(place).exists()):
                adapter[name] = file_name(place)
    return json.dumps(json_)
