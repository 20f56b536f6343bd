"""`undertow bench`: measurements of this machine that later runs decide by."""

import typer

from undertow.cli.bench_attention import attention
from undertow.cli.bench_backends import backends

bench = typer.Typer(help="Measure this machine; later runs decide by what is found.", no_args_is_help=True)
bench.command("attention")(attention)
bench.command("backends")(backends)
