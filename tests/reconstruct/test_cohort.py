"""The one way from scans to scores: in memory and on the disk it is the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import make_store, tiny_config
from torch import Tensor, nn

from cddpm.data.slices import OneScan, ScanRecord
from cddpm.data.store import SliceStore
from cddpm.errors import ArtifactError, CddpmError, DataError
from cddpm.models.cddpm import Condition
from cddpm.reconstruct import reconstruction
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.part import write_part
from cddpm.reconstruct.predict import Networks
from cddpm.reconstruct.reconstruction import Reconstruction

CONFIG = tiny_config(reconstruction__noise_levels=[25, 10, 40], reconstruction__noise_seeds=[0, 2])


class Dim(nn.Module):
    """What it restores is darker, by its noise and by what it was told."""

    null_condition = nn.Parameter(torch.zeros(1))

    def __init__(self, by: float = 0.7) -> None:
        super().__init__()
        self.by, self.passes = by, 0

    def condition(self, slices: Tensor) -> Condition:
        return Condition(slices.amax((1, 2, 3))[:, None])

    def null(self, batch: int) -> Condition:
        return Condition(torch.zeros(batch, 1))

    def predict_x0(self, slices: Tensor, t: Tensor, noise: Tensor, condition: Condition, *_: Any) -> Tensor:
        self.passes += 1
        return (
            self.by * slices + t[:, None, None, None] * noise / 1e4 - 0.1 * condition.vector[:, :, None, None] * slices
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return SliceStore.open(make_store(tmp_path_factory.mktemp("cohort")))


@pytest.fixture(scope="module")
def cohort(store: SliceStore) -> Cohort:
    return Cohort.of(store, CONFIG.data, "val")


def networks(by: float = 0.7) -> Any:
    return Networks(CONFIG, Dim(by))  # type: ignore[arg-type]


def test_it_has_the_volumes_of_a_split_healthy_ones_last(store: SliceStore, cohort: Cohort) -> None:
    assert cohort.unhealthy == {name: store.cohort(name, "val") for name in ("A", "B")}
    assert cohort.volumes == [v for name in ("A", "B", "IXI") for v in store.cohort(name, "val")]
    with pytest.raises(DataError, match="no volumes of B test"):
        Cohort.of(store, CONFIG.data, "test")


def test_in_memory_and_on_the_disk_the_scores_are_the_same(cohort: Cohort, tmp_path: Path) -> None:
    made, path = cohort.reconstruct(networks()), tmp_path / "kept"
    view = cohort.view(CONFIG.reconstruction)
    requests = [_request(cohort, v, view.steps) for v in cohort.volumes]
    for request, arrays in networks().predict(requests):
        write_part(reconstruction.parts_directory(path), request.key, arrays)
    reconstruction.finish(path, view.volumes, "kept", {}, view=view)
    kept = Reconstruction.open(path)
    assert (
        (made.levels, made.seeds, made.guided) == (kept.levels, kept.seeds, kept.guided) == ((10, 25, 40), (0, 2), True)
    )
    scoring = CONFIG.scoring.model_copy(update={"guidance_scale": 1.5, "combine": "mean"})
    one, other = (replace_seconds(cohort.scorer(r).score(scoring)) for r in (made, kept))
    assert one == other
    assert one.objective > 0


def _request(cohort: Cohort, v: int, steps: Any) -> Any:
    from cddpm.reconstruct.predict import Request

    return Request(cohort.store.volumes[v].id, cohort.store.image(v), steps)


def replace_seconds(score: Any) -> Any:
    return replace(score, seconds=0.0)


def test_what_a_scoring_reads_is_all_that_is_predicted_and_the_same_bit_for_bit(cohort: Cohort) -> None:
    scoring = CONFIG.scoring.model_copy(update={"noise_levels": (25,)})
    whole, needed = cohort.reconstruct(networks()), cohort.reconstruct(networks(), scoring)
    assert (needed.levels, needed.seeds, needed.guided) == ((25,), (0, 2), False)
    for volume in needed.volumes:
        assert np.array_equal(needed.c(volume, 25, 2), whole.c(volume, 25, 2))
    assert replace_seconds(cohort.scorer(needed).score(scoring)) == replace_seconds(cohort.scorer(whole).score(scoring))
    with pytest.raises(ArtifactError, match=r"these predictions: noise level 10 .* there are levels \[25\]"):
        needed.c(needed.volumes[0], 10, 0)


def test_a_scan_is_a_cohort_of_one(store: SliceStore, cohort: Cohort) -> None:
    v = cohort.unhealthy["A"][0]
    record = store.volumes[v]
    scan = Cohort(OneScan(ScanRecord(record.id, record.geometry), store.image(v), store.mask(v)), healthy=[0])
    alone, among = scan.scorer(scan.reconstruct(networks())), cohort.scorer(cohort.reconstruct(networks()))
    assert np.array_equal(alone.anomaly_map(0, CONFIG.scoring), among.anomaly_map(v, CONFIG.scoring))
    assert alone.cases("healthy")[0].voxel_ml == among.cases("A")[0].voxel_ml


def test_exact_predictions_are_not_rounded_and_may_be_anything(cohort: Cohort) -> None:
    volume = cohort.store.volumes[cohort.volumes[0]].id
    exact, rounded = cohort.reconstruct(networks(), exact=True), cohort.reconstruct(networks())
    assert exact.c(volume, 10, 0).dtype == exact.d(volume, 10, 0).dtype == np.float32
    assert np.array_equal(exact.c(volume, 10, 0).astype(np.float16), rounded.c(volume, 10, 0))
    assert np.isinf(cohort.reconstruct(networks(np.inf), exact=True).c(volume, 10, 0)).any()
    with pytest.raises(CddpmError, match="infinite or NaN"):
        cohort.reconstruct(networks(np.inf))


def test_without_reconstructions_the_image_is_scored(cohort: Cohort) -> None:
    scorer = cohort.scorer(None, threads=2)
    assert not scorer.guided
    assert scorer.score(CONFIG.scoring).objective > 0


def test_nobody_makes_a_reconstruction_of_nothing(store: SliceStore) -> None:
    found = Cohort(store).reconstruct(networks())
    assert (found.volumes, found.guided) == ((), False)
