"""One search run twice for the same wall-clock: on cached reconstructions, and the plain way, networks and all.

Both ways are driven by the same sampler from the same seed, on the same trained model, the same validation volumes and the
same cores. The plain way does for each setting what an evaluation script does: forward passes at the levels and branches
that the setting needs, the residual, SciPy's median filter, the ten-step search of the threshold over the pooled voxels, the
component filter, Dice, and scikit-learn's curves.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.data.store import SliceStore
from cddpm.errors import SearchError
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.published.scoring import search_array
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks, Request
from cddpm.reconstruct.reconstruction import Reconstruction, cache_path
from cddpm.scoring.metrics import dice, mean
from cddpm.scoring.postprocess import component_rule, remove_small_components
from cddpm.scoring.residual import eroded_mask
from cddpm.search import scoring_search
from cddpm.search.point import Params, Point, Proposal, ScorePoints, in_process, scoring_with
from cddpm.search.record import SweepRecord, read
from cddpm.training import checkpoint, stages
from cddpm.training.loop import Interrupted

RESIDUALS = ("l1", "l2", "positive")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Course:
    """How one way went; entry ``i`` of each list belongs to setting ``i``."""

    seconds: list[float]
    """Since the start, when the setting's value was known."""
    best: list[float]
    """Best validation Dice so far."""
    params: Params
    """Settings of the best."""


