"""The rows of the table "Speed and memory": what is measured, what it must reach, what it reached.

Every bar but that of memory is a ratio within one run, or a rate on ``CORES`` cores; the two sides of a ratio are measured by
turns.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cddpm.config import ExperimentConfig, load
from cddpm.scoring.operating_point import best_dice, histogram
from cddpm.scoring.postprocess import median_filter
from cddpm.scoring.score import Scorer
from cddpm.search import scoring_search, space
from cddpm.search.point import PointScorer, ScorePoints
from speed import memory
from speed.cohort import DATASET, FULL, Cohort, draw, experiment
from speed.naive import NaiveSeconds, NaiveTrial
from speed.processes import local_processes
from speed.row import Row
from speed.timing import compare, seconds, spread_of

JOINT = Path(__file__).resolve().parents[2] / "tune_configs" / "joint.yaml"
GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are those that the bars are about."""

    volumes: int = 20
    shape: tuple[int, int, int] = FULL
    trials: int = 15
    repeats: int = 3
    memory_volumes: int = 100
    memory_trials: tuple[int, int] = (10, 500)
    proposals: int = 5000
    published: tuple[tuple[tuple[int, int, int], float], ...] = ((FULL, 0.57), ((100, 192, 192), 4.9))
    """Sizes of a volume, and the seconds that the published code takes for its post-processing and metrics on an AVX2 core."""
    base_width: int = 128
    """Of the U-Net that the plain way runs."""

    def experiment(self) -> ExperimentConfig:
        """What is searched."""
        return experiment(self.shape, self.trials, self.base_width)


QUICK = Sizes(3, (12, 64, 64), 6, 2, 4, (2, 12), 40, (((12, 64, 64), 0.06),), 32)
"""Shows that everything runs; the numbers mean little."""


def search_rows(folder: Path, sizes: Sizes, cores: int) -> Iterator[Row]:
    """All rows, each as soon as it is measured. Writes up to 1 GB below ``folder``."""
    cohort = draw(folder, max(sizes.volumes, sizes.memory_volumes), sizes.shape)
    yield from _trials(cohort, sizes, cores)
    yield from _one_volume(folder, sizes)
    yield _median(sizes)
    yield _best_dice(cohort, sizes)
    yield from _memory(cohort, sizes)
    yield from _sharing(cohort, sizes, cores)


def _trials(cohort: Cohort, sizes: Sizes, cores: int) -> Iterator[Row]:
    config, scorer = sizes.experiment(), cohort.scorer(sizes.volumes, cores)
    naive = NaiveTrial(cohort, config)
    _search(scorer, config)
    naive.measure()
    pairs = [(_search(scorer, config) / sizes.trials, naive.measure()) for _ in range(sizes.repeats)]
    ours, spread = spread_of([trial for trial, _ in pairs])
    where = f"{sizes.volumes} volumes {_size(sizes.shape)}, {cores} cores"
    each = f"{ours:.3f} s a trial; median, components and curves anew in each"
    yield Row("scoring trials", "trials/hour", 3600 / ours, 3000, detail=f"{where}; {each}", spread=spread)
    yield Row("the same, of one trial", "s", ours, 0.2, "at most", "its proposal included")
    yield from _sampler(sizes)
    ratio = median(_naive_trial(found, sizes, cores) / trial for trial, found in pairs)
    yield Row(
        "the same settings searched naively", "times slower", ratio, 100, detail=_words(pairs[0][1], sizes, cores)
    )


