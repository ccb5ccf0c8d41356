"""Ray on the nodes of a SLURM job and a command on the first of them; its script starts this once on every node.

srun python launch/ray_on_slurm.py --meeting FOLDER -- COMMAND...
"""

from pathlib import Path
from typing import Annotated

import typer

from cddpm.cli.shell import guarded


def main(
    meeting: Annotated[Path, typer.Option(help="A folder that all nodes see.")],
    command: Annotated[list[str], typer.Argument(help="What runs on the first node, with RAY_ADDRESS set.")],
    join_seconds: Annotated[float, typer.Option(help="So long nodes wait for each other.")] = 600,
    save_seconds: Annotated[float, typer.Option(help="So long before the job's limit SIGUSR1 comes.")] = 300,
    interface: Annotated[str | None, typer.Option(help="Network interface that all nodes share.")] = None,
) -> int:
    """Start Ray on this node of a job; on the first one run the command when all have joined, and return its exit code."""
    from cddpm.cluster import node, step

    name = node.name()
    return step.run(command, step.Terms(meeting, join_seconds, save_seconds, interface), lambda text: say(name, text))


def say(name: str, text: str) -> None:
    """A line of this node's in the log that all nodes share."""
    typer.echo(f"{name}: {text}")


if __name__ == "__main__":
    guarded(main)
