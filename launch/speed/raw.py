"""Rows about raw scans: seconds and memory of a volume in each step of ``cddpm data prepare``.

``python -m speed.raw FOLDER VOXEL_MM`` prepares the head in FOLDER (``t1``, ``t2``, ``template``, ``template_brain``, each
``.nii.gz``) on one core, and writes JSON: what each step took. It is a process of its own, so that nothing else is in its memory.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cddpm.config.preparation import PreparationConfig
from cddpm.data.phantom.skull import room, with_skull
from cddpm.data.phantom.subject import Subject, draw
from cddpm.data.volume import read_image, write_volume
from cddpm.errors import CddpmError
from speed.row import Row

REAL = Path("/usr/share/mricron/templates")
"""Of Debian's package mricron-data: ``ch2``, a T1 head of 1 mm, and ``ch2bet``, its brain."""
SECONDS, GIGABYTES = 60.0, 2.0
"""Bars of a volume on one core."""
TURN = np.array([[0.966, -0.259, 0.0], [0.259, 0.966, 0.0], [0.0, 0.0, 1.0]])
"""15 degrees, by which a head is turned away from its template."""
SHIFT_MM = (12.0, -8.0, 15.0)
_LAUNCH = Path(__file__).resolve().parents[1]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    voxel_mm: float = 1.0
    """Of the drawn head, and of all that are prepared."""
    real: bool = True
    """Whether ``ch2`` is measured too, where it is."""


QUICK = Sizes(2.0, False)


@dataclass(frozen=True)
class Taken:
    """What one step took."""

    step: str
    seconds: float
    cpu_seconds: float
    gigabytes: float
    """At most, of the whole process."""


def rows(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Of a drawn head with a skull, and of ``ch2``: a row per step, and the bars of all steps together."""
    heads: dict[str, Callable[[Path, float], None]] = {"phantom": _phantom}
    if sizes.real and (REAL / "ch2.nii.gz").is_file():
        heads["ch2"] = _real
    for name, make in heads.items():
        place = folder / f"raw-{name}"
        place.mkdir()
        make(place, sizes.voxel_mm)
        yield from told(name, measured(place, sizes.voxel_mm))


def told(name: str, taken: Sequence[Taken]) -> Iterator[Row]:
    """The rows of one head."""
    for one in taken:
        detail = f"{one.cpu_seconds:.1f} s of its core, {one.gigabytes:.2f} GB at most"
        yield Row(f"raw scan ({name}), {one.step}", "s", one.seconds, detail=detail)
    seconds, cpu_seconds = sum(one.seconds for one in taken), sum(one.cpu_seconds for one in taken)
    detail = f"one core, of which it had {cpu_seconds:.1f} s; the brain mask by classical, aligned to another contrast"
    yield Row(f"raw scan ({name}), all steps", "s", seconds, SECONDS, "at most", detail)
    most = max(taken, key=lambda one: one.gigabytes)
    yield Row(f"raw scan ({name}), memory", "GB", most.gigabytes, GIGABYTES, "at most", f"in {most.step}")


def measured(folder: Path, voxel_mm: float) -> list[Taken]:
    """What each step took of the head in ``folder``, in a new process. Raises ``CddpmError`` with its last words if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "speed.raw", str(folder), str(voxel_mm)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_LAUNCH), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CddpmError(f"the preparation that was to be measured failed: {done.stderr.strip()[-500:]}")
    return [Taken(**one) for one in json.loads(done.stdout)]


def _phantom(folder: Path, voxel_mm: float) -> None:
    """Two contrasts of one drawn head, and another one as the template."""
    for index, names in ((0, {"t1": "t1", "t2": "t2"}), (1, {"t1": "template"})):
        drawing = draw(Subject(3, "IXI", index, voxel_mm), tuple(names))
        affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
        for contrast, name in names.items():
            head = with_skull(drawing.scans[contrast], drawing.mask, contrast, voxel_mm, index)
            affine[:3, 3] = -np.diag(affine)[:3] * (np.array(head.shape) - 1) / 2
            write_volume(folder / f"{name}.nii.gz", head, affine if name == "template" else _turned(affine))
        if index:
            write_volume(folder / "template_brain.nii.gz", room(drawing.mask, voxel_mm), affine)


def _real(folder: Path, voxel_mm: float) -> None:
    """``ch2``, turned; the same with its intensities upside down for another contrast, and as it is for the template."""
    head, brain = read_image(REAL / "ch2.nii.gz"), read_image(REAL / "ch2bet.nii.gz")
    inverted = np.where(head.data > 0, head.data.max() - head.data, 0)
    write_volume(folder / "t1.nii.gz", head.data, _turned(head.affine))
    write_volume(folder / "t2.nii.gz", inverted.astype(np.float32), _turned(_turned(head.affine)))
    write_volume(folder / "template.nii.gz", head.data, head.affine)
    write_volume(folder / "template_brain.nii.gz", (brain.data > 0).astype(np.uint8), head.affine)


def _turned(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = TURN, SHIFT_MM
    return np.asarray(motion @ affine)


def _prepare(folder: Path, voxel_mm: float) -> list[Taken]:
    """Every step on one core: ``align`` brings a second volume to the first, the others have the first alone."""
    from cddpm.data.raw.head import Grid, Head
    from cddpm.data.raw.steps import steps_of

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    files = {name: folder / f"{name}.nii.gz" for name in ("template", "template_brain")}
    config = PreparationConfig(
        template=files["template"], template_mask=files["template_brain"], extractor="classical", voxel_size_mm=voxel_mm
    )
    both = {name: read_image(folder / f"{name}.nii.gz") for name in ("t1", "t2")}
    second = Grid(both["t2"].data, both["t2"].affine)
    head, taken = Head({"t1": Grid(both["t1"].data, both["t1"].affine)}), list[Taken]()
    for step in steps_of(config, head_has_mask=False):
        given = Head({**head.images, "t2": second}) if step.name == "align" else head
        _forget_peak()
        began, cpu = time.perf_counter(), time.process_time()
        after, _ = step.run(given)
        taken.append(Taken(step.name, time.perf_counter() - began, time.process_time() - cpu, _peak_gigabytes()))
        head = head if step.name == "align" else after
    return taken


def _forget_peak() -> None:
    """From here on the kernel counts the most memory anew. Raises ``CddpmError`` where it cannot."""
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        raise CddpmError(f"{_CLEAR}: {error.strerror}; memory by step is measured on Linux only") from error


def _peak_gigabytes() -> float:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(one) for one in _prepare(Path(sys.argv[1]), float(sys.argv[2]))]))
