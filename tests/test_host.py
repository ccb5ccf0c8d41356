"""The edges of the host: no ``OSError`` in any command ends in a traceback; caches and Ray find places, told."""

import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from launched import ROOT

from cddpm import host
from cddpm.cli import app, shell
from cddpm.errors import StorageError

KINDS = sorted(errno.errorcode)
PATHS = st.text(min_size=1, max_size=30).map(lambda text: f"/data/{text}")


@given(st.sampled_from(KINDS), PATHS, PATHS | st.none(), st.lists(PATHS, min_size=1, max_size=3))
@settings(deadline=None)
def test_any_fault_is_one_line_with_path_and_remedy(kind: int, path: str, other: str | None, given_: list[str]) -> None:
    for error in (OSError(kind, os.strerror(kind), path, None, other), OSError(kind, os.strerror(kind))):
        line = str(host.fault(error, given_))
        place, remedy = line.rsplit("; ", 1)
        assert line.isprintable()
        assert "/data/" in place
        assert os.strerror(kind) in place
        assert len(remedy.split()) > 3


@pytest.mark.parametrize(
    "error", [OSError(), OSError("said\nat length"), OSError(5, "report\nof a worker"), TimeoutError()]
)
def test_faults_without_a_number_or_a_path_name_the_working_directory(error: OSError) -> None:
    line = str(host.fault(error))
    assert f"working directory {Path.cwd()}: " in line
    assert "\n" not in line


def _commands(
    command: typer.Typer, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Callable[..., Any]]]:
    for info in command.registered_commands:
        assert info.callback is not None
        name = info.name or info.callback.__name__.replace("_", "-")
        yield (*before, name), info.callback
    for group in command.registered_groups:
        assert group.typer_instance is not None
        yield from _commands(group.typer_instance, (*before, str(group.name)))


COMMANDS = dict(_commands(app))
SCRIPTS = sorted((ROOT / "launch").glob("*.py"))


@pytest.mark.parametrize(
    "kind", [FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError, TimeoutError, OSError]
)
def test_no_command_shows_a_traceback(
    kind: type[OSError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ``cddpm``: the edge stands around every command, whatever it calls."""
    monkeypatch.setenv("COLUMNS", "500")
    number = {v: k for k, v in ((n, type(OSError(n, ""))) for n in KINDS)}.get(kind, errno.EIO)
    for words, function in COMMANDS.items():
        own = typer.Typer(pretty_exceptions_enable=False)

        def fails(out: Path = Path("results/of it"), named: bool = False) -> None:
            raise OSError(number, os.strerror(number), *(["/place"] if named else []))

        own.command(words[-1])(fails)
        monkeypatch.setattr(sys, "argv", ["cddpm"])
        with pytest.raises(SystemExit) as left:
            shell.guarded_app(own)
        assert left.value.code == StorageError.exit_code, function
        said = capsys.readouterr().err
        assert said.startswith(f"error results/of it: {os.strerror(number)}; ")
        assert len(said.splitlines()) == 1


def test_every_command_and_script_runs_within_the_edge() -> None:
    shell.on_disk(app)
    assert all(hasattr(function, "__wrapped__") for _, function in _commands(app))
    assert len(COMMANDS) > 20
    assert all("guarded" in script.read_text().split('if __name__ == "__main__":')[1] for script in SCRIPTS)


def _real(arguments: list[str], patch: pytest.MonkeyPatch) -> object:
    patch.setattr(sys, "argv", ["cddpm", *arguments])
    with pytest.raises(SystemExit) as left:
        shell.guarded_app(app)
    return left.value.code


@pytest.mark.parametrize(
    "words",
    [
        ["data", "phantom", "{file}/below"],
        ["data", "phantom", "{long}"],
        ["data", "check", "--table", "{file}/t.csv"],
        ["data", "check", "--table", "{folder}"],
        ["predict", "{file}", "--out", "{file}/out", "--model", "{file}/m"],
        ["predict", "{file}", "--out", "{folder}", "--model", "{long}"],
        ["import", "{folder}", "--config", "{file}"],
        ["import", "{long}", "--config", "{long}"],
        ["report", "--scan", "{file}"],
        ["report", "{file}"],
        ["cache", "ls", "--output-dir", "{file}"],
        ["cache", "verify", "--output-dir", "{file}/x"],
        ["registry", "sync", "--output-dir", "{file}"],
        ["registry", "list", "--tracking-uri", "sqlite:///{file}/x.db"],
    ],
    ids=" ".join,
)
def test_odd_places_end_in_one_message(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("x")
    places = {"file": "a file", "folder": str(tmp_path), "long": "x" * 300}
    code = _real([word.format(**places) for word in words], monkeypatch)
    assert isinstance(code, int)
    said = capsys.readouterr()
    if code and not said.out.startswith("error"):  # of a data check, whose findings are its result
        assert said.err.startswith("error ")
        assert len(said.err.splitlines()) == 1


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No cache is named, and none of this environment's is there; temporary files go to ``tmp_path/tmp``."""
    for name in (*host._NAMES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def closed(patch: pytest.MonkeyPatch, *folders: Path) -> None:
    """As if these lay on a disk that is read-only: also for root, for whom rights are none."""
    access = os.access
    patch.setattr(
        os,
        "access",
        lambda place, mode: access(place, mode) and not any(Path(place).is_relative_to(f) for f in folders),
    )


@pytest.mark.parametrize("variable", host._NAMES)
def test_a_cache_that_can_be_written_stays_where_it_is(
    variable: str, clean: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert host.settle_cache(variable) is None
    assert variable not in os.environ
    shared = clean / "venv" / "cache" / host._NAMES[variable]
    shared.mkdir(parents=True)
    assert host.settle_cache(variable) == shared
    monkeypatch.setenv(variable, str(clean / "mine" / "new"))
    assert host.settle_cache(variable) == clean / "mine" / "new"
    assert not caplog.records


@pytest.mark.parametrize("variable", host._NAMES)
@pytest.mark.parametrize("named", [None, "file/below", "closed/below"])
def test_a_cache_without_a_place_goes_to_a_temporary_folder(
    variable: str, named: str | None, clean: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if named:
        monkeypatch.setenv(variable, str(clean / named))
    home = clean / "closed"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    closed(monkeypatch, home, ROOT)
    with caplog.at_level(logging.WARNING):
        folder = host.settle_cache(variable)
        assert host.settle_cache(variable) == folder  # told once
    assert folder == clean / "tmp" / f"cddpm-cache-{os.getuid()}" / host._NAMES[variable]
    assert os.environ[variable] == str(folder)
    assert folder.is_dir()
    assert folder.parent.stat().st_mode & 0o77 == 0
    assert [record.getMessage().split(": ")[1].split(";")[0] for record in caplog.records] == ["cannot be written"]


def test_a_temporary_cache_of_somebody_else_is_not_trusted(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "tmp" / f"cddpm-cache-{os.getuid()}").symlink_to(clean)
    folder = host._temporary("numba")
    assert folder is not None
    assert folder.parent.name.startswith("cddpm-cache-")
    assert not folder.parent.is_symlink()


def test_without_any_place_the_libraries_decide(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(clean / "file"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(clean / "file" / "x"))
    assert host.settle_cache("NUMBA_CACHE_DIR") is None
