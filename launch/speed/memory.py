"""Memory of a process that scores points: a cohort on the disk, trial after trial.

``python -m speed.memory FOLDER VOLUMES FIRST LAST`` writes JSON: memory after FIRST and after LAST trials. It is a
process of its own, since one that prints tables has imported more than a scoring worker ever does.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cddpm.cluster import WORKER_ENVIRONMENT
from cddpm.config import ScoringConfig
from cddpm.data.slices import SliceStore
from cddpm.errors import CddpmError
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring.score import Scorer
from speed.cohort import DATASET, LEVELS, Cohort

GROUPS = 20
"""Trials after the first ones score one of so many parts of the cohort in turn, so that hundreds take a minute."""
_LAUNCH = Path(__file__).resolve().parents[1]
_ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes."""

    resident: int
    """All pages in memory, those of mapped files too, which the system takes back when it needs them."""
    own: int
    """Pages that belong to no file."""


def of_this_process() -> Memory:
    """What the kernel says. Raises ``CddpmError`` on a system that does not tell."""
    try:
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _ROLLUP.read_text(), re.MULTILINE))
    except OSError as error:
        raise CddpmError(f"{_ROLLUP}: not readable ({error.strerror}); memory is measured on Linux only") from error
    return Memory(1024 * int(found["Rss"]), 1024 * int(found["Anonymous"]))


def of_scoring_worker(cohort: Cohort, first: int, last: int) -> tuple[Memory, Memory]:
    """Memory of a new process after ``first`` trials on all volumes, and after ``last`` trials.

    Its allocator is set up as in Ray's workers. Raises ``CddpmError`` with its last words if it fails.
    """
    command = [sys.executable, "-m", "speed.memory", str(cohort.folder)]
    done = subprocess.run(
        [*command, *map(str, (cohort.volumes, first, last))],
        env={**os.environ, **WORKER_ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_LAUNCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CddpmError(f"the scoring worker that was to be measured failed: {done.stderr.strip()[-500:]}")
    early, late = (Memory(**values) for values in json.loads(done.stdout))
    return early, late


def score_many(cohort: Cohort, first: int, last: int) -> tuple[Memory, Memory]:
    """Score ``first`` random settings on all volumes, then more on parts of them; memory after the first and after all."""
    store = SliceStore.open(cohort.store, verify=False)
    volumes, groups = store.cohort(DATASET, "val"), min(GROUPS, cohort.volumes)
    parts = {f"part{part:02d}": volumes[part::groups] for part in range(groups)}
    scorer = Scorer(store, Reconstruction.open(cohort.reconstructions), parts)
    random, names = np.random.default_rng(0), list(parts)
    for _ in range(first):
        scorer.score(_setting(random), datasets=names)
    early = of_this_process()
    for trial in range(first, last):
        scorer.score(_setting(random), datasets=[names[trial % groups]])
    return early, of_this_process()


def _setting(random: np.random.Generator) -> ScoringConfig:
    levels = random.choice(LEVELS, int(random.integers(1, len(LEVELS) + 1)), replace=False)
    values = {
        "noise_levels": tuple(sorted(int(level) for level in levels)),
        "guidance_scale": float(random.uniform(0, 2)),
        "residual": str(random.choice(["l1", "l2", "positive"])),
        "erosion_divisor": int(random.choice([25, 50])),
    }
    return ScoringConfig.model_validate(values)


if __name__ == "__main__":
    found = score_many(Cohort(Path(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps([asdict(memory) for memory in found]))
