"""A benchmark on real processes: methods with and without training, a stop, a resume, tables, lab book, refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from launched import Here, Launched
from ten_scans import COUNTS

from cddpm.tracking import names

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

METHOD: dict[str, Any] = {
    "name": "method",
    "data": {
        "voxel_size_mm": 2.0,
        "volume_shape": [96, 96, 48],
        "rescale_factor": 3,
        "smoothing_iterations": 1,
        "phantom": COUNTS,
    },
    "encoder": {"architecture": "resnet18", "width": 8, "max_pool": False},
    "model": {"base_width": 8, "width_multipliers": [1, 1], "residual_blocks": 1, "attention_head_width": 8},
    "pretraining": {"enabled": False},
    "training": {
        "images": 64,
        "batch_size": 16,
        "learning_rate": 1.0e-3,
        "minimum_brain_fraction": 0.05,
        "evaluations": 1,
        "validation_slices": 8,
        "validation_volumes": 1,
    },
    "reconstruction": {"noise_levels": [300]},
    "compute": {"workers": 1},
    "evaluation": {"folds": [0], "bootstrap_resamples": 200, "permutation_resamples": 200},
}
BENCHMARK: dict[str, Any] = {
    "name": "small",
    "cohorts": [{"modality": "t2", "unhealthy": ["Brats21"]}],
    "methods": [
        {"label": "intensity threshold", "config": "method.yaml", "set": {"method": "intensity-threshold"}},
        {
            "label": "pDDPM",
            "config": "method.yaml",
            "set": {"model.conditioned": False, "diffusion.patch.enabled": True},
        },
    ],
    "set": {
        "diffusion.patch.size": 16,
        "evaluation.contrast_powers": [0.5],
        "evaluation.reference_metrics": True,
    },
}


def asked(folder: Path, data: Path) -> tuple[str, ...]:
    (folder / "method.yaml").write_text(yaml.safe_dump(METHOD))
    (folder / "small.yaml").write_text(yaml.safe_dump(BENCHMARK))
    given = ("--config", str(folder / "small.yaml"), "--output-dir", str(folder / "out"), "--data-dir", str(data))
    return "benchmark.py", *given


def table(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (folder / "out/evaluations/small/benchmark.csv").open() as stream:
        return {(row["method"], row["dataset"], row["measure"]): row for row in csv.DictReader(stream)}


def test_all_is_told_in_one_table(shared_ray: str, ten_scans: Path, tmp_path: Path) -> None:
    command = asked(tmp_path, ten_scans)
    benchmark = Here(*command)
    assert benchmark.code == 0, benchmark.output
    assert "Traceback" not in benchmark.output
    _tables(tmp_path)
    again = Here(*command)
    assert again.code == 6
    assert "benchmark 'small' exists" in again.output
    other = Here(*command, "--resume", "--set", "training.images=512")
    assert other.code == 6
    assert "training.images: was 64, is 512" in other.output


@pytest.mark.nightly
def test_stopped_and_resumed(shared_ray: str, ten_scans: Path, tmp_path: Path) -> None:
    command = asked(tmp_path, ten_scans)
    first = Launched(tmp_path, *command, "--address", shared_ray)
    first.wait_for("run 0001 starts")
    first.wait_for("run 0000 finished")  # both run at once where there is room for two
    first.interrupt()
    assert first.finish(90) == 130, first.output
    assert "--resume" in first.output
    done = tmp_path / "out/evaluations/small/runs/intensity-threshold-t2-fold0/result.json"
    kept = done.read_bytes()

    second = Here(*command, "--resume")
    assert second.code == 0, second.output
    assert "Traceback" not in second.output
    assert "run 0000 starts" not in second.output
    assert done.read_bytes() == kept

    _tables(tmp_path)


def _tables(tmp_path: Path) -> None:
    rows = table(tmp_path)
    for method in ("intensity threshold", "pDDPM"):
        assert 0 <= float(rows[method, "Brats21", "dice"]["mean"]) <= 100
        assert float(rows[method, "IXI (t2)", "false_positive_ml"]["mean"]) >= 0
    assert rows["pDDPM", "Brats21", "dice"]["published"] == "49.36"
    assert rows["intensity threshold", "Brats21", "dice"]["against"] == "pDDPM"
    text = (tmp_path / "out/evaluations/small/benchmark.md").read_text()
    assert "**Beware:** these volumes are synthetic" in text
    assert "| pDDPM | Brats21 | power 0.5 |" in text
    assert "| pDDPM | Brats21 | none |" in text

    run = tmp_path / "out/evaluations/small/runs/pddpm-t2-fold0"
    published = json.loads((run / "reference_metrics.json").read_text())
    outcome = json.loads((run / "result.json").read_text())
    assert published["test/Brats21"]["DicePerVolMean"] is not None
    volumes = [row for row in outcome["results"][0]["rows"] if row["dataset"] == "Brats21"]
    assert len(volumes) == COUNTS["unhealthy_test"]
    assert float(rows["pDDPM", "Brats21", "dice"]["mean"]) == pytest.approx(
        100 * sum(row["dice"] for row in volumes) / len(volumes)
    )

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("cddpm").experiment_id])
    runs = {run.data.tags[names.RUN]: run for run in found if run.data.tags[names.KIND] != names.KIND_STAGE}
    made = [run.data.tags[names.STAGE] for run in found if run.data.tags[names.KIND] == names.KIND_STAGE]
    assert {"store", "checkpoint", "reconstruction"} <= set(made)
    assert set(runs) == {"benchmark-small", "benchmark-small/0000", "benchmark-small/0001"}
    assert runs["benchmark-small/0001"].data.metrics["test/Brats21/dice"] == pytest.approx(
        outcome["results"][0]["measures"]["dice"]
    )
    files = {file.path for file in client.list_artifacts(runs["benchmark-small"].info.run_id)}
    assert {"benchmark.md", "benchmark.csv", "volumes.csv", "shifts.csv"} <= files


@pytest.mark.nightly
def test_a_failed_run_is_told_and_the_others_are_kept(shared_ray: str, ten_scans: Path, tmp_path: Path) -> None:
    failed = Here(*asked(tmp_path, ten_scans), "--set", "training.learning_rate=1.0e30")
    assert failed.code == 6, failed.output
    assert "1 of 2 runs failed" in failed.output
    assert "pddpm-t2-fold0: train: the loss became" in failed.output
    assert "Traceback" not in failed.output
    assert (tmp_path / "out/evaluations/small/runs/intensity-threshold-t2-fold0/result.json").exists()
