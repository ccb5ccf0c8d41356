"""Whatever file is asked for: a line that names it, a warning, or the sound file's result; soon, and in little memory."""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from odd_files import Odd, Sound, draw
from tiny_package import QUICK, Scan, make_package

from cddpm.config import with_values
from cddpm.data.volume import read_segmentation
from cddpm.predict.batch import Outcome, Work, work_on
from cddpm.predict.predictor import Predictor
from cddpm.predict.scans import Job

SECONDS, GIGABYTES = 20, 2.0


@dataclass
class Judge:
    """Looks at a file as a prediction does, and compares it with what the sound one gave."""

    predictor: Predictor
    work: Work
    sound: Sound
    usual: dict[bool, Outcome] = field(default_factory=dict)
    """What the sound scan gave, with its mask and without."""

    def outcome(self, scan: Path, mask: Path | None) -> Outcome:
        return work_on(self.predictor, self.work, Job(scan, scan.parent / "out", mask, "odd"))

    def faults(self, odd: Odd) -> list[str]:
        with warnings.catch_warnings(record=True) as said, _Lines() as lines:
            warnings.simplefilter("always")
            begun = time.process_time()  # others may share the machine
            outcome = self.outcome(odd.scan, odd.mask)
            seconds = time.process_time() - begun
        usual = self.usual[odd.mask is not None]
        found = [f"said '{one.message}'" for one in said] + [f"logged '{line}'" for line in lines.found]
        if seconds > SECONDS:
            found.append(f"{seconds:.0f} s")
        if outcome.error is not None:
            named = any(str(path) in outcome.error for path in (odd.scan, odd.mask))
            if not named or "\n" in outcome.error or "cannot be worked on" in outcome.error:
                found.append(f"told as '{outcome.error}'")
        elif not set(outcome.warnings) - set(usual.warnings) and not _same(outcome, usual):
            found.append(f"{dict(outcome.scores or {})} without a word, not {dict(usual.scores or {})}")
        return [f"{odd.what}: {one}" for one in found]


class _Lines(logging.Handler):
    """Every line that is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())

    def __enter__(self) -> "_Lines":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def _same(one: Outcome, other: Outcome) -> bool:
    names = ("anomaly_mean", "anomaly_99th_percentile", "anomaly_maximum", "segmented_ml", "brain_ml")
    assert one.scores is not None
    assert other.scores is not None
    return all(np.isclose(one.scores[name], other.scores[name], rtol=1e-2) for name in names)


@pytest.fixture(scope="module")
def judge(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    coarse = {"data.voxel_size_mm": 4.0, "data.volume_shape": [48, 48, 24], "data.rescale_factor": 3}
    folder = tmp_path_factory.mktemp("sound")
    package = make_package(folder / "package", with_values(QUICK, coarse))
    half = (slice(None, None, 2),) * 3
    arrays = (scan.image.data, scan.mask.data, read_segmentation(scan.segmentation).data)
    affine = scan.image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    sound = Sound(*(np.ascontiguousarray(array[half]) for array in arrays), affine)
    made = Judge(Predictor(package), Work(package, {}, write=False), sound)
    (folder / "scan.nii").write_bytes(sound.file())
    (folder / "mask.nii").write_bytes(sound.file(sound.mask))
    for mask in (None, folder / "mask.nii"):
        made.usual[mask is not None] = made.outcome(folder / "scan.nii", mask)
        assert made.usual[mask is not None].error is None
    return made


@pytest.mark.slow
def test_odd_files_are_used_with_a_word_or_refused_in_a_line(judge: Judge, tmp_path: Path) -> None:
    faults = [
        fault for number in range(20) for fault in judge.faults(draw(number, judge.sound, tmp_path / str(number)))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_three_hundred_odd_files(judge: Judge, tmp_path: Path, peak: Callable[[], float]) -> None:
    faults = []
    for number in range(20, 320):
        odd = draw(number, judge.sound, tmp_path / str(number))
        peak()
        faults += judge.faults(odd)
        if (gigabytes := peak()) > GIGABYTES:
            faults.append(f"{odd.what}: {gigabytes:.1f} GB")
    assert not faults, "\n".join(faults)


@pytest.fixture
def peak() -> Callable[[], float]:
    """Gigabytes by which this process grew at most since the last call; other tests may have left it large."""
    before = 0.0

    def since_last() -> float:
        nonlocal before
        status = Path("/proc/self/status").read_text()
        most, now = (int(status.split(f"{name}:")[1].split()[0]) / 1e6 for name in ("VmHWM", "VmRSS"))
        risen, before = most - before, now
        Path("/proc/self/clear_refs").write_text("5")
        return risen

    return since_last
