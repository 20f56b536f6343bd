"""The dashboard for Grafana asks for metrics that there are, with labels that they have."""

import json
import re
from pathlib import Path

import pytest

from undertow.serving.metrics import PREFIX, ApiMetrics, WorkerMetrics

FILE = Path(__file__).parents[2] / "docs/dashboards/undertow.json"
OF_THE_STORE = {"jobs_now": {"state"}, "queue_oldest_seconds": set(), "queue_depth": {"model"}, "ready": set()}
"""Gauges that are read at each scrape (api/operations.py)."""

DASHBOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def known() -> dict[str, set[str]]:
    """Metrics by name, with their labels."""
    found = {f"{PREFIX}_{name}": labels for name, labels in OF_THE_STORE.items()}
    for metrics, more in ((ApiMetrics(), set()), (WorkerMetrics(), {"worker"})):
        for metric in vars(metrics).values():
            if hasattr(metric, "_labelnames"):
                found[metric._name] = {*metric._labelnames, *more}
    return found


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_metrics_that_there_are(panel):
    metrics = known()
    for target in panel["targets"]:
        names = re.findall(rf"{PREFIX}_[a-z0-9_]+", target["expr"])
        assert names
        bare = [re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names]
        assert set(bare) <= metrics.keys(), bare
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        by = re.search(r"by \(([^)]*)\)", target["expr"])
        labels |= set() if by is None else {name.strip() for name in by[1].split(",")} - {"le"}
        assert labels <= metrics[bare[0]], labels


def test_it_has_the_four_groups_of_the_source_document():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert {"Performance", "Quality", "Resources", "Adapters"} <= set(rows)
