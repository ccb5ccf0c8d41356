"""``cddpm cluster``: look at what describes a cluster before it costs money."""

from pathlib import Path
from typing import Annotated

import typer

from cddpm.cli.shell import print_json
from cddpm.errors import ConfigError
from cddpm.text import Console

app = typer.Typer(no_args_is_help=True, help="Check what describes a cluster.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")]


@app.callback()
def _group() -> None:
    """A callback keeps the name of the only command."""


@app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A file for 'ray up', or manifests of KubeRay.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """List all faults of a cluster file without starting a machine. Exit code 2 if there are any.

    Found is what Ray itself refuses, and what it lets pass: placeholders, other versions, open ports, secrets, no token,
    no storage, missing files, spot machines without a fallback.
    """
    from cddpm.cluster.file import check as look  # with Ray

    found = look(file)
    if as_json:
        print_json({"file": str(file), "faults": [fault._asdict() for fault in found]})
        raise typer.Exit(ConfigError.exit_code if found else 0)
    if found:
        raise ConfigError("\n".join(f"{file}: {fault}" for fault in found))
    console = Console()
    console.print(f"{console.path(file)}: no fault was found")
