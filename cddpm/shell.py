"""The edge between this program and a shell: a user's fault becomes one message and an exit code, without a traceback."""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from cddpm.errors import CddpmError, StoppedError


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
