"""The edge to the shell: exit codes, misuse told as other faults are, warnings whole and above a live display."""

import io
import logging
import sys
from collections.abc import Callable

import pytest
import typer
from rich.live import Live
from rich.text import Text
from screen import broken_words, too_long

from cddpm.cli import shell
from cddpm.errors import SearchError, StoppedError
from cddpm.text import Console

PLACE = "/data/of/the/clinic/outputs/artifacts/checkpoint/0123456789abcdef/state-12.pt"


def leave(patch: pytest.MonkeyPatch, command: Callable[[], None], *arguments: str) -> object:
    """The exit code of a command line that runs ``command``."""
    patch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as left:
        shell.guarded(command)
    return left.value.code


def fails(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (typer.Exit(), 0),
        (typer.Exit(3), 3),
        (KeyboardInterrupt(), 130),
        (SearchError("x"), 6),
        (StoppedError("x"), 130),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    assert leave(monkeypatch, fails(error)) == code


def test_a_command_that_ends_well_leaves_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leave(monkeypatch, lambda: None) == 0


def test_misuse_is_told_like_other_faults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert leave(monkeypatch, lambda: None, PLACE, "--no-such-option") == 2
    assert leave(monkeypatch, lambda: None, PLACE) == 2
    said = capsys.readouterr().err
    assert "error No such option: --no-such-option" in said
    assert "--help' for help" in said
    assert not broken_words([PLACE], said)
    assert not too_long(said, 80)


def test_an_error_s_paths_are_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    leave(monkeypatch, fails(SearchError(f"2 faults in [the] state:\n{PLACE}: is short\n{PLACE}.more: is long")))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error 2 faults in [the] state:", f"{PLACE}:", "  is short", f"{PLACE}.more:", "  is long"]


def test_warnings_are_whole_and_stand_above_a_live_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    logger, handler, shown = logging.getLogger("cddpm.of_this_test"), shell._LinesOnStderr(), io.StringIO()
    logger.propagate = False
    logger.addHandler(handler)
    logger.warning("passing over a damaged state: %s: it is short", PLACE)
    assert capsys.readouterr().err == f"passing over a damaged state:\n  {PLACE}:\n  it is short\n"
    console = Console(file=shown, width=80, force_terminal=True, color_system=None)
    with Live(Text("running"), console=console, refresh_per_second=1):
        logger.warning("passing over %s", PLACE)
    assert f"{PLACE}\n" in shown.getvalue()
    assert capsys.readouterr().err == ""