@dataclass(frozen=True)
class Race:
    """Both ways of one search. ``checked``: the exact value of the plain way's best settings."""

    sweep: str
    volumes: int
    cached: Course
    plain: Course
    checked: float

    def plain_data(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def run(folder: Path, threads: int) -> Race:
    """Race on the best training of a finished sweep in ``folder``, with as many computing ``threads``.

    Raises ``SearchError`` if no trial has finished, if an artifact is gone, or if the space holds what the plain way lacks.
    """
    record = read(folder)
    trial = record.champion
    if trial is None or trial.result is None or record.origin is None:
        raise SearchError(f"{folder}: no trial of this sweep has finished; run it to its end first")
    config = record.trial_config(trial)
    check_space(config)
    store = SliceStore.open(record.artifacts / "store" / record.origin.store, verify=False)
    cache = Reconstruction.open(cache_path(record.artifacts, trial.result.reconstruction))
    cohort = Cohort.of(store, config.data, "val")
    scorer = cohort.scorer(cache, threads=threads)
    cached = _course(in_process(scorer, config), config, cache.guided, lambda: False)
    model = network(record, trial.result.checkpoint, config)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        end = time.perf_counter() + cached.seconds[-1]
        way = PlainWay(model, cohort, config)
        plain = _course(way, config, cache.guided, lambda: time.perf_counter() > end)
    finally:
        torch.set_num_threads(before)
    names = config.objective_datasets
    exact = scorer.score(scoring_with(config, plain.params), config.search.objective, names).objective
    return Race(record.config.name, sum(map(len, cohort.unhealthy.values())), cached, plain, exact)


def check_space(config: ExperimentConfig) -> None:
    """Raises ``SearchError`` for a space that the plain way cannot walk."""
    choice = config.search.scoring.space.get("scoring.residual")
    wanted = set(getattr(choice, "choice", (config.scoring.residual,)))
    if config.search.objective != "dice" or not wanted <= set(RESIDUALS) or config.scoring.normalise != "none":
        raise SearchError(
            f"sweep '{config.name}': the plain way knows the objective dice, residuals {', '.join(RESIDUALS)} and no "
            "healthy z-scores; race on a sweep of these, such as tune_configs/quickstart.yaml"
        )


def _course(score: ScorePoints, config: ExperimentConfig, guided: bool, over: Callable[[], bool]) -> Course:
    """Run the search until its end, or until it is ``over``."""
    start, seconds, best, found = time.perf_counter(), list[float](), list[float](), list[Point]()

    def timed(proposals: Sequence[Proposal]) -> list[Point]:
        points = list(score(proposals))
        for point in points:
            found.append(point)
            seconds.append(time.perf_counter() - start)
            best.append(max(point.objective, best[-1] if best else 0.0))
        return points

    with contextlib.suppress(Interrupted):  # its time was over
        scoring_search.search(timed, config, guided, stop=over)
    return Course(seconds, best, scoring_search.best(found).params)


def network(record: SweepRecord, name: str, config: ExperimentConfig) -> ConditionedDiffusion:
    """The model of checkpoint ``name`` of a sweep, on the CPU. Raises ``ArtifactError`` for weights that are gone."""
    weights = checkpoint.load_weights(record.artifacts / stages.CHECKPOINT / name / checkpoint.WEIGHTS)
    return checkpoint.trained(config, weights, name)


class PlainWay:
    """Scores settings one by one as an evaluation script does, from the model and the images alone."""

    def __init__(
        self,
        model: ConditionedDiffusion,
        cohort: Cohort,
        config: ExperimentConfig,
    ) -> None:
        self._networks, self._store, self._config = Networks(config, model), cohort.store, config
        self._unhealthy = {name: cohort.unhealthy[name] for name in config.objective_datasets}

    def __call__(self, proposals: Sequence[Proposal]) -> list[Point]:
        """Score ``proposals``, one after the other."""
        return [self._point(number, params) for number, params in proposals]

    def _point(self, number: int, params: Params) -> Point:
        start, scoring = time.perf_counter(), scoring_with(self._config, params)
        thresholds, datasets = {}, {}
        for name, volumes in self._unhealthy.items():
            maps = [self._anomaly_map(v, scoring) for v in volumes]
            truths = [self._store.segmentation(v) > 0 for v in volumes]
            thresholds[name], datasets[name] = _detect(maps, truths, scoring)
        objective = mean(values["dice"] for values in datasets.values()) or 0.0
        return Point(number, params, objective, thresholds, datasets, time.perf_counter() - start, {"dice": objective})

    def _anomaly_map(self, v: int, scoring: ScoringConfig) -> Floats:
        image = self._store.image(v)
        x0 = self._reconstruction(v, image, scoring)
        difference = image.astype(np.float32) - x0
        residual = {"l1": np.abs(difference), "l2": difference**2, "positive": difference.clip(0)}[scoring.residual]
        masked = residual * eroded_mask(self._store.mask(v), scoring.erosion_divisor)
        return np.asarray(ndimage.median_filter(masked, scoring.median_kernel), np.float32)

    def _reconstruction(self, v: int, image: NDArray[np.float16], scoring: ScoringConfig) -> Floats:
        """Mean of x0(s) over levels and seeds, from forward passes of this very setting."""
        levels = scoring.noise_levels or self._config.reconstruction.noise_levels
        seeds, scale = self._config.reconstruction.noise_seeds, scoring.guidance_scale
        steps = tuple(product(sorted(set(levels)), sorted(set(seeds))))
        request = Request(self._store.volumes[v].id, image, steps)
        ((_, arrays),) = self._networks.predict([request], unconditional=scale != 1)
        found = []
        for level in levels:
            for seed in seeds:
                c = arrays["c", level, seed]
                u = arrays["u", level, seed] if scale != 1 else c
                found.append(u + np.float32(scale) * (c - u))
        return np.asarray(np.mean(found, axis=0), np.float32)


def _detect(
    maps: list[Floats], truths: list[NDArray[np.bool_]], scoring: ScoringConfig
) -> tuple[float, dict[str, float]]:
    """Threshold of the ten-step search, and means over the volumes at it."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    pooled = np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in truths])
    threshold = search_array(*pooled).threshold
    rule, smallest = component_rule(scoring), scoring.minimum_component_voxels
    rows: dict[str, list[float]] = {"dice": [], "auprc": [], "auroc": []}
    for scores, truth in zip(maps, truths, strict=True):
        if truth.any():
            rows["dice"].append(dice(remove_small_components(scores > threshold, smallest, rule), truth) or 0.0)
            rows["auprc"].append(float(average_precision_score(truth.ravel(), scores.ravel())))
            rows["auroc"].append(float(roc_auc_score(truth.ravel(), scores.ravel())))
    return threshold, {name: float(np.mean(values)) for name, values in rows.items()}


def draw(race: Race, path: Path) -> None:
    """Best validation Dice against settings tried, and against seconds, as a PNG."""
    figure, (trials, seconds) = pyplot.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
    ways = ((race.cached, "on cached reconstructions", "#1f5fbf"), (race.plain, "the plain way", "#c2571a"))
    for course, label, colour in ways:
        count, end = len(course.best), course.seconds[-1]
        numbers = np.arange(1, count + 1)
        trials.step(numbers, course.best, where="post", color=colour, label=f"{label}: {count:,} settings")
        seconds.step(course.seconds, course.best, where="post", color=colour, label=label)
        for axes, x in ((trials, count), (seconds, end)):
            axes.plot(x, course.best[-1], "o", color=colour, markersize=5)
            axes.annotate(
                f"{course.best[-1]:.3f}", (x, course.best[-1]), (0, 6), textcoords="offset points", ha="right"
            )
    trials.set(xscale="log", xlabel="settings tried", ylabel="best validation Dice so far")
    seconds.set(xscale="log", xlabel="seconds")
    trials.legend(loc="lower right", fontsize=8.5)
    for axes in (trials, seconds):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Sweep '{race.sweep}', {race.volumes} validation volumes, the same wall-clock", fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
