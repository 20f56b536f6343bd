"""The places of the worker's tests."""

from tests.serving.worker.conftest import adapters, catalog, make_place, place

__all__ = ["adapters", "catalog", "make_place", "place"]
