"""With a terminal lines are broken, into a file they are not; commands can be copied."""

import io
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from screen import too_long

from cddpm.text import Console

LONG = "word " * 60 + "end"
ARGUMENTS = st.lists(
    st.one_of(
        st.text("abc-./ '\"$=\\", max_size=60), st.sampled_from(["--out", "--model", "/data/a/long/path/scan.nii.gz"])
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture
def text() -> io.StringIO:
    return io.StringIO()


def test_what_is_no_terminal_gets_one_line_per_message(text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console = Console(file=text)
    console.print(LONG)
    console.command(f"cddpm predict {LONG}")
    assert text.getvalue() == f"{LONG}\n    cddpm predict {LONG}\n"


def test_columns_say_how_wide_it_is_taken_to_be(text: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    Console(file=text).print(LONG)
    assert max(map(len, text.getvalue().splitlines())) == 49  # "  " and words of four letters


def test_paths_are_short_for_people_and_whole_for_programs(
    text: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for terminal in (True, False):
        console = Console(file=text, force_terminal=terminal, color_system=None)
        console.print(console.path(tmp_path / "x [1]"))
    assert text.getvalue().split("\n") == ["x [1]", f"{tmp_path}/x [1]", ""]


def test_markup_and_colons_of_the_data_are_shown_as_they_are(text: io.StringIO) -> None:
    console = Console(file=text, width=80)
    console.print(console.path("/a[red]/:smile:\\"), "[bold]b[/]")
    assert text.getvalue() == "/a[red]/:smile:\\ b\n"


@pytest.mark.slow
@given(ARGUMENTS, st.integers(60, 200))
@settings(deadline=None)
def test_a_command_means_the_same_when_it_is_copied(arguments: list[str], width: int) -> None:
    text, command = io.StringIO(), shlex.join(["cddpm", *arguments])
    Console(file=text, width=width).command(command)
    assert shlex.split(text.getvalue().replace(" \\\n", " ")) == ["cddpm", *arguments]
    assert not too_long(text.getvalue(), width, set(map(shlex.quote, arguments)))


def test_an_option_stays_with_its_value(text: io.StringIO) -> None:
    Console(file=text, width=60).command(
        "cddpm predict scan.nii.gz --out outputs/predictions --resume --model champion"
    )
    assert text.getvalue().splitlines() == [
        "    cddpm predict scan.nii.gz --out outputs/predictions \\",
        "      --resume --model champion",
    ]
