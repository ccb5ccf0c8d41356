"""The note of a sweep's run: a table that Markdown draws, best trial first, nothing left out unsaid."""

from tiny_training import tiny_config

from cddpm.search import note
from cddpm.search.leaderboard import Row

CONTENDERS = [
    Row("champion = 0001", "finished", 0.51234, {"A": 0.4, "B": 0.3}, {"training.learning_rate": 0.00123}, 9.0),
    Row("0000", "finished", 0.4, None, {"scoring.residual": "l1"}, 9.0),
    Row("0002", "failed", None, None, {}, note="the loss became nan"),
    Row("intensity threshold", "for comparison", 0.2, {"A": 0.1, "B": None}, {}),
]


def test_the_table_by_hand() -> None:
    text = note.markdown(tiny_config(name="demo", search__objective="dice"), CONTENDERS)
    assert text.split("\n\n")[1].splitlines() == [
        "| trial | validation dice | test dice: A | test dice: B | state | settings |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        "| champion = 0001 | 0.512 | 0.400 | 0.300 | finished | learning_rate 0.00123 |",
        "| 0000 | 0.400 | - | - | finished | residual l1 |",
        "| 0002 | - | - | - | failed | as configured |",
        "| intensity threshold | 0.200 | 0.100 | - | for comparison | as configured |",
    ]
    assert "more, in" not in text
    assert "[Registered model `cddpm`](#/models/cddpm)" in text
    assert "`cddpm report demo`" in text
    assert "``tags.`cddpm.sweep` = 'demo' and tags.`cddpm.kind` = 'trial'``" in text


def test_of_many_trials_the_best_and_every_contender() -> None:
    many = [Row(f"{n:04d}", "finished", 1 - n / 100, None, {}) for n in range(30)]
    text = note.markdown(tiny_config(), [*many, CONTENDERS[-1]])
    assert text.count("\n| 00") == note.MOST_TRIALS
    assert "| intensity threshold |" in text
    assert "And 20 more, in `leaderboard.csv`" in text


def test_a_pipe_in_a_value_breaks_no_table() -> None:
    row = Row("0000", "finished", 0.5, None, {"a.b": "x|y\nz"})
    assert r"| b x\|y z |" in note.markdown(tiny_config(), [row])
