"""The edge between this program and a shell: a user's fault becomes one message and an exit code, without a traceback."""

import functools
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.markup import escape
from rich.text import Text
from typer.models import ArgumentInfo

from cddpm import host, tracking
from cddpm.errors import CddpmError, ConfigError, StoppedError
from cddpm.place import address, local
from cddpm.text import Console, printable
from cddpm.text.words import rows

DataDir = Annotated[
    str | None,
    typer.Option(help="DATA_DIR in the published layout, a folder or s3://...; else a phantom.", envvar="DATA_DIR"),
]
OutputDir = Annotated[Path | None, typer.Option(help="Where everything is kept.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Where artifacts are kept: a folder, s3://BUCKET/PREFIX, ...",
        envvar="CDDPM_STORAGE",
    ),
]
Folds = Annotated[str | None, typer.Option(help="Folds, separated by commas, instead of the file's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what was stopped or killed.")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow server.", envvar="MLFLOW_TRACKING_URI")]
Address = Annotated[str | None, typer.Option(help="Ray cluster (or RAY_ADDRESS); else one is started here.")]
Window = Annotated[
    Literal["whole", "package"],
    typer.Option(
        "--window", help="What of a brain is looked at: the whole of it, or the window that the model was scored on."
    ),
]
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


def print_json(value: Any) -> None:
    """Print ``value`` as JSON, its keys in order."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True))


def guarded(function: Callable[..., Any]) -> None:
    """Run ``function`` as a command line and leave the process with its exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    guarded_app(app)


def on_disk(app: typer.Typer) -> None:
    """Have every command of ``app`` refuse an address where it takes a path; see ``cddpm.place``."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = local_paths(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            on_disk(group.typer_instance)


def local_paths(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, called by name, but paths begin at the home folder for ``~``; addresses raise ``ConfigError``.

    What the system refuses (``OSError``) and names no file for is told with the paths that were given.
    """

    @functools.wraps(function)
    def run(**given: Any) -> Any:
        values = {name: _local(function, name, value) for name, value in given.items()}
        try:
            return function(**values)
        except BrokenPipeError:
            raise  # who reads what is printed has gone
        except OSError as error:
            raise host.fault(error, _paths(values.values())) from error

    return run


def _paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, list):
            yield from _paths(value)


def _local(function: Callable[..., Any], name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_local(function, name, one) for one in value]
    if not isinstance(value, Path):
        return value
    return local(value, _written(function, name) if address(value) else name)


def _written(function: Callable[..., Any], name: str) -> str:
    """How a person writes a parameter of a command: ``--mask``, ``SCAN...``."""
    (info, *_) = inspect.signature(function).parameters[name].annotation.__metadata__
    if isinstance(info, ArgumentInfo):
        return str(info.metavar or name.upper())
    names = (info.default, *(info.param_decls or ()))  # typer takes the first of them for a default, as yet
    return next((str(one) for one in names if str(one).startswith("--")), f"--{name.replace('_', '-')}")


def guarded_app(app: typer.Typer) -> None:
    """Run ``app``; a user's fault is told in one message without a traceback."""
    on_disk(app)
    tracking.apply_settings()
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[_LinesOnStderr()]
    )
    host.settle_caches()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(ray|mlflow|torchio)\.")
    try:
        code = app(standalone_mode=False)
    except CddpmError as error:
        _leave(error)
    except OSError as error:
        _leave(host.fault(error))
    except typer.TyperException as error:
        _tell_misuse(error)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit("Aborted!")
    sys.exit(code if isinstance(code, int) else 0)


def _leave(error: CddpmError) -> NoReturn:
    label = "[bold yellow]stopped[/]" if isinstance(error, StoppedError) else "[bold red]error[/]"
    Console(stderr=True).print(f"{label} {escape(str(error))}")
    sys.exit(error.exit_code)


def _tell_misuse(error: typer.TyperException) -> None:
    """An option or argument that is unknown, missing or wrong; said as other faults are, not in a frame that breaks paths."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if not message:  # no arguments at all: the help was printed
        return
    console = Console(stderr=True)
    if context is not None:
        console.print(escape(context.get_usage().strip()), style="yellow")
        console.print(f"Try '{escape(context.command_path)} --help' for help.", style="dim")
    console.print(f"[bold red]error[/] {escape(message)}")


class _LinesOnStderr(logging.Handler):
    """Warnings as whole words and paths; above a live display if there is one, which stands in for ``sys.stderr`` then."""

    def emit(self, record: logging.LogRecord) -> None:
        """As ``logging`` asks."""
        try:
            lines = rows(Text(printable(self.format(record), but="\n\t")), Console(stderr=True).width)
            sys.stderr.write("".join(f"{line.plain}\n" for line in lines))
        except Exception:  # noqa: BLE001 - a message that cannot be told must not end the work that it is about
            self.handleError(record)
