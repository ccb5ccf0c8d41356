"""The landscape: the best along a setting is the best, differences between trainings are taken out, all is drawn."""

import numpy as np
import pytest

from cddpm.report import landscape
from cddpm.report.landscape import Observation
from cddpm.search.record import SweepRecord

pytestmark = pytest.mark.slow


def test_the_envelope_of_choices_is_the_best_of_each() -> None:
    x, y = np.array([2.0, 0.0, 2.0, 0.0, 1.0]), np.array([0.1, 0.5, 0.3, 0.2, 0.4])
    at, best = landscape.envelope(x, y, each=True)
    assert at.tolist() == [0.0, 1.0, 2.0]
    assert best.tolist() == [0.5, 0.4, 0.3]


def test_the_envelope_of_numbers_lies_on_points_and_has_the_best() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.random(500), draw.random(500)
    at, best = landscape.envelope(x, y, each=False)
    assert len(at) == landscape.BINS
    assert (np.diff(at) > 0).all()
    assert set(zip(at, best, strict=True)) <= set(zip(x, y, strict=True))
    assert best.max() == y.max()


def test_what_differs_between_trainings_is_taken_out() -> None:
    observations = [Observation({}, value, {}, "", trial) for trial, value in [(0, 0.1), (0, 0.3), (1, 0.8), (1, 0.6)]]
    assert [value for _, value in landscape._within_trials(observations)] == pytest.approx([-0.1, 0.1, 0.1, -0.1])


def test_observations_are_whole(long: SweepRecord) -> None:
    settings, trials = landscape.of_settings(long), landscape.of_trials(long)
    assert len(trials) == len(long.finished)
    assert len(settings) == 40 * len(trials)
    assert all(set(o.settings) == set(long.config.search.scoring.space) for o in settings)
    assert settings[0].settings["scoring.guidance_scale"] == 1.0  # the configuration's own
    assert set(settings[0].datasets) == {"A", "B", "healthy"} - {"healthy"}


def test_what_was_drawn_to_matter_is_found(long: SweepRecord) -> None:
    training, scoring = [list(chart.figure.data[0].y) for chart in landscape.importance(long).charts]
    assert training.index("learning_rate") < training.index("batch_size")
    assert scoring.index("guidance_scale") < scoring.index("residual")


@pytest.mark.parametrize("name", ["finished", pytest.param("long", marks=pytest.mark.nightly)])
def test_a_slice_per_setting(name: str, request: pytest.FixtureRequest) -> None:
    sweep: SweepRecord = request.getfixturevalue(name)
    space = [*sweep.config.search.training.space, *sweep.config.search.scoring.space]
    charts = landscape.slices(sweep).charts
    assert [chart.title for chart in charts] == [f"Validation dice against {path}" for path in space]
    for chart in charts:
        assert [trace.name for trace in chart.figure.data] == ["A", "B", "A", "B", "best"]
        for tried in chart.figure.data[:2]:
            assert len(tried.hovertext) == len(tried.x) > 0


def test_what_is_missing_is_said(empty: SweepRecord, finished: SweepRecord) -> None:
    assert 'class="missing"' in landscape.slices(empty).body
    assert "2 values are too few" in landscape.importance(finished).body
