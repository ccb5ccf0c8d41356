"""How scans are prepared, searched as any other setting: a slice store for each way, made before the first trial."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sweep import ONE_PROCESS, Sweep

from cddpm import cluster
from cddpm.config import ExperimentConfig, parse, with_values
from cddpm.data.store import SliceStore
from cddpm.data.volume import write_volume
from cddpm.errors import ConfigError
from cddpm.search import record
from cddpm.search.display import Display
from cddpm.search.preparation import preparations, slice_stores
from cddpm.text import Console
from cddpm.tracking.package import read_package
from cddpm.training import stages

OPTIONS: dict[str, Any] = {
    "data.intensities": {"choice": ["percentiles", "landmarks", "z-score"]},
    "data.standard_range": {"choice": [None, [-2, 2]], "if": {"data.intensities": "z-score"}},
}

SCANS = (
    ("Own-a", "train"),
    ("Own-b", "train"),
    ("Own-c", "val"),
    ("Own-d", "test"),
    ("Sick-e", "test"),
    ("Sick-f", "val"),
)


def searching(space: dict[str, Any], **data: Any) -> ExperimentConfig:
    search = {"training": {"trials": 2, "space": space}}
    return parse({"name": "own", "data": data, "pretraining": {"enabled": False}, "search": search}, "test")


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    """The data section of six tiny scans in a table."""
    lines, random = ["dataset,subject,split,image,mask,segmentation\n"], np.random.default_rng(0)
    for subject, split in SCANS:
        mask = np.zeros((12, 12, 6), np.uint8)
        mask[2:10, 2:10, 1:5] = 1
        files = [tmp_path / f"{subject}-{kind}.nii.gz" for kind in ("flair", "brain", "spot")]
        for file, array in zip(
            files, (random.uniform(1, 9, mask.shape).astype(np.float32) * mask, mask, mask), strict=True
        ):
            write_volume(file, array, np.eye(4))
        spot = files[2].name if subject.startswith("Sick") else ""
        lines.append(f"{subject.partition('-')[0]},{subject},{split},{files[0].name},{files[1].name},{spot}\n")
    (tmp_path / "scans.csv").write_text("".join(lines))
    return {"table": str(tmp_path / "scans.csv"), "healthy": "Own", "unhealthy": ["Sick"], "modality": "flair"}


def test_each_way_to_prepare_is_made_once(study: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cluster, "over_scans", lambda config: map)  # in this process
    config = searching(OPTIONS, **study, volume_shape=[32, 32, 8], rescale_factor=1, smoothing_iterations=0)
    config = config.model_copy(update={"output_dir": tmp_path / "out"})
    place = slice_stores(config, tmp_path, Display(Console(file=io.StringIO())), tmp_path / "out/sweeps/own")
    found = {}
    for params in preparations(config):
        own = place.of(with_values(config, params))
        found[str(params)] = own.store
        trial = stages.as_prepared(with_values(config, params), own)
        assert (trial.data.landmarks is not None) == (params["data.intensities"] == "landmarks")
        assert parse(trial.model_dump(mode="json", by_alias=True), "kept") == trial
    assert len(found) == len(set(found.values())) == 4
    assert place.of(config).store == place.store
    images = [SliceStore.open(path).image(0) for path in found.values()]
    assert all(not np.array_equal(images[0], other) for other in images[1:])
    assert stages.Place(tmp_path, place.store).of(config).store == place.store  # nothing of that kind is searched


def test_a_setting_whose_condition_does_not_hold_makes_no_store() -> None:
    ways = list(preparations(searching(OPTIONS)))
    assert [way for way in ways if way["data.intensities"] == "percentiles"] == [
        {"data.intensities": "percentiles"}
    ] * 2
    assert {str(way.get("data.standard_range")) for way in ways if way["data.intensities"] == "z-score"} == {
        "None",
        "[-2, 2]",
    }
    assert list(preparations(searching({"training.learning_rate": {"choice": [1e-4, 2e-4]}}))) == [{}]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"data.smoothing_iterations": {"int": [1, 3]}}, "each value costs a slice store; list them as a choice"),
        ({"data.fold": {"choice": [0, 1]}}, "'data.fold': allowed here are"),
        (
            {"data.smoothing_iterations": {"choice": [0, 3], "if": {"model.conditioned": True}}},
            "if: 'model.conditioned': a slice store depends on data settings alone",
        ),
    ],
)
def test_spaces_that_cannot_be(space: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        searching(space)


@pytest.mark.ray
@pytest.mark.nightly
def test_a_sweep_over_intensities(tmp_path: Path) -> None:
    space = {"data.intensities": {"choice": ["percentiles", "landmarks"]}}
    training = {"trials": 2, "space": space, "sampler": "grid"}
    config = {**ONE_PROCESS, "search": {**ONE_PROCESS["search"], "training": training}}
    done = Sweep(tmp_path, config=config)
    assert done.finish(600) == 0, done.output
    folder = tmp_path / "out/sweeps/small"
    found = record.read(folder)
    by_option = {trial.params["data.intensities"]: trial for trial in found.trials}
    assert by_option.keys() == {"percentiles", "landmarks"}
    stores = {option: found.store_of(trial) for option, trial in by_option.items()}
    assert len(set(stores.values())) == 2
    for option, trial in by_option.items():
        package = read_package(folder / "packages" / trial.name)
        assert package.config.data.intensities == option
        assert (package.config.data.landmarks is not None) == (option == "landmarks")
        assert package.pipeline.fingerprints["store"] == stores[option]
