"""The course of a sweep: lines rise where the best does, and seconds add up."""

import numpy as np
import pytest

from cddpm.report import course
from cddpm.search.record import SweepRecord

pytestmark = pytest.mark.slow


def test_a_step_line_keeps_every_rise() -> None:
    values = np.random.default_rng(1).random(50).tolist()
    x, y = course._improvements(values)
    drawn = [y[max(i for i, at in enumerate(x) if at <= n)] for n in range(1, 51)]
    assert drawn == [max(values[:n]) for n in range(1, 51)]
    assert course._improvements([0.5]) == ([1, 1], [0.5, 0.5])


def test_seconds_from_images_and_speeds_by_hand() -> None:
    history = [
        {"images": 100.0, "train/images_per_second": 50.0},
        {"images": 200.0, "train/images_per_second": 25.0},
        {"images": 300.0},  # validated again after a resume: no speed is known
    ]
    assert course.seconds_of(history, "train") == 2.0 + 4.0
    assert course.seconds_of(history, "pretrain") == 0.0


def test_stages_add_up_to_the_trial(finished: SweepRecord) -> None:
    for trial in finished.finished:
        cost = course.cost_of(finished, trial)
        assert cost is not None
        assert trial.result is not None
        assert cost.training > 0
        assert cost.scoring == pytest.approx(sum(p.seconds for p in trial.points))
        assert cost.total == pytest.approx(trial.result.seconds)


def test_sections_of_a_finished_sweep(finished: SweepRecord) -> None:
    assert len(course.history(finished).charts) == 2
    charts = course.training(finished).charts
    axes = [chart.figure.layout.yaxis.title.text for chart in charts]
    assert axes == ["training loss", "validation loss", "preview dice"]  # nothing was pretrained
    assert all(len(chart.figure.data) == len(finished.trials) for chart in charts)
    assert "settings per hour" in course.cost(finished).body


def test_sections_say_what_is_missing(empty: SweepRecord, long: SweepRecord) -> None:
    for section in (course.history(empty), course.training(empty), course.cost(empty), course.training(long)):
        assert 'class="missing"' in section.body
        assert not section.charts


def test_many_trials_are_told_apart_by_the_best_alone(long: SweepRecord) -> None:
    over_trials, over_settings = course.history(long).charts
    lines = over_settings.figure.data
    assert [(line.name, line.showlegend) for line in lines[:2]] == [("other trials", True), ("other trials", False)]
    assert lines[-1].name == f"trial {long.champion.name} (best)"
    assert [trace.name for trace in over_trials.figure.data] == [
        "best so far",
        "finished",
        "stopped early: preview",
        "best",
    ]
    assert "Failed trials: 1." in over_trials.caption


def test_each_trial_with_a_value_has_a_mark(long: SweepRecord) -> None:
    _, finished, stopped, _ = course.history(long).charts[0].figure.data
    by_number = sorted(long.finished, key=lambda t: t.number)
    assert [tip.split(":")[0] for tip in finished.hovertext] == [f"trial {t.name}" for t in by_number]
    assert finished.y.tolist() == [t.objective for t in by_number]
    assert stopped.y.tolist() == [t.preview for t in long.trials if t.state == "stopped early"]
