"""How well a model in training finds anomalies: a few unhealthy validation volumes, scored with the default settings.

With ``search.preview_trials`` above 1 settings are searched on them and on some healthy ones, as at the trial's end, and the
best counts. Otherwise no healthy volume is looked at: without statistics of healthy residuals ``scoring.normalise`` has no say.

The value is comparable between training budgets and between trials, so that a pruner can stop the weak ones by it.
It is drawn as ``monitor/...`` and never mixed with final scores.
"""

from collections.abc import Mapping, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cddpm.config import ExperimentConfig, ReconstructionConfig, ScoringConfig, to_dict, with_values
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.precision import certain
from cddpm.reconstruct.part import Key, rounded
from cddpm.reconstruct.predict import Manner, Request, predict_volumes
from cddpm.scoring import ensemble, operating_point
from cddpm.scoring.metrics import mean
from cddpm.scoring.postprocess import anomaly_map
from cddpm.scoring.residual import eroded_mask
from cddpm.scoring.score import Scorer
from cddpm.training.loop import InnerSearch
from cddpm.training.preview_cache import PreviewCache, Rounded
from cddpm.training.ranks import Ranks

OBJECTIVE = "monitor/objective"


class Preview:
    """The first ``training.validation_volumes`` volumes with a lesion of each data set of the search's objective.

    ``guide`` is the DDPM that guides the model, if one does and the guidance scale asks for it; ``search`` is needed if
    ``search.preview_trials`` asks for more than one setting.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        store: SliceStore,
        guide: ConditionedDiffusion | None = None,
        search: InnerSearch | None = None,
    ) -> None:
        self.config, self.store, self.guide, self.search = config, store, guide, search
        count, fold = config.training.validation_volumes, config.data.fold
        names = _datasets(config)
        self.volumes = [
            (name, v)
            for name in names
            for v in islice((v for v in store.cohort(name, "val", fold) if store.segmentation(v).any()), count)
        ]

    def score(self, model: ConditionedDiffusion, ranks: Ranks) -> dict[str, float]:
        """``monitor/<data set>/dice`` (or auprc) and their mean ``monitor/objective``; the same on all ranks."""
        if self.config.search.preview_trials > 1 and self.volumes:
            return self._searched(model, ranks)
        mine = self._histograms(model, self.volumes[ranks.rank :: ranks.world], ranks.device)
        everyone = [item for part in ranks.gather(mine) for item in part]
        groups: dict[str, list[operating_point.Histogram]] = {}
        for name, histogram in everyone:
            groups.setdefault(name, []).append(histogram)
        return self._named({name: self._measure(group) for name, group in groups.items()})

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        scores = {f"monitor/{name}/{self.config.search.objective}": value for name, value in values.items()}
        return {**scores, OBJECTIVE: mean(scores.values()) or 0.0}

    def _searched(self, model: ConditionedDiffusion, ranks: Ranks) -> dict[str, float]:
        """All ranks predict, the first one searches."""
        if self.search is None:
            raise ValueError("search.preview_trials: nobody gave the preview a search")
        data, unhealthy = self.config.data, dict[str, list[int]]()
        for name, v in self.volumes:
            unhealthy.setdefault(name, []).append(v)
        healthy = self.store.cohort(data.healthy, "val", data.fold)[: self.config.training.validation_volumes]
        asked = [*(v for _, v in self.volumes), *healthy]
        parts = ranks.gather(self._predictions(model, asked[ranks.rank :: ranks.world], ranks.device))
        values: dict[str, float] | None = None
        if ranks.first:
            cache = PreviewCache({volume: arrays for part in parts for volume, arrays in part.items()})
            scorer = Scorer(self.store, cache, unhealthy, healthy, threads=torch.get_num_threads())
            there = with_values(self.config, {"search.datasets": list(unhealthy)}, "preview")
            values = self.search(scorer, there, cache.guided)
        return self._named(ranks.share(values))

    def _predictions(
        self, model: ConditionedDiffusion, volumes: Sequence[int], device: torch.device
    ) -> dict[str, Rounded]:
        """Everything that a reconstruction of ``volumes`` would hold."""
        settings = self.config.reconstruction
        steps = tuple(product(sorted(set(settings.noise_levels)), sorted(set(settings.noise_seeds))))
        requests = (Request(self.store.volumes[v].id, self.store.image(v), steps) for v in volumes)
        predicted = predict_volumes(model, requests, manner(self.config, settings, device), self.guide)
        return {request.key: rounded(request.key, arrays) for request, arrays in predicted}

    def _measure(self, histograms: list[operating_point.Histogram]) -> float:
        if self.config.search.objective == "auprc":
            return mean(operating_point.average_precision(h) for h in histograms) or 0.0
        return operating_point.best_dice([histograms]).dice

    def _histograms(
        self, model: ConditionedDiffusion, volumes: list[tuple[str, int]], device: torch.device
    ) -> list[tuple[str, operating_point.Histogram]]:
        scale = self.config.scoring.guidance_scale
        steps = tuple(product(sorted(_levels(self.config)), sorted(set(_seeds(self.config)))))
        requests = (Request(self.store.volumes[v].id, self.store.image(v), steps) for _, v in volumes)
        way = manner(self.config, self.config.reconstruction, device, scale != 1)
        predicted = predict_volumes(model, requests, way, self.guide)
        return [
            (name, self._histogram(v, self._reconstructions(arrays)))
            for (name, v), (_, arrays) in zip(volumes, predicted, strict=True)
        ]

    def _histogram(self, v: int, reconstructions: list[ensemble.Member]) -> operating_point.Histogram:
        scoring = self.config.scoring
        mask = eroded_mask(self.store.mask(v), scoring.erosion_divisor)
        image, brain = self.store.image(v), self.store.mask(v) > 0
        residual = ensemble.joined(ensemble.residuals(image, brain, reconstructions, scoring), image, scoring)
        lesion = np.flatnonzero(self.store.segmentation(v))
        scores = anomaly_map(residual, mask, scoring.median_kernel)
        return operating_point.histogram(scores, lesion, self.store.ignored(v))

    def _reconstructions(self, arrays: dict[Key, NDArray[np.float32]]) -> list[ensemble.Member]:
        scoring, levels, seeds = self.config.scoring, _levels(self.config), _seeds(self.config)
        groups = {level: [_guided(arrays, level, seed, scoring.guidance_scale) for seed in seeds] for level in levels}
        return ensemble.members_of(groups, scoring)


def preview_settings(config: ExperimentConfig) -> dict[str, Any]:
    """All settings that a preview's value depends on, beside those of the model, as plain JSON data."""
    reconstruction, scoring = config.reconstruction, config.scoring
    return {
        "objective": config.search.objective,
        "datasets": list(_datasets(config)),
        "noise_levels": list(_levels(config)),
        "embedding_scale": reconstruction.embedding_scale,
        "guide": reconstruction.guide,
        "precision": certain(reconstruction.precision),
        "guidance_scale": scoring.guidance_scale,
        "residual": scoring.residual,
        "erosion_divisor": scoring.erosion_divisor,
        "median_kernel": scoring.median_kernel,
        **_others(scoring),
        **_searched_settings(config),
    }


