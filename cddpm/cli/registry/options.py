"""Options that the commands of ``cddpm registry`` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cddpm.text import Console

if TYPE_CHECKING:  # only a command that runs pays for it
    from cddpm.tracking.registry import Registry

Uri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or database; without it outputs/mlflow.db here.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", help="Name of the registered model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Ref = Annotated[
    str, typer.Argument(metavar="REF", help="Version number, alias, run id or <sweep>/<trial>.", show_default=False)
]
Refs = Annotated[
    list[str],
    typer.Argument(metavar="REF...", help="Two or more; the others are compared with the first.", show_default=False),
]
Metric = Annotated[str, typer.Option("--metric", help="dice, auprc, ... or objective.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="One data set; without it the mean over all.")]
Split = Annotated[
    str, typer.Option("--split", help="val, or test if you must: a choice made on test is no test any more.")
]
Where = Annotated[
    str,
    typer.Option(
        "--where",
        help="Only versions with metrics.NAME, params.NAME or tags.NAME > >= < <= = != VALUE; several joined by 'and'.",
        show_default=False,
    ),
]
Archived = Annotated[bool, typer.Option("--archived", help="Archived versions too.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Output folder of the sweeps.")]
Who = Annotated[
    str | None, typer.Option("--who", help="Who decides this; without it the user's name.", show_default=False)
]

TEST_WARNING = (
    "ranked by TEST scores: a choice made on test is no test any more; report no test score of what you choose so"
)


def opened(uri: str | None, model: str) -> "Registry":
    """The registry. Raises ``TrackingError`` if nothing is there."""
    from cddpm.tracking.address import default_uri
    from cddpm.tracking.registry import Registry

    return Registry.open(uri or default_uri(Path("outputs")), model)


def say_loudly(what: str) -> None:
    """A warning that cannot be overlooked, on stderr."""
    Console(stderr=True).print(f"[bold white on red] WARNING [/] [bold red]{what}[/]")
