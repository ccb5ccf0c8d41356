"""The edge between this program and a shell: a user's fault becomes one message and an exit code, without a traceback."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cddpm.errors import CddpmError, ConfigError, StoppedError

DataDir = Annotated[
    Path | None, typer.Option(help="DATA_DIR in the published layout; else a phantom.", envvar="DATA_DIR")
]
OutputDir = Annotated[Path | None, typer.Option(help="Where everything is kept.")]
Folds = Annotated[str | None, typer.Option(help="Folds, separated by commas, instead of the file's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what was stopped or killed.")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow server.", envvar="MLFLOW_TRACKING_URI")]
Address = Annotated[str | None, typer.Option(help="Ray cluster (or RAY_ADDRESS); else one is started here.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any setting: dotted.path=value (YAML).")]


def overrides(given: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Settings by dotted path: those of ``given`` that are not None, and ``dotted.path=value`` (YAML) texts over them.

    Raises ``ConfigError`` for a text without ``=`` or one that is no YAML.
    """
    from cddpm.config import setting  # with pydantic, for which no --help has to wait

    values = {path: str(value) if isinstance(value, Path) else value for path, value in given.items()}
    values = {path: value for path, value in values.items() if value is not None}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: allowed is dotted.path=value")
        values[path.strip()] = setting(path.strip(), value, f"--set {text}")
    return values


def whole_numbers(option: str, text: str | None) -> list[int] | None:
    """``0,1,2`` as numbers, None for nothing. Raises ``ConfigError`` naming ``option``."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: allowed are whole numbers separated by commas, as in 0,1,2") from None


def guarded(function: Callable[..., Any]) -> None:
    """Run ``function`` as a command line and leave the process with its exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    guarded_app(app)


def guarded_app(app: typer.Typer) -> None:
    """Run ``app``; a user's fault is told in one message without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(ray|mlflow|torchio)\.")
    try:
        app(standalone_mode=True)
    except CddpmError as error:
        label = "[bold yellow]stopped[/]" if isinstance(error, StoppedError) else "[bold red]error[/]"
        Console(stderr=True, soft_wrap=True).print(f"{label} {escape(str(error))}", highlight=False)
        sys.exit(error.exit_code)
