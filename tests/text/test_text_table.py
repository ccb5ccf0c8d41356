"""Tables and trees: at every width all cells are there, whole, in lines that fit."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from screen import broken_words, printed, too_long
from test_words import ITEMS, WIDTHS, markup

from cddpm.text import Table, Tree, name, whole

CELLS = st.lists(ITEMS, max_size=3)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, list[str]]:
    """A table of two to five columns, and every word, name and path in it and its title."""
    title, count = draw(CELLS), draw(st.integers(2, 5))
    table = Table(markup(title), show_header=draw(st.booleans()))
    for _ in range(count):
        justify = "right" if draw(st.booleans()) else "left"
        table.add_column(draw(st.sampled_from(["", "size", "only if"])), justify=justify)  # type: ignore[arg-type]
    found = [item for _, item in title]
    for _ in range(draw(st.integers(1, 3))):
        cells = [draw(CELLS) for _ in range(count)]
        table.add_row(*map(markup, cells))
        found += [item for cell in cells for _, item in cell]
    return table, found


@pytest.mark.slow
@given(tables(), WIDTHS)
@settings(max_examples=50, deadline=None)
def test_every_cell_is_there_whole_in_lines_that_fit(made: tuple[Table, list[str]], width: int) -> None:
    table, items = made
    text = printed(table, width=width)
    assert not broken_words(items, text)
    assert not too_long(text, width, set(items))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 3), CELLS), max_size=8), WIDTHS)
@settings(deadline=None)
def test_every_label_of_a_tree_is_there_whole(steps: list[tuple[int, list[tuple[str, str]]]], width: int) -> None:
    trunk = [Tree("root")]
    for depth, label in steps:
        trunk = trunk[: depth + 1]
        trunk.append(trunk[-1].add(markup(label)))
    text, items = printed(trunk[0], width=width), [item for _, label in steps for _, item in label]
    assert not broken_words(items, text)
    assert not too_long(text, width, set(items))


def table(*rows: Sequence[str]) -> Table:
    drawn = Table("sweep")
    for heading in ("setting", "searched"):
        drawn.add_column(heading)
    drawn.add_column("own", justify="right")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def test_by_hand() -> None:
    """Wide enough; names after their dots; one column below its row; one line per cell."""
    row = (name("diffusion.noise.frequency"), ", ".join(map(whole, ("[250, 500]", "[250]"))), "1")
    assert printed(table(row), width=60).splitlines() == [
        "sweep",
        "setting                    searched           own",
        "─" * 49,
        "diffusion.noise.frequency  [250, 500], [250]    1",
        "",
    ]
    assert printed(table(row), width=36).splitlines() == [
        "sweep",
        "setting         searched        own",
        "─" * 35,
        "diffusion.      [250, 500],       1",
        "noise.          [250]",
        "frequency",
        "",
    ]
    assert printed(table(row), width=25).splitlines() == [
        "sweep",
        "setting               own",
        "─" * 25,
        "diffusion.noise.        1",
        "frequency",
        "    searched: [250, 500],",
        "      [250]",
        "",
    ]
    assert printed(table(("x" * 30, "a b", "1")), width=25).splitlines() == [
        "sweep",
        "setting:",
        "x" * 30,
        "  searched: a b",
        "  own: 1",
        "",
    ]


def test_numbers_stand_to_the_right_and_rows_without_a_head_are_told_by_their_first_cell() -> None:
    drawn = Table(show_header=False)
    drawn.add_column()
    drawn.add_column(justify="right")
    drawn.add_row("dice", "0.5")
    drawn.add_row("loss", "12.25")
    assert printed(drawn, width=60).splitlines() == ["dice    0.5", "loss  12.25", ""]
    drawn.add_row("run", "r" * 60)
    assert printed(drawn, width=60).splitlines() == ["dice: 0.5", "loss: 12.25", "run:", "r" * 60, ""]


def test_a_row_has_a_cell_for_every_column() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("a", "b"))


def test_a_tree_by_hand() -> None:
    root = Tree("data")
    store = root.add("store s1\n/a/b")
    store.add("encoder").add("checkpoint")
    store.add("score")
    root.add("table")
    assert printed(root, width=60).splitlines() == [
        "data",
        "├── store s1",
        "│   /a/b",
        "│   ├── encoder",
        "│   │   └── checkpoint",
        "│   └── score",
        "└── table",
    ]
