"""``--dry-run``: counts by hand, fingerprints of what is there, nothing written, no Ray."""

import io
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import built_sweep
import numpy as np
import pytest
from launched import ROOT
from screen import lost, too_long
from small_sweep import small

from cddpm import artifact
from cddpm.config import ExperimentConfig, load, to_dict, with_values
from cddpm.data.layout import read_layout, root_of
from cddpm.data.store import build_store
from cddpm.data.volume import write_volume
from cddpm.models.precision import settled_for
from cddpm.reconstruct.part import write_part
from cddpm.search import budget, forecast, plan, record, report, sweep
from cddpm.search import trial as trials
from cddpm.search.forecast import Memory
from cddpm.search.point import Point
from cddpm.text import Console
from cddpm.training import checkpoint, stages
from cddpm.training.probe import PROCESS_BYTES, Network, Probe

pytestmark = pytest.mark.slow

SWEEPS = ["quickstart", "noise_levels", "conditioning", "postprocessing", "training", "pretraining", "joint"]


def config(folder: Path, name: str = "joint", **values: Any) -> ExperimentConfig:
    changed = {path.replace("__", "."): value for path, value in values.items()}
    return load(ROOT / f"tune_configs/{name}.yaml", {**small(name), "output_dir": str(folder), **changed})


