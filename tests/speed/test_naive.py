"""The plain way measures what we measure, by other means."""

import numpy as np
import pytest
import torch
from speed.cohort import Cohort, experiment
from speed.naive import NaiveTrial

from cddpm.published.scoring import reference_anomaly_map
from cddpm.scoring.operating_point import area_under_roc, average_precision, histogram

SHAPE = (12, 64, 64)


@pytest.fixture(scope="module")
def trial(cohort: Cohort) -> NaiveTrial:
    torch.set_num_threads(1)
    return NaiveTrial(cohort, experiment(SHAPE, base_width=32))


@pytest.mark.slow
def test_its_numbers_are_ours(trial: NaiveTrial) -> None:
    scores = reference_anomaly_map(trial.volume, trial.config.scoring).astype(np.float16)
    h = histogram(scores, trial.truth)
    dice, roc, precision = trial.detect(scores.astype(np.float32))
    assert roc == pytest.approx(area_under_roc(h), rel=1e-9)
    assert precision == pytest.approx(average_precision(h), rel=1e-9)
    assert 0 <= dice < 1


@pytest.mark.slow
def test_every_part_is_measured_and_counts(trial: NaiveTrial) -> None:
    found = trial.measure()
    assert min(found.networks, found.filters, found.measures) > 0
    assert found.volume == pytest.approx(found.networks + found.filters + found.measures)
    assert torch.get_num_threads() == 1
