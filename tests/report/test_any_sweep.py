"""A report can be made of every sweep: of no, one, two or many trials, however each of them has ended."""

import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import built_sweep
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from page_figures import figures, tooltips, without_plotly
from plotly.offline import get_plotlyjs

from cddpm import artifact
from cddpm.config import to_dict
from cddpm.report import page
from cddpm.search import leaderboard, trial
from cddpm.search.point import Point

FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped early", "failed", "interrupted"
ENDINGS = [FINISHED, STOPPED, FAILED, INTERRUPTED]
VALUES = st.sampled_from([0.0, 0.25, 1.0])
"""Few, so that equal and constant ones are frequent."""
EMPTY_TAGS = {"meta", "br", "hr", "img", "input", "link", "col"}


class Tags(HTMLParser):
    """Holds that every tag is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(folder: Path, trials: list[tuple[str, float]], points: int, healthy: bool) -> Path:
    """A sweep of ``trials``, each with its ending and its value; finished ones have tried so many ``points``."""
    settings = built_sweep.config(folder, "any", max(1, len(trials)), max(1, points))
    sweep = built_sweep.begin(settings)
    for number, (ending, value) in enumerate(trials):
        place = trial.folder_of(sweep, number)
        params = {"training.learning_rate": 1e-3, "training.batch_size": 2 ** (1 + number % 3), "diffusion.loss": "l1"}
        artifact.write_json(place / trial.CONFIG, to_dict(settings))
        if ending == STOPPED:
            row = {"number": number, "params": params, "objective": value, "images": 16.0}
            artifact.write_json(place / trial.STOPPED, row)
        elif ending == FAILED:
            artifact.write_json(place / trial.FAILED, {"number": number, "error": "a & b <c>"})
        elif ending == FINISHED:
            built_sweep._drawn_result(place, number, params, [_point(n, value, healthy) for n in range(max(1, points))])
            if not points:
                (place / trial.POINTS).unlink()
    return sweep


def _point(number: int, value: float, healthy: bool) -> Point:
    values: dict[str, Any] = {"A": {"dice": value, "auprc": value}, "B": {"auprc": value}}
    values |= {"healthy": {"false_positive_rate": value}} if healthy else {}
    params = {"scoring.guidance_scale": 0.5 * number, "scoring.noise_levels": [10]} if number else {}
    return Point(number, params, value, {"A": 0.1, "all": 0.1}, values, 0.0)


def check(trials: list[tuple[str, float]], points: int, healthy: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep = drawn(Path(folder), trials, points, healthy)
        text = page.write(sweep, sweep / "page.html").read_text()
        board = [row.name for row in leaderboard.rows(sweep)]
    tags, found = Tags(without_plotly(text)), figures(text)
    assert (get_plotlyjs() in text) == bool(found)
    tips = tooltips(found)
    for number, (ending, _) in enumerate(trials):
        assert f"{number:04d}" in tags.text
        assert (f"{number:04d}" in board) == (ending != INTERRUPTED)
    if any(ending == FINISHED for ending, _ in trials):
        told = [f"trial {n:04d}" for n, (ending, _) in enumerate(trials) if ending in (FINISHED, STOPPED)]
        assert all(any(tip.startswith(f"{name}:") for tip in tips) for name in told)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("count", [1, *(pytest.param(many, marks=pytest.mark.nightly) for many in (2, 12))])
@pytest.mark.parametrize("beside", [0, 1])
def test_so_many_trials_of_one_ending(ending: str, count: int, beside: int) -> None:
    check([(FINISHED, 0.5)] * beside + [(ending, 0.1 * (n + 1)) for n in range(count)], 3, True)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ENDINGS), VALUES), max_size=8), st.integers(0, 3), st.booleans())
@example([], 1, True)
@example([(FINISHED, 0.25)] * 8, 2, False)
def test_any_mixture(trials: list[tuple[str, float]], points: int, healthy: bool) -> None:
    check(trials, points, healthy)


def test_a_range_by_logarithms_shows_no_value_that_it_cannot() -> None:
    """The configuration's own value may be 0 where the setting was not searched."""
    from cddpm.config import Float
    from cddpm.report import landscape

    made = [
        landscape.Observation({"training.weight_decay": value}, 0.1, {}, place, 0)
        for value, place in ((0.0, "none"), (1e-3, "some"), (None, "unset"))
    ]
    searched = Float(float=(1e-4, 1e-2), log=True)
    tried, best = landscape._traces(made, [None], searched, "training.weight_decay")
    assert list(tried.x) == list(best.x) == [1e-3]
    assert [tip.split(":")[0] for tip in tried.hovertext] == ["some"]
    assert landscape._axis(searched, "training.weight_decay") == {"xaxis_type": "log"}