def shown(made: plan.Plan, width: int = 160) -> str:
    text = io.StringIO()
    report.show_plan(made, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("name", SWEEPS)
def test_at_80_columns_names_are_broken_after_dots_alone(name: str, tmp_path: Path) -> None:
    made = plan.make(load(ROOT / f"tune_configs/{name}.yaml", {"output_dir": str(tmp_path)}))
    for width in (80, 60):
        text = shown(made, width)
        assert not lost(shown(made, 100_000), text)
        assert not too_long(text, width)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_resolves_and_tells_its_plan(name: str, tmp_path: Path) -> None:
    for wanted in (
        load(ROOT / f"tune_configs/{name}.yaml", {"output_dir": str(tmp_path)}),
        config(tmp_path, name),
    ):
        text = shown(plan.make(wanted))
        assert f"plan of sweep '{name}'" in text
        for path in (*wanted.search.training.space, *wanted.search.scoring.space):
            assert path in text
        assert "the synthetic cohort is not made yet" in text
    assert list(tmp_path.iterdir()) == []


def test_the_work_by_hand(tmp_path: Path) -> None:
    """Three trials of 100 images; (1 + 2) volumes of 16 slices, 2 levels, with and without condition."""
    levels = {"search__scoring__space": {}, "reconstruction__noise_levels": [250, 500], "search__training__trials": 3}
    space = {"diffusion.loss": {"choice": ["l1", "l2"]}}
    made = plan.make(config(tmp_path, **levels, training__images=100, search__training__space=space))
    assert made.validation_volumes == 3
    assert made.work == plan.Work(300, 128, 3 * 2 * 2 * 3 * 16, 3, 3 * 4 * 1)
    space["pretraining.mask_ratio"] = {"float": [0.4, 0.8]}
    space["training.images"] = {"choice": [100, 400]}
    made = plan.make(config(tmp_path, **levels, training__images=100, search__training__space=space))
    assert (made.work.training_images, made.work.pretraining_images) == (1200, 384)
    plain = {"model__conditioned": False, "diffusion__condition_dropout": 0.0, "search__training__space": {}}
    made = plan.make(config(tmp_path, **{**levels, **plain, "search__training__trials": 1}))
    assert made.work == plan.Work(256, 0, 2 * 3 * 16, 1, 4)


def test_a_grid_and_the_previews_are_counted(tmp_path: Path) -> None:
    """24 sets of levels, 3 residuals and 2 medians, of which 500 trials are asked for; none of 7 is left out."""
    made = plan.make(load(ROOT / "tune_configs/noise_levels.yaml", {"output_dir": str(tmp_path)}))
    assert made.work.scoring_points == 144
    assert "scoring: 144 trials by grid" in shown(made)
    assert plan.make(config(tmp_path, "noise_levels", search__scoring__trials=7)).work.scoring_points == 7
    joint = plan.make(load(ROOT / "tune_configs/joint.yaml", {"output_dir": str(tmp_path)}))
    assert joint.work.preview_points == 24 * 16 * 40
    assert "by the best of 40 scoring settings on up to 4 volumes of each data set" in shown(joint)


def test_rungs_and_budget_are_told(tmp_path: Path) -> None:
    wanted = config(tmp_path, "training", search__maximum_seconds=60)
    folder = sweep.folder_of(wanted)
    artifact.write_json(folder / budget.FILE, {"seconds": 20, "cpu_hours": 0.5, "gpu_hours": 0.25})
    text = shown(plan.make(wanted))
    assert "trials are compared after images: 64, 192; 192; none" in text
    assert "60 seconds (20 spent), 500 GPU-hours (0.25 spent)" in text


ROWS = (("Own", "a", "train"), ("Own", "b", "val"), ("Own", "c", "test"), ("Sick", "d", "val"), ("Sick", "e", "test"))


def on_table(folder: Path, **values: Any) -> ExperimentConfig:
    """The small joint sweep on five tiny scans that a table names."""
    data = {
        "data__table": str(folder / "study/scans.csv"),
        "data__healthy": "Own",
        "data__unhealthy": ["Sick"],
        "data__volume_shape": [32, 32, 8],
        "data__rescale_factor": 1,
    }
    return config(folder, **{**data, **values})


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with data and their slice store."""
    folder = tmp_path_factory.mktemp("out")
    lines, random = ["dataset,subject,split,image,mask,segmentation\n"], np.random.default_rng(0)
    for dataset, subject, split in ROWS:
        mask = np.zeros((12, 12, 6), np.uint8)
        mask[2:10, 2:10, 1:5] = 1
        kinds = {"t2": random.uniform(1, 9, mask.shape).astype(np.float32) * mask, "brain": mask, "spot": mask}
        for kind, array in kinds.items():
            write_volume(folder / "study" / subject / f"{kind}.nii.gz", array, np.eye(4))
        spot = f"{subject}/spot.nii.gz" if dataset == "Sick" else ""
        lines.append(f"{dataset},{subject},{split},{subject}/t2.nii.gz,{subject}/brain.nii.gz,{spot}\n")
    (folder / "study/scans.csv").write_text("".join(lines))
    wanted = on_table(folder)
    build_store(wanted.data, folder, read_layout(wanted.data, root_of(wanted.data)).rows, folder / "artifacts", map)
    return folder


def test_what_is_there_is_found_by_its_fingerprint(there: Path) -> None:
    wanted = settled_for(on_table(there), "cpu")
    before = {stage.kind: stage for stage in plan.make(wanted).stages or ()}
    assert {kind: stage.there for kind, stage in before.items()} == {
        "store": True,
        "encoder": False,
        "checkpoint": False,
        "prediction": False,
    }
    store, name = before["store"].fingerprint, before["checkpoint"].fingerprint
    assert (there / "artifacts/store" / store).is_dir()
    assert name == stages.checkpoint_identity(wanted, store)[0]

    def fill(folder: Path) -> None:
        artifact.write_json(folder / checkpoint.CONFIG, to_dict(wanted))
        for images in (128.0, 256.0):
            checkpoint.append_history(
                folder / checkpoint.HISTORY, {"images": images, "train/images_per_second": images}
            )

    artifact.create(there / "artifacts/checkpoint" / name, stages.CHECKPOINT, name, {}, fill)
    levels = list(wanted.reconstruction.noise_levels)
    parts, slices = there / "artifacts/prediction" / before["prediction"].fingerprint, np.zeros((2, 3, 4), np.float32)
    for volume, count in (("Own/b", 3), ("Sick/d", 2)):
        write_part(parts, volume, {("c", level, 0): slices for level in levels[:count]})
    made = plan.make(wanted)
    after = {stage.kind: stage for stage in made.stages or ()}
    assert after["checkpoint"].there
    assert (after["prediction"].there, after["prediction"].note) == (False, f"2 of {len(levels)} noise levels")
    assert not plan.make(on_table(there, training__learning_rate=2e-4)).stages[2].there
    # 128 and 256 images per second: 192 in the middle, for two trials of 256 images
    assert made.seconds["training"] == pytest.approx(2 * 256 / 192)
    assert made.seconds["pretraining"] is None
    assert plan.make(on_table(there, training__batch_size=32)).seconds["training"] is None
    text = shown(made)
    assert f"checkpoint {name}: there" in text
    assert "2 of 6 noise levels" in text
    assert "pretraining: 256 images, time unknown" in text


def test_what_a_trial_has_made_is_found(tmp_path: Path) -> None:
    """The plan names everything as the trial did, noise levels with their seeds volume by volume."""
    done = record.results(built_sweep.trained(tmp_path, trials=1, finish=False))[0]
    wanted = with_values(built_sweep.config(tmp_path), done.params)
    store = next((tmp_path / "artifacts/store").glob("[!.]*")).name
    found = {stage.kind: stage for stage in plan._stages(wanted, store)}
    assert all(stage.there for stage in found.values())
    assert found["checkpoint"].fingerprint == done.checkpoint
    more = with_values(wanted, {"reconstruction.noise_levels": [10, 25, 40], "scoring.noise_levels": None})
    assert [stage.note for stage in plan._stages(more, store)][-1] == "2 of 3 noise levels"
    other = with_values(wanted, {"reconstruction.noise_seeds": [0, 1]})
    assert [stage.note for stage in plan._stages(other, store)][-1] == "0 of 2 noise levels"


def test_scoring_speed_is_that_of_earlier_sweeps_on_the_same_data(there: Path) -> None:
    wanted = on_table(there)
    store = next((there / "artifacts/store").glob("[0-9a-f]*")).name
    for name, data, seconds in (("mine", store, (0.1, 0.3, 0.2)), ("other", "another", (9.0,))):
        folder = there / "sweeps" / name
        record.enter(folder, wanted, data)
        points = [asdict(Point(n, {}, 0.5, {}, {}, s)) for n, s in enumerate(seconds)]
        artifact.write_json(trials.folder_of(folder, 0) / trials.POINTS, points)
    made = plan.make(wanted)
    assert made.seconds["scoring"] == pytest.approx(2 * 6 * 0.2)


MIB = 2**20


def probed(**values: Any) -> Probe:
    """Two CPUs with 8 GiB: 10 ms a slice to train, 2 ms to pretrain, 4 ms forward; 1 MiB and 0.5 MiB for each."""
    networks = Network(0.01, 0.004, 100 * MIB, MIB), Network(0.002, 0.001, 50 * MIB, MIB // 2)
    return replace(Probe("2 CPUs", False, 2, 8192 * MIB, *networks), **values)


def test_what_no_earlier_training_tells_is_told_by_the_probe(there: Path) -> None:
    one = {"search__training__space": {}, "search__training__trials": 1}
    wanted = on_table(there, compute__workers=2, training__batch_size=32, **one)
    made = plan.make(wanted, probed())
    work, seconds = made.work, made.seconds
    assert seconds["training"] == pytest.approx(work.training_images * 0.01 / 2)
    assert seconds["pretraining"] == pytest.approx(work.pretraining_images * 0.002 / 2)
    assert seconds["reconstruction"] == pytest.approx(work.predicted_slices * 0.004 / 2)
    assert (seconds["scoring"] or 0) > 0
    assert made.memory is not None
    assert made.memory.free_bytes == 4096 * MIB  # two workers at once
    assert made.memory.needed["training"] == PROCESS_BYTES + (100 + 16) * MIB
    assert made.faults == ()
    text = shown(made)
    assert "as measured on 2 CPUs" in text
    assert "training: 816.0 MiB (100.0 MiB for weights and optimizer, 1.0 MiB for each of 16 slices)" in text


def test_trainings_that_run_at_once_share_the_memory(there: Path) -> None:
    one = on_table(there, compute__workers=1, search__training__space={}, search__training__trials=1)
    assert (plan.make(one, probed()).memory or Memory("", {}, 0)).free_bytes == 8192 * MIB
    many = on_table(there, compute__workers=1, search__training__trials=5)
    assert (plan.make(many, probed(cpus=8)).memory or Memory("", {}, 0)).free_bytes == 8192 * MIB // 5
    one_by_one = on_table(there, compute__workers=1, search__training__trials=5, search__concurrent_trials=1)
    assert (plan.make(one_by_one, probed(cpus=8)).memory or Memory("", {}, 0)).free_bytes == 8192 * MIB
    nodes = on_table(there, compute__workers=8)  # of which two have room on a machine
    assert (plan.make(nodes, probed()).memory or Memory("", {}, 0)).free_bytes == 4096 * MIB
    fraction = on_table(there, compute__workers=2, compute__gpus_per_worker=0.25)
    assert (plan.make(fraction, probed(gpu=True)).memory or Memory("", {}, 0)).free_bytes == 2048 * MIB


@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_fit_is_told_with_the_setting_that_fits(there: Path, workers: int) -> None:
    one = {"search__training__space": {}, "search__training__trials": 1}
    values = {**one, "compute__workers": workers, "training__images": 10**6}
    made = plan.make(on_table(there, training__batch_size=16384 * workers, **values), probed())
    (fault,) = made.faults
    room = 8192 // workers - 700 - 100
    assert "training.batch_size: 16,384 slices of one worker need 16.8 GiB" in fault
    assert f"set it to {workers * room:,} or less" in fault
    assert plan.make(on_table(there, training__batch_size=workers * room, **values), probed()).faults == ()
    assert len(plan.make(on_table(there, training__batch_size=workers * (room + 1), **values), probed()).faults) == 1
    (fault, _) = plan.make(on_table(there, **values), probed(memory_bytes=512 * MIB)).faults
    assert "take a smaller model" in fault


def test_of_a_searched_batch_the_larger_choices_are_to_go(there: Path) -> None:
    space = {"training.batch_size": {"choice": [64, 32768]}}
    wanted = on_table(there, compute__workers=1, search__training__space=space, training__images=10**6)
    (fault,) = plan.make(wanted, probed(cpus=1)).faults
    assert "7,392 or less fit: leave out the larger ones of search.training.space.training.batch_size" in fault


def test_what_is_not_trained_needs_no_room(there: Path) -> None:
    one = {"search__training__space": {}, "search__training__trials": 1}
    made = plan.make(on_table(there, training__artifact="given", **one), probed(memory_bytes=512 * MIB))
    assert made.faults == ()


def test_the_largest_of_the_space_is_what_must_fit(tmp_path: Path) -> None:
    space = {
        "model.base_width": {"choice": [8, 96, 64]},
        "model.width_multipliers": {"choice": [[1, 2], [1, 2, 2], [1, 1]]},
        "encoder.architecture": {"choice": ["resnet101", "resnet50", "resnet18"]},
        "training.batch_size": {"int": [64, 128], "step": 32},
        "training.learning_rate": {"float": [1e-4, 1.0], "log": True},
        "model.conditioning": {"choice": ["vector", "cross-attention"]},
    }
    wanted = config(tmp_path, search__training__space=space)
    found = forecast.largest(wanted)
    assert (found.model.base_width, found.model.width_multipliers) == (96, (1, 2, 2))
    assert (found.encoder.architecture, found.training.batch_size) == ("resnet101", 128)
    assert (found.training.learning_rate, found.model.conditioning) == (
        wanted.training.learning_rate,
        wanted.model.conditioning,
    )


def dry_run(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """The command on the tiny joint sweep, in a process that must not import Ray."""
    code = (
        "import runpy, sys\n"
        "sys.argv[0] = 'sweep.py'\n"
        "try:\n    runpy.run_path('launch/sweep.py', run_name='__main__')\n"
        "finally:\n    assert 'ray' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "COLUMNS": "150"}
    wanted = ["--dry-run", "--config", "tune_configs/quickstart.yaml", "--output-dir", str(folder / "out")]
    command = [sys.executable, "-c", code, *wanted, *settings]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_ends_well_without_ray_and_writes_nothing(tmp_path: Path) -> None:
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training: 3 trials by tpe" in done.stdout
    assert "as measured on" in done.stdout
    assert "memory of one worker" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_the_command_refuses_what_cannot_fit(tmp_path: Path) -> None:
    done = dry_run(tmp_path, "--set", "training.batch_size=10000000", "--set", "training.images=10000000")
    assert done.returncode == 6
    assert "plan of sweep 'quickstart'" in done.stdout
    assert "training.batch_size: 5,000,000 slices of one worker need" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("edge", "windows"), [(192, 1), (160, 3), (128, 9)])
def test_of_whole_brains_all_windows_are_counted(tmp_path: Path, edge: int, windows: int) -> None:
    """A usual brain of 145 x 180 x 140 mm; a plane is seen once, or where it is too large through three or nine windows."""
    free = config(tmp_path, data__volume_shape=[edge, edge, None], data__rescale_factor=2, data__voxel_size_mm=1.0)
    slices = plan._shown(free)
    assert free.data.usual_shape[2] == 70
    assert (slices == 70) == (windows == 1)
    assert 70 * max(1, windows / 3) <= slices <= 70 * windows
