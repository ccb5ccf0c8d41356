"""Lines are broken between words and after the dots of names, and nowhere else: for all words, names, paths and widths."""

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.markup import escape
from screen import lost, printed, too_long

from cddpm.text import name, near, path, whole

WIDTHS = st.integers(60, 200)
WORDS = st.text("abcxyzABC019-_/<>[]=,:%±µ字", min_size=1, max_size=30)
NAMES = st.lists(st.text("abcxyz_019", min_size=1, max_size=14), min_size=2, max_size=12).map(".".join)
FOLDERS = st.text("abcxyzABC019-_. []µ", min_size=1, max_size=40).filter(lambda text: text == text.strip() != "")
PATHS = st.lists(FOLDERS, min_size=1, max_size=6).map(lambda folders: "/" + "/".join(folders))
ITEMS = st.one_of(
    st.tuples(st.just("word"), WORDS), st.tuples(st.just("name"), NAMES), st.tuples(st.just("path"), PATHS)
)
MARKUP = {"word": escape, "name": name, "path": whole}


def markup(items: list[tuple[str, str]]) -> str:
    """Neighbouring words are escaped together: a bracket may open in one and close in the next."""
    runs = itertools.groupby(items, key=lambda item: MARKUP[item[0]])
    return " ".join(
        escape(" ".join(text for _, text in run)) if mark is escape else " ".join(mark(text) for _, text in run)
        for mark, run in runs
    )


@pytest.mark.slow
@given(st.lists(ITEMS, min_size=1, max_size=20), WIDTHS, st.integers(0, 8))
@settings(deadline=None)
@example([("word", "x"), ("path", "/a b/" + "c" * 70)], 60, 2)
def test_nothing_is_lost_nothing_broken_and_no_line_too_long(
    items: list[tuple[str, str]], width: int, lead: int
) -> None:
    text = printed(" " * lead + markup(items), width=width)
    assert "".join(text.split()) == "".join("".join(text for _, text in items).split())
    assert not too_long(text, width, {text for _, text in items})
    joined = text.replace("\n", "\0")
    for kind, item in items:
        if kind == "name":
            assert re.search(r"\.(?:\0 *)?".join(map(re.escape, item.split("."))), joined), item
        else:
            assert any(item in line for line in text.splitlines()), item


@pytest.mark.slow
@given(st.lists(WORDS, min_size=1, max_size=60), WIDTHS)
@settings(deadline=None)
def test_a_line_is_broken_only_where_the_next_word_has_no_room(words: list[str], width: int) -> None:
    for line, after in itertools.pairwise(printed(escape(" ".join(words)), width=width).splitlines()):
        assert cell_len(line) + 1 + cell_len(after.split()[0]) > width


@pytest.mark.slow
@given(NAMES)
@settings(deadline=None)
def test_a_name_that_fits_a_line_stays_whole(dotted: str) -> None:
    assert printed(f"setting {name(dotted)}", width=len(dotted) + 12).split()[1] == dotted


def test_by_hand() -> None:
    text = (
        f"slice store of {path('/data/my scans/site')} [green]built[/]: {name('data.volume_shape')} 96x96 as asked for"
    )
    assert printed(text, width=40).splitlines() == [
        "slice store of /data/my scans/site",
        "  built: data.volume_shape 96x96 as",
        "  asked for",
    ]
    assert printed("  a " + whole("b" * 50), width=40).splitlines() == ["  a", "b" * 50]
    assert printed("  a " + whole("b" * 38), width=40).splitlines() == ["  a", "  " + "b" * 38]


@pytest.mark.parametrize(
    ("place", "seen"), [("in/x", "in/x"), ("/other/x", "/other/x"), ("http://x//y", "http://x//y")]
)
def test_paths_are_counted_from_here_where_that_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, seen: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(place) == seen
    assert near(tmp_path / "in" / "x") == "in/x"
    assert near(tmp_path.parent) == str(tmp_path.parent)


def test_the_laws_of_screens_find_what_is_broken() -> None:
    """As Rich breaks where a column is narrow."""
    assert lost("checkpoints 2", "checkpoin\nts 2") == ["checkpoints"]
    assert lost("diffusion.noise.frequency", "diffusion.noise.fre\nquency") == ["diffusion.noise.frequency"]
    assert lost("/data/a/scan.nii.gz", "/data/a/\nscan.nii.gz") == ["/data/a/scan.nii.gz"]
    assert not lost("diffusion.noise.frequency of 2", "diffusion.noise.\nfrequency of\n2")
    assert too_long("a " + "b" * 80 + "\n" + "c" * 81, 80) == ["a " + "b" * 80]
