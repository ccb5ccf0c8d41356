"""Scans on a real Ray: the same bytes as here, a broken scan told, a scan whose process dies told."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tiny_package import Scan

from cddpm.errors import ConfigError
from cddpm.predict.batch import Outcome, Work, here, on_ray
from cddpm.predict.scans import Job
from cddpm.tracking.package import Package

NAMES = ("anomaly_map.nii.gz", "reconstruction.nii.gz", "segmentation.nii.gz", "overview.png", "result.json")


def jobs(scan: Scan, out: Path, *names: str) -> list[Job]:
    """One per name, of copies of one scan."""
    made = []
    for name in names:
        copy = scan.image.path.with_name(f"{name}.nii.gz")
        shutil.copyfile(scan.image.path, copy)
        made.append(Job(copy, out / name, scan.mask.path, name))
    return made


@pytest.mark.slow
def test_too_large_for_the_memory_is_told_and_the_others_go_on(
    package: Package, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> object:
        raise MemoryError if path.name == "large.nii.gz" else ConfigError("reached")

    monkeypatch.setattr("cddpm.predict.batch.read_image", read)
    outcomes = here(Work(package, {}), jobs(scan, tmp_path, "large", "other"))
    assert next(outcomes).error == f"{scan.image.path.with_name('large.nii.gz')}: too large for the memory here"
    with pytest.raises(ConfigError, match="reached"):
        next(outcomes)


@pytest.mark.slow
def test_what_a_folder_needs_is_imported_and_no_more() -> None:
    """Each of these takes a second or more, and none is needed to predict with a package."""
    slow = ("ray", "mlflow", "monai", "torchio", "optuna", "sklearn")
    code = (
        "import sys, cddpm.cli.predict, cddpm.predict.batch, cddpm.predict.source, cddpm.scoring.figures\n"
        f"sys.exit(' '.join(name for name in {slow} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@dataclass(frozen=True)
class Deadly(Work):
    """Ends its process with every scan that is named ``deadly``."""

    def __call__(self) -> Callable[[Job], Outcome]:
        def look(job: Job) -> Outcome:
            if job.scan.name == "deadly.nii.gz":
                os._exit(1)
            return work(job)

        work = super().__call__()
        return look


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_a_cluster_gives_the_same_bytes_and_tells_every_fault(
    shared_ray: str, package: Package, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"package": "here"}
    alone = list(here(Work(package, found), jobs(scan, tmp_path / "here", "one", "two")))
    monkeypatch.chdir(tmp_path)  # relative paths must be understood elsewhere too
    asked = jobs(scan, Path("there"), "one", "deadly", "two")
    asked.append(replace(asked[0], scan=Path("absent.nii"), folder=Path("there/absent")))
    outcomes = {o.job.scan.name: o for o in on_ray(Deadly(package, found), asked, "cpu", "local")}
    assert set(outcomes) == {"one.nii.gz", "deadly.nii.gz", "two.nii.gz", "absent.nii"}
    deadly = outcomes["deadly.nii.gz"]
    assert deadly.error is not None
    assert deadly.error.startswith(f"{deadly.job.scan}: a process of a pool died twice")
    assert f"{tmp_path}/absent.nii: no such file" in str(outcomes["absent.nii"].error)
    for outcome in alone:
        there = outcomes[outcome.job.scan.name]
        assert (there.error, there.summary, there.warnings) == (None, outcome.summary, outcome.warnings)
        for name in NAMES:
            assert (tmp_path / there.job.folder / name).read_bytes() == (outcome.job.folder / name).read_bytes()
    again = list(on_ray(Work(package, found, resume=True), asked[:1], "auto", "local"))
    assert [outcome.kept for outcome in again] == [True]
    with pytest.raises(ConfigError, match="the cluster at 'local' has no GPU"):
        list(on_ray(Work(package, found), asked, "cuda", "local"))