def _one_volume(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """From a volume's reconstructions to its scores, by one thread, nothing kept from the setting before."""
    for number, (shape, published) in enumerate(sizes.published):
        cohort = draw(folder / f"one-{number}", 1, shape)
        config = experiment(shape, sizes.trials, sizes.base_width)
        _search(cohort.scorer(1), config)
        # each time a scorer that has kept nothing: the points are the same
        times = [_search(cohort.scorer(1), config) / sizes.trials for _ in range(sizes.repeats)]
        taken, spread = spread_of(times)
        told = f"published code {published:g} s on an AVX2 core"
        name = f"post-processing and metrics of a volume of {_size(shape)}"
        yield Row(name, "s", taken, published / 10, "at most", told, spread)


def _sampler(sizes: Sizes) -> Iterator[Row]:
    """What a proposal costs where each has an answer at once: late in a long search, and early in it."""
    config = load(JOINT)
    level = config.search.scoring
    random, taken = np.random.default_rng(0), []
    study = scoring_search.study_of(level, ["maximize"], 0)
    for _ in range(sizes.proposals):
        start = time.perf_counter()
        trial = study.ask()
        space.suggest(level.space, trial, config)
        study.tell(trial, float(random.random()))
        taken.append(1000 * (time.perf_counter() - start))
    part = min(50, len(taken) // 2)
    early, late = median(taken[part : 2 * part]), median(taken[-part:])
    name = f"a proposal after {sizes.proposals:,} points"
    told = f"{level.sampler} over the {len(level.space)} settings of joint.yaml; after {2 * part} points {early:.1f} ms"
    yield Row(name, "ms", late, 5, "at most", told)


def _naive_trial(found: NaiveSeconds, sizes: Sizes, cores: int) -> float:
    return sizes.volumes * found.volume / cores


def _words(found: NaiveSeconds, sizes: Sizes, cores: int) -> str:
    parts = (
        f"networks {found.networks:.1f}, filters {found.filters:.2f}, measures {found.measures:.2f} s a volume and core"
    )
    return f"extrapolated from a sample: {parts}; {_naive_trial(found, sizes, cores):.0f} s a trial"


def _search(scorer: Scorer | ScorePoints, config: ExperimentConfig) -> float:
    return seconds(lambda: scoring_search.search(scorer, config, guided=True))


def _median(sizes: Sizes) -> Row:
    volume = np.random.default_rng(0).random(sizes.shape).astype(np.float16)  # no zeros to skip

    def scipys() -> NDArray[np.float16]:
        return np.asarray(ndimage.median_filter(volume.astype(np.float32), 5)).astype(np.float16)

    pair = compare(lambda: median_filter(volume, 5), scipys, sizes.repeats)
    equal = np.array_equal(median_filter(volume, 5).view(np.uint16), scipys().view(np.uint16))
    words = f"{1000 * pair.ours_seconds:.1f} ms; {'equal bit for bit' if equal else 'NOT EQUAL'}"
    name = f"3D median 5x5x5 of {_size(sizes.shape)} against SciPy"
    return Row(name, "times faster", pair.ratio if equal else 0.0, 8, detail=words)


def _best_dice(cohort: Cohort, sizes: Sizes) -> Row:
    scorer, scoring = cohort.scorer(sizes.volumes), sizes.experiment().scoring
    cases = scorer.cases(DATASET)
    maps = [scorer.anomaly_map(case.index, scoring) for case in cases]
    floats = [scores.astype(np.float32).ravel() for scores in maps]
    truths = [scorer.store.segmentation(case.index).ravel() > 0 for case in cases]

    def ours() -> list[float]:
        return [best_dice([[histogram(scores, case.lesion)]]).dice for scores, case in zip(maps, cases, strict=True)]

    def sorting() -> list[float]:
        return [_by_sorting(scores, truth) for scores, truth in zip(floats, truths, strict=True)]

    pair = compare(ours, sorting, sizes.repeats)
    equal = np.allclose(ours(), sorting(), rtol=1e-12)
    words = f"{1000 * pair.ours_seconds:.0f} ms; {'same values' if equal else 'OTHER VALUES'}"
    name = f"best Dice over all thresholds of {sizes.volumes} volumes against sorting"
    return Row(name, "times faster", pair.ratio if equal else 0.0, 10, detail=words)


def _by_sorting(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Best Dice by one stable sort (the faster kind on maps of many zeros); equal scores fall together."""
    order = np.argsort(scores, kind="stable")[::-1]
    ranked = scores[order]
    hit = np.cumsum(truth[order])
    last = np.append(ranked[1:] != ranked[:-1], True) & (ranked > 0)
    dices = 2 * hit / (np.arange(1, hit.size + 1) + hit[-1])
    return float(dices[last].max(initial=0.0))


def _memory(cohort: Cohort, sizes: Sizes) -> Iterator[Row]:
    first, last = sizes.memory_trials
    early, late = memory.of_scoring_worker(cohort, first, last)
    words = f"after {last} trials; {late.own / GB:.2f} GB without the pages of mapped files"
    name = f"memory of a scoring worker, {cohort.volumes} volumes cached"
    yield Row(name, "GB", late.resident / GB, 1.5, "at most", words)
    words = f"{early.own / GB:.2f} GB, then {late.own / GB:.2f} GB without mapped files"
    yield Row(f"the same after {last} against {first} trials", "times", late.own / early.own, 1.1, "at most", words)


def _sharing(cohort: Cohort, sizes: Sizes, cores: int) -> Iterator[Row]:
    """How well a search uses the cores: by threads over volumes, or by processes over the points of a batch."""
    alone = sizes.experiment()
    batch = alone.model_copy(update={"search": alone.search.model_copy(update={"scoring_batch": 4 * cores})})
    single, threads = cohort.scorer(sizes.volumes), cohort.scorer(sizes.volumes, cores)
    with local_processes(PointScorer(single, alone), cores) as processes:
        ways: list[Callable[[], float]] = [
            lambda: _search(single, alone),
            lambda: _search(threads, alone),
            lambda: _search(processes, batch),
        ]
        for way in ways:
            way()
        rounds = [[way() for way in ways] for _ in range(sizes.repeats)]
    for place, name in ((1, f"{cores} threads, points one by one"), (2, f"{cores} processes, batches of {4 * cores}")):
        ratio = median(times[0] / times[place] for times in rounds)
        yield Row(f"the search by {name}, against one thread", "times faster", ratio)


def _size(shape: tuple[int, int, int]) -> str:
    slices, height, width = shape
    return f"{height}x{width}x{slices}"
