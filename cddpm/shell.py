"""The edge between this program and a shell: errors become one message and an exit code, an interruption becomes 130."""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from cddpm.errors import CddpmError

INTERRUPTED = 130


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
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(str(error))}", highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command with --resume goes on", highlight=False)
        sys.exit(INTERRUPTED)
