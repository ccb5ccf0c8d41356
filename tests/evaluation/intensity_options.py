"""Detection under simulated scanners for each way to harmonise intensities, on the small phantom: the table of tests/bench.

``python tests/evaluation/intensity_options.py FOLDER [SEEDS]`` trains a tiny network per option and seed (a minute each), in
this process, and prints the table; what is in FOLDER already is not made again.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScannerChange, load
from cddpm.data.layout import read_layout
from cddpm.data.phantom.folder import make_phantom
from cddpm.data.store import SliceStore, build_store, with_landmarks
from cddpm.models.precision import settled_for
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.scoring.score import Scorer, evaluate
from cddpm.training import checkpoint, stages
from cddpm.training.loop import Hooks
from cddpm.training.ranks import Ranks

OPTIONS = ("percentiles", "landmarks", "white-stripe", "z-score")
CHANGES = get_args(ScannerChange)
QUICKSTART = Path(__file__).parents[2] / "tune_configs" / "quickstart.yaml"
TINY: dict[str, Any] = {
    "pretraining.enabled": False,
    "training.images": 3200,
    "training.evaluations": 1,
    "training.keep": "last",
    "reconstruction.noise_levels": [350],
    "scoring.median_kernel": 3,
    "search.scoring.trials": 1,
    "search.scoring.space": {},
    "compute.workers": 1,
}


def experiment(option: str, seed: int = 0, **values: Any) -> ExperimentConfig:
    """The tiny experiment with an option of ``data.intensities``."""
    given = {"data.intensities": option, "seed": seed, **values}
    return settled_for(load(QUICKSTART, {**TINY, **given}), "cpu")


def dice(config: ExperimentConfig, root: Path, folder: Path) -> dict[str, float]:
    """Mean Dice over unhealthy test scans, as they are (``none``) and under each change; the threshold is validation's."""
    rows = read_layout(config.data, root).rows
    place = stages.Place(folder, build_store(config.data, root, rows, folder, map))
    config = config.model_copy(update={"data": with_landmarks(config.data, place.store)})
    made = stages.train(config, place, Ranks(), Hooks())
    network = checkpoint.trained(config, checkpoint.load_weights(made.checkpoint / checkpoint.WEIGHTS), "tiny")

    def scorer(store: Path, split: str) -> Scorer:
        cohort = Cohort.of(SliceStore.open(store), config.data, split)
        return cohort.scorer(cohort.reconstruct(Networks(config, network), config.scoring))

    thresholds = scorer(place.store, "val").score(config.scoring).thresholds
    test_rows = [row for row in rows if row.split == "test"]
    changed = {c: build_store(config.data, root, test_rows, folder, map, c) for c in CHANGES}
    return {
        name: evaluate(scorer(store, "test"), config.scoring, thresholds).aggregates["Brats21"]["dice"]
        for name, store in {"none": place.store, **changed}.items()
    }


def moved(
    config: ExperimentConfig, root: Path, folder: Path, changes: Sequence[ScannerChange] = CHANGES
) -> dict[str, float]:
    """How far each of ``changes`` moves prepared test scans: root mean square over the brain, in its deviations; no network."""
    rows = read_layout(config.data, root).rows
    data, test_rows = config.data, [row for row in rows if row.split == "test"]
    if data.learns_landmarks:
        data = with_landmarks(data, build_store(data, root, rows, folder, map))
    stores = [SliceStore.open(build_store(data, root, test_rows, folder, map, change)) for change in (None, *changes)]
    return {
        change: statistics.mean(_moved(stores[0], there, v) for v in range(len(there.volumes)))
        for change, there in zip(changes, stores[1:], strict=True)
    }


def _moved(one: SliceStore, other: SliceStore, v: int) -> float:
    brain = one.mask(v) > 0
    before, after = (store.image(v)[brain].astype(np.float64) for store in (one, other))
    return float(np.sqrt(np.mean((after - before) ** 2)) / before.std())


def measured(folder: Path, seeds: int) -> dict[str, list[dict[str, float]]]:
    """By option, ``dice`` of each seed."""
    first = experiment(OPTIONS[0])
    root = make_phantom(folder / "phantom", first.data.phantom, parallel=1)
    found: dict[str, list[dict[str, float]]] = {option: [] for option in OPTIONS}
    for seed in range(seeds):
        for option in OPTIONS:
            kept = folder / f"{option}-{seed}.json"
            if not kept.exists():
                artifact.write_json(kept, dice(experiment(option, seed), root, folder / "artifacts"))
            found[option].append(json.loads(kept.read_text()))
            print(option, seed, {name: round(value, 3) for name, value in found[option][-1].items()}, flush=True)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean over seeds, and the standard deviation between them."""
    names = list(next(iter(found.values()))[0])
    lines = [f"| `data.intensities` | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for option, seeds in found.items():
        cells = [[each[name] for each in seeds] for name in names]
        shown = [f"{statistics.mean(c):.2f}" + (f" ± {statistics.stdev(c):.2f}" if len(c) > 1 else "") for c in cells]
        lines.append(f"| {option} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = Path(sys.argv[1])
    scans = make_phantom(given / "phantom", experiment(OPTIONS[0]).data.phantom, parallel=1)
    print(table({option: [moved(experiment(option), scans, given / "artifacts")] for option in OPTIONS}), flush=True)
    print(table(measured(given, int(sys.argv[2]) if len(sys.argv) > 2 else 3)))
