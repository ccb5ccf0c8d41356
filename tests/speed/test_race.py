"""Both ways of a race walk the same settings; the plain one agrees with the cache, and takes no more time than it is given."""

from pathlib import Path

import built_sweep
import pytest
from speed import race

from cddpm.config import with_values
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.reconstruction import Reconstruction, cache_path
from cddpm.search.point import Point, score_point
from cddpm.search.record import read


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_sweep.trained(tmp_path_factory.mktemp("race") / "out", trials=1, finish=False)


def both(sweep: Path, params: dict[str, object]) -> tuple[Point, Point]:
    """The same settings on the cache (threshold by the ten-step search) and the plain way."""
    record = read(sweep)
    (trial,) = record.finished
    assert trial.result is not None
    config = with_values(record.trial_config(trial), {"scoring.operating_point": "seed-search"})
    cache = Reconstruction.open(cache_path(record.artifacts, trial.result.reconstruction))
    store = SliceStore.open(record.artifacts / "store" / "tiny")
    cohort = Cohort.of(store, config.data, "val")
    cached = score_point(cohort.scorer(cache), config, (1, params))
    network = race.network(record, trial.result.checkpoint, config)
    (plain,) = race.PlainWay(network, cohort, config)([(1, params)])
    return cached, plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"scoring.guidance_scale": 1.7, "scoring.residual": "l2", "scoring.median_kernel": 3},
        {"scoring.noise_levels": [10], "scoring.residual": "positive", "scoring.minimum_component_voxels": 4},
    ],
)
def test_the_plain_way_finds_the_dice_of_the_cache(sweep: Path, params: dict[str, object]) -> None:
    cached, plain = both(sweep, params)
    assert plain.objective == pytest.approx(cached.objective, abs=0.02)  # the cache rounds to float16
    for name, values in plain.datasets.items():
        assert values["auprc"] == pytest.approx(cached.datasets[name]["auprc"], abs=0.02)


@pytest.mark.slow
def test_both_ways_start_alike_and_the_plain_one_ends_with_its_time(sweep: Path, tmp_path: Path) -> None:
    found = race.run(sweep, threads=1)
    assert len(found.cached.best) == 8
    assert 1 <= len(found.plain.best) <= 8
    for course in (found.cached, found.plain):
        assert course.seconds == sorted(course.seconds)
        assert course.best == sorted(course.best)
    if len(found.plain.best) > 1:  # no setting was begun after the time was over
        assert found.plain.seconds[-2] <= found.cached.seconds[-1]
    assert found.checked <= found.cached.best[-1] + 1e-12  # the first ten are drawn without looking
    race.draw(found, tmp_path / "race.png")
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_a_space_that_the_plain_way_lacks_is_refused(tmp_path: Path) -> None:
    config = built_sweep.config(tmp_path, trials=1)
    config = with_values(config, {"search.scoring.space": {"scoring.residual": {"choice": ["l1", "ssim"]}}})
    with pytest.raises(SearchError, match="residuals l1, l2, positive"):
        race.check_space(config)
