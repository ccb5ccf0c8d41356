"""Where a lab book is: tracking URIs, and the database file behind one. No MLflow here: it takes over a second to import."""

import re
from pathlib import Path

from cddpm.text import command

_SQLITE = "sqlite:///"
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


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI, from here; None for any other."""
    return Path(uri.removeprefix(_SQLITE).split("?")[0]).resolve() if uri.startswith(_SQLITE) else None


def whole(uri: str) -> str:
    """``uri``, of a SQLite file with its whole path: the same lab book has one name wherever a process was started."""
    file = sqlite_file(uri)
    return file_uri(file) if file else uri


def without_password(text: str) -> str:
    """A URI, or a message that quotes one, as it may be shown."""
    return _PASSWORD.sub(r"\1:***@", text)


def one_line(error: BaseException) -> str:
    """The message of an error as one line of at most 300 characters, without passwords."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
