"""A worker group on a real Ray: what it does after an error that every start would meet."""

from pathlib import Path

import pytest
from tiny_training import tiny_config

from cddpm.training import stages, worker
from cddpm.training.loop import DivergedError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
DIVERGING = {
    "pretraining__enabled": False,
    "training__learning_rate": 1e30,
    "training__warmup_images": 0,
    "training__gradient_clip": None,
}


class Starts:
    """Notes each first step that a worker group makes."""

    def __init__(self, path: Path, batch_size: int) -> None:
        self.path, self.batch_size = path, batch_size

    def post(self, trial: int, stage: str, images: int, budget: int, loss: float) -> None:
        if images == self.batch_size:
            with self.path.open("a") as stream:
                stream.write(f"{stage}\n")


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2])
def test_a_diverging_training_is_not_started_again(
    shared_ray: str, store_path: Path, tmp_path: Path, workers: int
) -> None:
    config = tiny_config(**DIVERGING, compute__workers=workers, compute__maximum_failures=2)
    board = Starts(tmp_path / "starts", config.training.batch_size)
    place = stages.Place(tmp_path / "artifacts", store_path)
    job = worker.Assignment(config, place, 0, tmp_path / "stop", board)
    with pytest.raises(DivergedError, match="the loss became"):
        worker.run(job, tmp_path / "ray", 0.0, forward_reports=False)
    assert board.path.read_text() == "train\n"
