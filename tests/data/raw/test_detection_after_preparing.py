"""What a model finds in heads with a skull, a bias field and oblique axes, prepared, against the same without field and turn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from heads import Whole, motion, phantom, scanned

from cddpm.config import ExperimentConfig, PhantomConfig, load
from cddpm.config.preparation import PreparationConfig
from cddpm.data.layout import read_layout
from cddpm.data.phantom.folder import Cohort as Members
from cddpm.data.phantom.folder import cohort, write_splits
from cddpm.data.phantom.subject import Subject, files_of
from cddpm.data.raw.head import Head
from cddpm.data.raw.resampling import moved
from cddpm.data.raw.steps import steps_of
from cddpm.data.slices import SliceStore
from cddpm.data.store import build_store
from cddpm.data.volume import write_volume
from cddpm.models.precision import settled_for
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.scoring.score import Scorer, evaluate
from cddpm.training import checkpoint, stages
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks

QUICKSTART = Path(__file__).parents[3] / "tune_configs" / "quickstart.yaml"
COUNTS = {"healthy_train": 24, "healthy_val": 4, "healthy_test": 2, "unhealthy_val": 5, "unhealthy_test": 12}
VOXEL_MM = 2.0
STEPS = PreparationConfig(voxel_size_mm=VOXEL_MM)


def experiment() -> ExperimentConfig:
    """The quickstart's network, trained once, for a minute."""
    tiny = {
        "pretraining.enabled": False,
        "training.images": 2240,
        "training.evaluations": 1,
        "training.keep": "last",
        "reconstruction.noise_levels": [350],
        "scoring.median_kernel": 3,
        "search.scoring.trials": 1,
        "search.scoring.space": {},
        "compute.workers": 1,
    }
    return settled_for(load(QUICKSTART, tiny), "cpu")


def members() -> Members:
    """Of the healthy and of tumours."""
    found = cohort(PhantomConfig.model_validate({"seed": 3, **COUNTS}), ("t2",))
    ill = {
        name: tuple(s for s in getattr(found, name) if s.dataset == "Brats21")
        for name in ("unhealthy_val", "unhealthy_test")
    }
    return replace(found, **ill)


def distorted(whole: Whole, subject: Subject) -> Whole:
    """Scanned on axes that are turned by 8 to 20 degrees, which its header tells, under a field of +-30 %."""
    random = np.random.default_rng([7, subject.index, len(subject.dataset)])
    by = motion(random.uniform(8, 20), random.uniform(5, 20), 1.0, about=tuple(random.normal(size=3)))
    scan, _ = scanned(whole, by, VOXEL_MM, bias=0.3, seed=subject.index)
    return Whole(*(moved(grid, np.linalg.inv(by)) for grid in (scan.image, scan.brain, scan.lesions)))


def write(subject: Subject, whole: Whole, root: Path) -> None:
    """The prepared head in the published layout."""
    head = Head({"t2": whole.image}, whole.brain, whole.lesions)
    for step in steps_of(STEPS, head_has_mask=True):
        head, _ = step.run(head)
    grids = {"t2": head.images["t2"], "mask": head.mask, "seg": head.segmentation}
    for kind, path in files_of(subject, root, ("t2",)).items():
        grid = grids[kind]
        assert grid is not None
        write_volume(path, grid.data, grid.affine, dtype=np.float32 if kind == "t2" else np.uint8)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_skull_field_and_oblique_axes_cost_no_detection(tmp_path: Path) -> None:
    """One model, trained on prepared heads without field and turn; its threshold is that of validation there."""
    torch.set_num_threads(1)
    config, everyone = experiment(), members()
    for subject in everyone.subjects:
        write(subject, phantom("t2", subject.dataset, subject.index, VOXEL_MM), tmp_path / "plain")
    for subject in (*everyone.unhealthy_test, *everyone.healthy_test):
        whole = phantom("t2", subject.dataset, subject.index, VOXEL_MM)
        write(subject, distorted(whole, subject), tmp_path / "distorted")
    for name in ("plain", "distorted"):
        write_splits(tmp_path / name / "splits", everyone)
    place = stages.Place(tmp_path / "artifacts", store(config, tmp_path, "plain", ("train", "val", "test")))
    made = stages.train(config, place, Ranks(), Hooks())
    network = checkpoint.trained(config, checkpoint.load_weights(made.checkpoint / checkpoint.WEIGHTS), "tiny")

    def scorer(path: Path, split: str) -> Scorer:
        found = Cohort.of(SliceStore.open(path), config.data, split)
        return found.scorer(found.reconstruct(Networks(config, network), config.scoring))

    thresholds = scorer(place.store, "val").score(config.scoring).thresholds
    plain, turned = (
        evaluate(scorer(path, "test"), config.scoring, thresholds).aggregates["Brats21"]["dice"]
        for path in (place.store, store(config, tmp_path, "distorted", ("test",)))
    )
    print(f"Dice {plain:.4f} without field and turn, {turned:.4f} with")
    assert plain > 0.2
    assert abs(plain - turned) < 0.02


def store(config: ExperimentConfig, folder: Path, name: str, splits: tuple[str, ...]) -> Path:
    root = folder / name
    rows = [row for row in read_layout(config.data, root).rows if row.split in splits]
    return build_store(config.data, root, rows, folder / "artifacts", map)
