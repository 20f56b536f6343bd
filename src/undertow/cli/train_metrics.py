"""`undertow train metrics`: how a training run stands, also in the format of the service's own metrics."""

import json
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from undertow.errors import InvalidInput
from undertow.training.log import find_log, read_records


class Format(StrEnum):
    text = "text"
    json = "json"
    prometheus = "prometheus"


def train_metrics(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, also of one that is going on.")],
    as_format: Annotated[
        Format,
        typer.Option(
            "--format", help="prometheus is for a textfile collector or a push gateway; json has the same four groups."
        ),
    ] = Format.text,
) -> None:
    """Show the newest loss, gradient norm and speed of a training run, as its log has them."""
    records = read_records(find_log(run))
    if not records:
        raise InvalidInput("RUN", str(run), "the folder of a training run with a record in its log")
    if as_format is Format.text:
        last = records[-1]
        lowest = min(records, key=lambda one: one.loss)
        trained = timedelta(seconds=round(last.seconds))
        typer.echo(f"step {last.step:,}, trained for {trained} at {last.images_per_second:.1f} pictures/s")
        typer.echo(f"loss {last.loss:.4g}, lowest {lowest.loss:.4g} at step {lowest.step:,}")
        typer.echo(f"gradient norm {last.gradient_norm:.4g}, learning rate {last.learning_rate:.4g}")
        return
    from undertow.inspection.metrics import training_metrics

    found = training_metrics(run)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_format is Format.json else found.exposition().rstrip())