def _searched_settings(config: ExperimentConfig) -> dict[str, Any]:
    """What a search depends on beside them."""
    search, reconstruction = config.search, config.reconstruction
    if search.preview_trials == 1:
        return {}
    return {
        "trials": search.preview_trials,
        "scoring": to_dict(config.scoring),
        "space": to_dict(search.scoring),
        "all_noise_levels": sorted(set(reconstruction.noise_levels)),
        "noise_seeds": sorted(set(reconstruction.noise_seeds)),
    }


def _others(scoring: ScoringConfig) -> dict[str, Any]:
    """Settings that came later: only where they are not what they were before they could be set."""
    found = {
        "level_weights": scoring.level_weights and list(scoring.level_weights),
        "combine": scoring.combine,
        "match_histogram": scoring.match_histogram,
        "ssim_window": scoring.ssim_window if scoring.residual == "ssim" else None,
    }
    usual = {"level_weights": None, "combine": "reconstructions", "match_histogram": False, "ssim_window": None}
    return {name: value for name, value in found.items() if value != usual[name]}


def _datasets(config: ExperimentConfig) -> tuple[str, ...]:
    return config.search.datasets or config.data.unhealthy


def _levels(config: ExperimentConfig) -> tuple[int, ...]:
    scoring, made = config.scoring, config.reconstruction.noise_levels
    combined = ensemble.levels_of(scoring, made)
    return tuple(level for level in dict.fromkeys(scoring.noise_levels or made) if level in combined)


def _seeds(config: ExperimentConfig) -> tuple[int, ...]:
    """One is enough, unless the residual is made of several reconstructions."""
    return config.reconstruction.noise_seeds if config.scoring.residual == "mahalanobis" else (0,)


def _guided(arrays: dict[Key, NDArray[np.float32]], level: int, seed: int, scale: float) -> NDArray[np.float32]:
    """x0(s) = u + s (c - u)."""
    c = arrays["c", level, seed]
    u = arrays.get(("u", level, seed), c)
    guided: NDArray[np.float32] = u + np.float32(scale) * (c - u)
    return guided


def manner(
    config: ExperimentConfig, settings: ReconstructionConfig, device: torch.device, unconditional: bool = True
) -> Manner:
    """How ``config`` predicts volumes: its noise, boxes and seed; scale, precision and batch size of ``settings``."""
    return Manner(
        config.diffusion.noise,
        config.seed,
        settings.batch_size,
        certain(settings.precision),
        device,
        unconditional,
        config.diffusion.patch,
        settings.embedding_scale,
    )


def predict(
    model: ConditionedDiffusion,
    config: ExperimentConfig,
    settings: ReconstructionConfig,
    slices: NDArray[np.floating],
    volume_key: str,
    device: torch.device,
    unconditional: bool = True,
    guide: ConditionedDiffusion | None = None,
) -> dict[Key, NDArray[np.float32]]:
    """All levels and seeds of ``settings`` of one volume, (S, H, W) in [0, 1], in the manner of ``config``."""
    wanted = tuple(product(sorted(set(settings.noise_levels)), sorted(set(settings.noise_seeds))))
    request = Request(volume_key, slices, wanted)
    ((_, arrays),) = predict_volumes(model, [request], manner(config, settings, device, unconditional), guide)
    return arrays
