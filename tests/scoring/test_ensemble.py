"""Every way from reconstructions to one residual, in the scorer, equals the same arithmetic written plainly in float64."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from cddpm.config import ScoringConfig
from cddpm.errors import ArtifactError, ConfigError, DataError
from cddpm.reconstruct import part, reconstruction
from cddpm.scoring.calibration import given
from cddpm.scoring.ensemble import ArrayMemo, combined
from cddpm.scoring.metrics import ssim_map
from cddpm.scoring.residual import SHRINKAGE, SMALLEST_DEVIATION
from cddpm.scoring.score import Scorer, evaluate


def bytes_of(value: int) -> np.ndarray:
    return np.full(10, value, np.uint8)


def test_computes_once_while_it_holds():
    memo, calls = ArrayMemo(100), []
    for _ in range(3):
        memo.get("a", lambda: calls.append(1) or bytes_of(1))
    assert len(calls) == 1


def test_forgets_the_longest_unused_first():
    memo = ArrayMemo(30)
    for key in "abc":
        memo.get(key, lambda: bytes_of(0))
    memo.get("a", lambda: bytes_of(9))  # used again: now b is the oldest
    memo.get("d", lambda: bytes_of(0))
    assert (len(memo), memo.held_bytes) == (3, 30)
    assert memo.get("a", lambda: bytes_of(9))[0] == 0
    assert memo.get("b", lambda: bytes_of(9))[0] == 9


def test_an_array_that_never_fits_is_returned_but_not_kept():
    memo = ArrayMemo(5)
    assert memo.get("a", lambda: bytes_of(3))[0] == 3
    assert len(memo) == 0


def test_arrays_are_read_only():
    array = ArrayMemo(100).get("a", lambda: bytes_of(1))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_clear_and_threads_keep_the_books():
    memo = ArrayMemo(200)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: int(memo.get(i % 30, lambda: bytes_of(i % 30))[0]), range(600)))
    assert found == [i % 30 for i in range(600)]
    assert memo.held_bytes == 10 * len(memo) <= 200
    memo.clear()
    assert (len(memo), memo.held_bytes) == (0, 0)


COHORT = {"A": [0, 1, 2], "B": [3, 4]}
HEALTHY = [5, 6]
BOTH = (250, 500)
SETTINGS = {
    "weights": {"noise_levels": BOTH, "level_weights": (3, 1)},
    "weights in another order": {"noise_levels": (500, 250), "level_weights": (0.2, 0.8), "guidance_scale": 1.7},
    "a weight of 0": {"noise_levels": BOTH, "level_weights": (0, 2), "residual": "l2"},
    "mean": {"combine": "mean", "residual": "positive"},
    "weighted mean": {"combine": "mean", "noise_levels": BOTH, "level_weights": (3, 1)},
    "median": {"combine": "median", "guidance_scale": 0.5},
    "geometric mean": {"combine": "geometric-mean", "residual": "l2"},
    "weighted geometric mean": {"combine": "geometric-mean", "noise_levels": BOTH, "level_weights": (1, 4)},
    "minimum": {"combine": "minimum"},
    "ssim": {"residual": "ssim", "guidance_scale": 1.7},
    "ssim, mean of residuals": {"residual": "ssim", "combine": "mean"},
    "mahalanobis": {"residual": "mahalanobis", "guidance_scale": 1.3},
    "mahalanobis of two": {"residual": "mahalanobis", "noise_levels": (500,)},
    "histogram": {"match_histogram": True, "guidance_scale": 2.0},
    "histogram of each": {"match_histogram": True, "combine": "minimum", "residual": "l2"},
    "histogram, ssim": {"match_histogram": True, "residual": "ssim"},
    "z": {"normalise": "healthy-z"},
    "z of each": {"normalise": "healthy-z", "combine": "mean", "noise_levels": BOTH, "level_weights": (1, 2)},
    "z, geometric mean": {"normalise": "healthy-z", "combine": "geometric-mean", "residual": "l2"},
    "z by intensity": {"normalise": "healthy-z-by-intensity", "combine": "median"},
    "z of a distance": {"normalise": "healthy-z-by-intensity", "residual": "mahalanobis"},
}


def quick(name: str) -> ScoringConfig:
    return ScoringConfig(median_kernel=1, erosion_divisor=None, minimum_component_voxels=3, **SETTINGS[name])


@pytest.fixture
def scorer(store, reconstructions) -> Scorer:
    return Scorer(store, reconstructions, COHORT, HEALTHY)


class Plain:
    """The whole way once more: float64, whole volumes, no sharing of anything."""

    def __init__(self, store, predictions, scoring: ScoringConfig) -> None:
        self.store, self.predictions, self.scoring = store, predictions, scoring
        weights = scoring.level_weights or (1,) * len(scoring.noise_levels or BOTH)
        pairs = zip(scoring.noise_levels or BOTH, weights, strict=True)
        self.weights = {level: weight for level, weight in pairs if weight}

    def x0(self, v: int, level: int, seed: int) -> np.ndarray:
        arrays, s = self.predictions[self.store.volumes[v].id], self.scoring.guidance_scale
        c = arrays["c", level, seed].astype(np.float16).astype(np.float64)
        d = (arrays["c", level, seed] - arrays["u", level, seed]).astype(np.float16).astype(np.float64)
        return c + (s - 1) * d

    def reconstructions(self, v: int) -> list[tuple[object, float, np.ndarray]]:
        every = [(level, self.weights[level], self.x0(v, level, seed)) for level in self.weights for seed in (0, 7)]
        if self.scoring.combine == "reconstructions" and self.scoring.residual != "mahalanobis":
            every = [("all", 1, np.average([x for _, _, x in every], axis=0, weights=[w for _, w, _ in every]))]
        return [(level, w, self.with_histogram(v, x) if self.scoring.match_histogram else x) for level, w, x in every]

    def with_histogram(self, v: int, x0: np.ndarray) -> np.ndarray:
        brain, result = self.store.mask(v) > 0, x0.copy()
        rank = np.argsort(np.argsort(x0[brain]))
        result[brain] = np.sort(self.store.image(v)[brain])[rank]
        return result

    def residuals(self, v: int) -> list[tuple[object, float, np.ndarray]]:
        made = self.reconstructions(v)
        if self.scoring.residual == "mahalanobis":
            return [("all", 1, self.distance(v, [x for _, _, x in made]))]
        return [(level, w, self.difference(v, x)) for level, w, x in made]

    def difference(self, v: int, x0: np.ndarray) -> np.ndarray:
        x, brain = self.store.image(v).astype(np.float64), self.store.mask(v) > 0
        if self.scoring.residual == "ssim":
            return 1 - ssim_map(x * brain, x0 * brain)
        return {"l1": np.abs(x - x0), "l2": (x - x0) ** 2, "positive": np.maximum(x - x0, 0)}[self.scoring.residual]

    def distance(self, v: int, made: list[np.ndarray]) -> np.ndarray:
        result = np.zeros_like(made[0])
        for s, inside in enumerate(self.store.mask(v) > 0):
            if inside.any():
                samples = np.stack([x[s][inside] for x in made])
                centred = samples - samples.mean(axis=0)
                spread = samples.var(axis=0, ddof=1)
                root = np.sqrt(SHRINKAGE * spread + spread.mean() + SMALLEST_DEVIATION**2)
                factor = centred.T * np.sqrt((1 - SHRINKAGE) / (len(made) - 1)) / root[:, None]
                u, q, _ = np.linalg.svd(factor, full_matrices=False)
                error = (self.store.image(v)[s][inside] - samples.mean(axis=0)) / root
                result[s][inside] = np.abs(error + u @ ((1 / np.sqrt(1 + q**2) - 1) * (u.T @ error)))
        return result

    def bin(self, v: int) -> np.ndarray:
        count = 16 if self.scoring.normalise.endswith("intensity") else 1
        return np.clip(np.floor(self.store.image(v).astype(np.float64) * count), 0, count - 1)

    def standardised(self, v: int, level: object, r: np.ndarray) -> np.ndarray:
        healthy = [
            (self.bin(h)[self.store.mask(h) > 0], residual[self.store.mask(h) > 0])
            for h in HEALTHY
            for name, _, residual in self.residuals(h)
            if name == level
        ]
        where, values = (np.concatenate(part) for part in zip(*healthy, strict=True))
        result = np.empty_like(r)
        for b in np.unique(self.bin(v)):
            among = values[where == b] if np.count_nonzero(where == b) >= 100 else values
            here = self.bin(v) == b
            result[here] = (r[here] - among.mean()) / among.std()
        return result

    def residual(self, v: int) -> np.ndarray:
        found = self.residuals(v)
        if self.scoring.normalise != "none":
            found = [(level, w, self.standardised(v, level, r)) for level, w, r in found]
        stack, weights = np.stack([r for _, _, r in found]), [w for _, w, _ in found]
        if self.scoring.combine == "median":
            return np.median(stack, axis=0)
        if self.scoring.combine == "minimum":
            return stack.min(axis=0)
        if self.scoring.combine == "geometric-mean":
            with np.errstate(divide="ignore"):
                return np.exp(np.average(np.log(np.maximum(stack, 0)), axis=0, weights=weights))
        return np.average(stack, axis=0, weights=weights)

    def anomaly_map(self, v: int) -> np.ndarray:
        return np.maximum(self.residual(v), 0) * (self.store.mask(v) > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_plain_arithmetic(scorer, store, predictions, name):
    for v in (0, 4):
        expected = Plain(store, predictions, quick(name)).anomaly_map(v)
        assert expected.max() > 0.01
        found = scorer.anomaly_map(v, quick(name))
        assert np.isfinite(found).all()
        near = np.isclose(found, expected, rtol=5e-3, atol=2e-3 * max(1, expected.max()))
        allowed = 0.002 if "histogram" in name else 0  # two voxels that differ by rounding alone may swap intensities
        assert np.mean(~near) <= allowed


def test_settings_differ():
    """Or else a setting would be ignored, and no test above would see it."""
    assert len({quick(name) for name in SETTINGS}) == len(SETTINGS)


def test_every_setting_changes_the_map(scorer):
    maps = {name: scorer.anomaly_map(0, quick(name)) for name in SETTINGS}
    for (one, a), (other, b) in itertools.combinations(maps.items(), 2):
        assert not np.array_equal(a, b), f"{one} and {other}"


@pytest.mark.slow
def test_memo_threads_and_order_change_nothing(store, reconstructions):
    warm = Scorer(store, reconstructions, COHORT, HEALTHY)
    others = [
        Scorer(store, reconstructions, COHORT, HEALTHY, memory_bytes=50_000),
        Scorer(store, reconstructions, COHORT, HEALTHY, threads=3),
    ]
    for name in [*SETTINGS, *reversed(SETTINGS)]:
        expected = warm.score(quick(name))
        for other in others:
            found = other.score(quick(name))
            assert (found.values, found.thresholds, found.datasets) == (
                expected.values,
                expected.thresholds,
                expected.datasets,
            )


def test_equal_weights_are_no_weights(scorer):
    plain, weighed = (ScoringConfig(noise_levels=BOTH, level_weights=weights) for weights in (None, (2.5, 2.5)))
    assert np.array_equal(scorer.anomaly_map(0, plain), scorer.anomaly_map(0, weighed))
    assert np.array_equal(scorer.whole_reconstruction(0, plain), scorer.whole_reconstruction(0, weighed))


def test_a_level_of_weight_0_is_not_even_read(scorer):
    one = ScoringConfig(noise_levels=(500,))
    for combine in ("reconstructions", "mean"):
        zero = ScoringConfig(noise_levels=(750, 500), level_weights=(0, 1), combine=combine)
        expected = one.model_copy(update={"combine": combine})
        assert np.array_equal(scorer.anomaly_map(0, zero), scorer.anomaly_map(0, expected))


def test_the_reconstruction_is_weighted_whatever_is_combined(scorer, store, predictions):
    scoring = ScoringConfig(combine="mean", noise_levels=BOTH, level_weights=(3, 1))
    plain = Plain(store, predictions, scoring.model_copy(update={"combine": "reconstructions"}))
    inside = store.mask(1) > 0
    expected = plain.reconstructions(1)[0][2]
    assert scorer.reconstruction(1, scoring)[inside] == pytest.approx(expected[inside], abs=1e-5)
    assert scorer.whole_reconstruction(1, scoring) == pytest.approx(expected, abs=1e-5)


def test_one_reconstruction_has_no_distribution(scorer, store, predictions, tmp_path):
    path = tmp_path / "cache"
    arrays = {("c", 250, 0): predictions["A/0"]["c", 250, 0]}
    part.write_part(reconstruction.parts_directory(path), "A/0", arrays)
    reconstruction.finish(path, ["A/0"], "x", {"volumes": ["A/0"]})
    alone = Scorer(store, reconstruction.Reconstruction.open(path), {"A": [0]})
    with pytest.raises(ConfigError, match="'mahalanobis' needs two reconstructions or more"):
        alone.anomaly_map(0, ScoringConfig(residual="mahalanobis"))


Z = ScoringConfig(normalise="healthy-z-by-intensity", combine="mean", erosion_divisor=None, median_kernel=1)


def test_a_test_cohort_is_measured_in_units_of_validation(store, reconstructions):
    validation = Scorer(store, reconstructions, {"A": [0]}, [5])
    test = Scorer(store, reconstructions, {"B": [3, 4]}, [6], calibrated=validation.calibration)
    together = Scorer(store, reconstructions, COHORT, [5])
    assert np.array_equal(test.anomaly_map(3, Z), together.anomaly_map(3, Z))
    own = Scorer(store, reconstructions, {"B": [3, 4]}, [6])
    assert not np.array_equal(test.anomaly_map(3, Z), own.anomaly_map(3, Z))


def test_a_score_carries_the_statistics_that_give_the_same_maps(store, reconstructions):
    score = Scorer(store, reconstructions, {"A": [0, 1, 2]}, HEALTHY).score(Z)
    assert set(score.statistics) == {"250", "500"}
    alone = Scorer(store, reconstructions, {"A": [2]}, calibrated=given(score.statistics))
    whole = Scorer(store, reconstructions, {"A": [0, 1, 2]}, HEALTHY)
    assert np.array_equal(alone.anomaly_map(2, Z), whole.anomaly_map(2, Z))
    assert evaluate(alone, Z, score.thresholds).rows[0] == evaluate(whole, Z, score.thresholds).rows[2]
    assert Scorer(store, reconstructions, {"A": [0]}).score(ScoringConfig()).statistics is None


def test_statistics_that_are_missing_are_named(store, reconstructions):
    with pytest.raises(DataError, match="needs healthy validation volumes; this cohort has none"):
        Scorer(store, reconstructions, COHORT).score(Z)
    with pytest.raises(ArtifactError, match="none were kept with this result"):
        Scorer(store, reconstructions, COHORT, HEALTHY, calibrated=given(None)).score(Z)


def test_an_image_without_reconstructions_ignores_what_is_about_them(store):
    plain = Scorer(store, None, COHORT)
    usual = plain.score(ScoringConfig())
    other = plain.score(ScoringConfig(residual="mahalanobis", normalise="healthy-z", match_histogram=True))
    assert (usual.values, usual.thresholds) == (other.values, other.thresholds)


def test_the_map_of_a_z_score_ranks_as_the_residual_does(scorer, store):
    """Of one residual over all voxels: only the unit changes, and what is below the healthy mean becomes equal."""
    plain, z = (ScoringConfig(normalise=n, median_kernel=1, erosion_divisor=None) for n in ("none", "healthy-z"))
    found, standard = (scorer.anomaly_map(0, s)[store.mask(0) > 0].astype(np.float64) for s in (plain, z))
    (mean,), (deviation,) = (scorer.statistics(z)["all"][name] for name in ("mean", "deviation"))
    assert standard == pytest.approx(np.maximum((found - mean) / deviation, 0), rel=2e-3, abs=2e-2)
    assert np.count_nonzero(standard) < np.count_nonzero(found)


# Combining residuals, against NumPy and SciPy voxel by voxel


def maps(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(count)
    found = [random.random((3, 4, 5)).astype(np.float32) for _ in range(count)]
    found[0][0] = 0
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize(
    ("how", "plain"),
    [
        ("mean", lambda a: a.mean(axis=0)),
        ("median", lambda a: np.median(a, axis=0)),
        ("geometric-mean", lambda a: stats.gmean(a, axis=0)),
        ("minimum", lambda a: a.min(axis=0)),
    ],
)
def test_equals_the_plain_way(count, how, plain):
    residuals = maps(count)
    before = [r.copy() for r in residuals]
    with np.errstate(divide="ignore"):
        expected = plain(np.stack(residuals).astype(np.float64))
    assert combined(residuals, how) == pytest.approx(expected, rel=2e-6, abs=1e-7)
    assert all(np.array_equal(a, b) for a, b in zip(residuals, before, strict=True))


def test_weights_count_by_their_ratio():
    residuals = maps(3)
    stack = np.stack(residuals).astype(np.float64)
    for weights in ([1, 2, 5], [0.125, 0.25, 0.625]):
        assert combined(residuals, "mean", weights) == pytest.approx(np.average(stack, 0, [1, 2, 5]), rel=2e-6)
        with np.errstate(divide="ignore"):
            expected = np.exp(np.average(np.log(stack), 0, [1, 2, 5]))
        assert combined(residuals, "geometric-mean", weights) == pytest.approx(expected, rel=2e-6)
    assert np.array_equal(combined(residuals, "mean", [1, 1, 1]), combined(residuals, "mean"))


@pytest.mark.parametrize("how", ["median", "minimum"])
def test_weights_without_meaning_are_refused(how):
    with pytest.raises(ValueError, match=f"combined by '{how}' with weights"):
        combined(maps(2), how, [1, 1])


def test_unknown_ways_and_nothing_are_refused():
    with pytest.raises(ValueError, match="'maximum'; allowed are 'mean', 'median'"):
        combined(maps(2), "maximum")
    with pytest.raises(ValueError, match="0 residuals"):
        combined([], "mean")
