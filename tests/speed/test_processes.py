"""Local processes score as this process does, each with a scorer of its own."""

from dataclasses import replace

import pytest
from speed.cohort import Cohort, experiment
from speed.processes import local_processes

from cddpm.search.point import PointScorer, Proposal, in_process

PROPOSALS: list[Proposal] = [(n, {"scoring.guidance_scale": 0.5 * n}) for n in range(5)]


@pytest.mark.slow
def test_two_processes_score_a_batch(cohort: Cohort) -> None:
    config, scorer = experiment((12, 64, 64)), cohort.scorer(2)
    with local_processes(PointScorer(scorer, config), 2) as score:
        there = [replace(point, seconds=0.0) for point in score(PROPOSALS)]
    assert there == [replace(point, seconds=0.0) for point in in_process(scorer, config)(PROPOSALS)]
