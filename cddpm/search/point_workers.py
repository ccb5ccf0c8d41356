"""Who scores the points of an inner search: this process, or several of one CPU each, on any node."""

from collections.abc import Iterator
from contextlib import contextmanager

from cddpm.cluster import ActorPool
from cddpm.config import ExperimentConfig
from cddpm.scoring.score import Scorer
from cddpm.scoring.score_book import ScoreBook
from cddpm.search.point import PointScorer, ScorePoints, in_process


def cpus(config: ExperimentConfig) -> int:
    """CPUs that the workers of a training book; they are free while its points are scored."""
    return max(1, int(config.compute.workers * config.compute.cpus_per_worker))


@contextmanager
def point_workers(scorer: Scorer | ScoreBook, config: ExperimentConfig) -> Iterator[ScorePoints]:
    """Scores batches as ``search.scoring_batch`` asks, until the block ends.

    Processes take over ``scorer``'s cohort, not its memory. With a single point, batch or CPU it works in this one.
    """
    level = config.search.scoring
    count = min(config.search.scoring_batch, cpus(config), level.trials if level.space else 1)
    if count == 1:
        yield in_process(scorer, config)
        return
    with ActorPool(PointScorer(scorer, config), count) as pool:
        yield pool.map
