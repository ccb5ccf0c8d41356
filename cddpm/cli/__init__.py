"""The ``cddpm`` command: what a person runs at the desk. What runs on Ray is in ``launch/``.

Modules with heavy imports are loaded by the command that needs them.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from cddpm.cli import cache, cluster, data, glossary, importing, predict, preparation, registry, report
from cddpm.cli.shell import guarded_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find anomalies in brain MRI with conditioned diffusion models.",
)
data.app.command("prepare")(preparation.prepare)
app.add_typer(data.app, name="data")
app.add_typer(cache.app, name="cache")
app.add_typer(cluster.app, name="cluster")
app.command("predict")(predict.predict)
app.add_typer(registry.app, name="registry")
app.command("report")(report.report)
app.command("import")(importing.import_checkpoint)
app.command("glossary")(glossary.glossary)


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    guarded_app(app)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(version("cddpm"))
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass
