"""The cost of the lab book comes out as numbers, and all lines that it is measured with arrive; its size is not tested."""

from pathlib import Path

import pytest
from speed import logging_cost

from cddpm.tracking import connection, names
from cddpm.training import checkpoint


@pytest.mark.nightly
def test_both_ways_are_run_and_every_line_arrives(tmp_path: Path) -> None:
    sizes = logging_cost.Sizes(steps=1, repeats=2)
    computing, away, waiting = logging_cost.measure(tmp_path, sizes)
    assert [(row.bar, row.sense, row.unit) for row in (computing, away, waiting)] == [
        (bar, "at most", "%") for bar in (2.0, 5.0, 2.0)
    ]
    assert "2 blocks of 1 steps each way" in computing.detail
    assert waiting.measured > 0
    client = connection.connect(connection.default_uri(tmp_path / "there"), create=False)
    experiment = client.get_experiment_by_name("cddpm")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{names.RUN}` = 'bench'")
    history = client.get_metric_history(run.info.run_id, names.VAL_LOSS)
    assert [point.step for point in history] == [32 * n for n in range(1, 1 + 3 + 20)]  # 1 + 2 blocks, 20 lines alone
    away = checkpoint.read_history(tmp_path / "away" / checkpoint.HISTORY)
    assert len(away) == 3 + 20
