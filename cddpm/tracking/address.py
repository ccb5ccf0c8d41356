"""Where a lab book is: tracking URIs, and the database file behind one. No MLflow here: it takes over a second to import."""

import re
from pathlib import Path

from cddpm.errors import AwayError, TrackingError
from cddpm.text import command

_SQLITE = "sqlite:///"
_SQLITE_MAGIC = b"SQLite format 3\0"
_PASSING = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
)
_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s]*@")


def registry_command(uri: str, model: str, *words: str) -> str:
    """``cddpm registry`` with ``words``, on this lab book and model."""
    whose = () if model == "cddpm" else ("--model", model)
    mine = () if uri == default_uri(Path("outputs")) else ("--tracking-uri", uri)
    return command("cddpm", "registry", *words, *whose, *mine)


def sync_command(output_dir: Path) -> str:
    """What makes MLflow like the folders of ``output_dir`` by hand."""
    usual = output_dir == Path.cwd() / "outputs"
    return command("cddpm", "registry", "sync", *(() if usual else ("--output-dir", output_dir)))


def to_publish(runs: int, output_dir: Path) -> str:
    """What to tell a person whose work is over before MLflow shows everything."""
    return f"{runs} runs are not in MLflow yet, or not whole; `{sync_command(output_dir)}` brings them there"


def kept(away: str | None, folder: Path, output_dir: Path) -> str | None:
    """What to tell a person who starts work while MLflow does not answer (``away`` says why); None if it does."""
    if away is None:
        return None
    return (
        f"{away}. The work goes on: all of it is kept in {folder} until MLflow answers, or until "
        f"`{sync_command(output_dir)}` brings it there (tracking.when_away: refuse would end here)"
    )


def default_uri(output_dir: Path) -> str:
    """The embedded lab book of an output folder."""
    return file_uri(output_dir.resolve() / "mlflow.db")


def file_uri(file: Path) -> str:
    """The tracking URI of a database file."""
    return f"{_SQLITE}{file}"


def plain_file(uri: str) -> Path | None:
    """The database file of a SQLite URI as it is written there, maybe relative; None for any other."""
    return Path(uri.removeprefix(_SQLITE).split("?")[0]) if uri.startswith(_SQLITE) else None


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI, from here; None for any other."""
    file = plain_file(uri)
    return file.resolve() if file else None


def whole(uri: str) -> str:
    """``uri``, of a SQLite file with its whole path: the same lab book has one name wherever a process was started."""
    file = sqlite_file(uri)
    return file_uri(file) if file else uri


def check_is_there(file: Path) -> None:
    """Raises ``TrackingError`` if the database ``file`` does not exist."""
    if not file.exists():
        raise TrackingError(
            f"{file}: no lab book here. Run a sweep or a training first (it makes one in its output folder), or point to "
            "another with --tracking-uri or MLFLOW_TRACKING_URI (sqlite:////absolute/path/mlflow.db or http://host:5000)"
        )


def check_is_database(file: Path) -> None:
    """Raises ``TrackingError`` if ``file`` holds something else; MLflow tries for minutes to open what is no database."""
    if not file.is_file() or not _begins_with(file, _SQLITE_MAGIC):
        empty = file.is_file() and file.stat().st_size == 0
        raise TrackingError(
            f"{file}: is {'empty' if empty else 'not a SQLite database'}; move it away, or set tracking.uri (--tracking-uri) "
            "to another"
        )


def away(uri: str, reason: object) -> AwayError:
    """What is said of a server that does not answer."""
    return AwayError(
        f"{without_password(uri)}: the MLflow server does not answer ({reason}). Start it, correct tracking.uri (or "
        "MLFLOW_TRACKING_URI), or leave it empty for a SQLite file in output_dir"
    )


def may_pass(code: str | None) -> bool:
    """Whether one of MLflow's error codes stands for what may be gone later."""
    return code in _PASSING


def advice(code: str | None) -> str:
    """What a user can do against one of MLflow's error codes."""
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ". Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return ""


def without_password(text: str) -> str:
    """A URI, or a message that quotes one, as it may be shown."""
    return _PASSWORD.sub(r"\1:***@", text)


def one_line(error: BaseException) -> str:
    """The message of an error as one line of at most 300 characters, without passwords."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic
