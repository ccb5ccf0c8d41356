"""Where a sweep takes its scans from: a table needs neither split files nor the phantom."""

import io
from pathlib import Path

import numpy as np
import pytest

from cddpm.config import ExperimentConfig
from cddpm.data.volume import write_volume
from cddpm.errors import DataError
from cddpm.search.display import Display
from cddpm.search.preparation import prepare_data
from cddpm.text import Console

ROWS = (
    ("Own", "a", "train", 0),
    ("Own", "b", "val", 0),
    ("Own", "c", "test", 0),
    ("Sick", "d", "val", 1),
    ("Sick", "e", "test", 1),
)


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """Five tiny scans in folders of their own, and a table."""
    lines, random = ["dataset,subject,split,image,mask,segmentation\n"], np.random.default_rng(0)
    for dataset, subject, split, label in ROWS:
        mask = np.zeros((12, 12, 6), np.uint8)
        mask[2:10, 2:10, 1:5] = 1
        kinds = {"flair": random.uniform(1, 9, mask.shape).astype(np.float32) * mask, "brain": mask, "spot": mask}
        for kind in list(kinds)[: 2 + label]:
            write_volume(tmp_path / "study" / subject / f"{kind}.nii.gz", kinds[kind], np.eye(4))
        spot = f"{subject}/spot.nii.gz" if label else ""
        lines.append(f"{dataset},{subject},{split},{subject}/{{modality}}.nii.gz,{subject}/brain.nii.gz,{spot}\n")
    (tmp_path / "study/scans.csv").write_text("".join(lines))
    data = {"table": tmp_path / "study/scans.csv", "healthy": "Own", "unhealthy": ["Sick"], "modality": "flair"}
    return ExperimentConfig.model_validate({"name": "own", "output_dir": tmp_path / "out", "data": data})


def prepared(config: ExperimentConfig) -> tuple[Path, str]:
    console = Console(file=io.StringIO(), width=100)
    root = prepare_data(config, Display(console))
    assert isinstance(console.file, io.StringIO)
    return root, console.file.getvalue()


@pytest.mark.slow
def test_a_table_takes_the_place_of_split_files_and_phantom(config: ExperimentConfig, tmp_path: Path) -> None:
    root, said = prepared(config)
    assert root == tmp_path / "study"
    assert "5 scans, no errors" in said
    assert "phantom" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_its_faults_end_the_sweep_before_it_begins(config: ExperimentConfig, tmp_path: Path) -> None:
    (tmp_path / "study/e/spot.nii.gz").unlink()
    with pytest.raises(DataError, match=r"spot\.nii\.gz: "):
        prepared(config)
