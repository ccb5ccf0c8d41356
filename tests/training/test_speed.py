"""The time of one pass is measured only where a search weighs it, and is a plain positive number."""

from pathlib import Path

import pytest
import torch
from tiny_training import make_store, tiny_config, train

from cddpm.training import speed, stages

AIMS = [{"metric": "dice", "goal": "maximize"}, {"metric": "seconds_per_volume", "goal": "minimize"}]


def test_only_a_search_for_speed_asks_for_it() -> None:
    assert not speed.wanted(tiny_config())
    assert speed.wanted(tiny_config(search__objectives=AIMS))


@pytest.mark.slow
def test_a_pass_takes_time(tmp_path: Path) -> None:
    config = tiny_config(pretraining__enabled=False, training__images=4, training__evaluations=1)
    store = make_store(tmp_path)
    made = train(config, store, tmp_path / "artifacts")
    place = stages.Place(tmp_path / "artifacts", store)
    seconds = speed.pass_seconds(config, place, made.checkpoint, 0, torch.device("cpu"))
    assert isinstance(seconds, float)
    assert 0 < seconds < 30
