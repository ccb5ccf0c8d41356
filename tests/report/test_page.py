"""The page: whole in one file, the same for the same sweep, honest about what is not there."""

import dataclasses
import re
import time
from pathlib import Path

import built_sweep
import pytest
from page_figures import figures, tooltips, without_plotly

from cddpm.report import document, page
from cddpm.report.document import PAGE
from cddpm.search.record import SweepRecord

pytestmark = pytest.mark.slow

LOADED = re.compile(r"""(?:src|href|action|data)\s*=\s*["'](?!data:|#)|@import|url\((?!#|["']?data:)""")


@pytest.fixture(scope="module")
def text(finished: SweepRecord) -> str:
    return page.html(finished)


def test_nothing_is_loaded(text: str) -> None:
    """Of plotly's own script, the test in the browser holds it."""
    assert not LOADED.findall(without_plotly(text))
    assert set(re.findall(r"https?://[^\s\"'<]+", without_plotly(text))) <= {"http://www.w3.org/2000/svg"}


def test_no_name_twice(text: str) -> None:
    names = re.findall(r'\sid="([^"]+)"', without_plotly(text))
    assert len(set(names)) == len(names)
    assert set(re.findall(r'href="#([^"]+)"', without_plotly(text))) <= set(names)


def test_a_finished_sweep_misses_nothing(finished: SweepRecord, text: str) -> None:
    assert page.missing(finished) == []
    assert text.count('class="missing"') == 1  # two trials are too few for the importance of training settings
    assert "Finished." in text
    own = without_plotly(text)
    assert 10 < own.count("<figcaption>") == own.count("<figure")


def test_every_chart_has_a_title_and_words_for_it(text: str) -> None:
    own, found = without_plotly(text), figures(text)
    titles = re.findall(r'<p class="title">(.+?)</p>', own)
    assert titles == re.findall(r'<div class="chart" role="img" aria-label="(.+?)"', own)
    assert len(found) == len(titles) == len(set(titles))
    assert all(figure["data"] for figure in found)
    assert all(tooltips(found))


def test_where_it_comes_from(finished: SweepRecord, text: str) -> None:
    assert finished.origin is not None
    start = finished.origin.starts[0]
    for wanted in (start.commit, start.when, "optuna ", finished.origin.store, "learning_rate:"):
        assert wanted in text


def test_an_unfinished_sweep_says_what_is_missing(long: SweepRecord, empty: SweepRecord) -> None:
    more = long.config.search.training.model_copy(update={"trials": 50})
    wanted = long.config.search.model_copy(update={"training": more})
    going = dataclasses.replace(long, config=long.config.model_copy(update={"search": wanted}), running=True)
    assert page.missing(going) == [
        "30 of 50 training trials have ended. All below is of those.",
        "Test was not scored yet: there is no champion, no test score and no picture of a test volume.",
    ]
    assert "Running while this page was made." in document.html(page._head(going))
    assert "0 of 3 training trials have ended" in page.html(empty)
    assert "before machine, commit and versions" in page.html(dataclasses.replace(empty, origin=None))


def test_a_better_trial_since_test_is_told(finished: SweepRecord) -> None:
    tested = finished.champion
    assert tested is not None
    assert tested.objective is not None
    assert tested.result is not None
    best = dataclasses.replace(tested.result.best, objective=tested.objective + 0.1)
    result = dataclasses.replace(tested.result, number=9, best=best)
    newer = dataclasses.replace(tested, folder=tested.folder.with_name("0009"), result=result)
    later = dataclasses.replace(finished, trials=[*finished.trials, newer])
    assert later.champion is tested
    assert page.missing(later) == ["A better trial has finished since test was scored; --resume scores it."]


def test_the_same_page_in_a_file(finished: SweepRecord, tmp_path: Path, text: str) -> None:
    assert page.write(finished.folder, tmp_path / "deep" / "page.html").read_text() == text
    assert not (finished.folder / PAGE).exists()


@pytest.mark.nightly
def test_a_hundred_trials_are_small_and_quick(tmp_path: Path) -> None:
    """Seconds of computing, not of the clock: other work on this machine is not its fault."""
    folder = built_sweep.drawn(tmp_path)
    start = time.process_time()
    path = page.write(folder, tmp_path / "page.html")
    assert time.process_time() - start < 20
    assert path.stat().st_size < 8_000_000
