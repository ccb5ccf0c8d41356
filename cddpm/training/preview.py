"""How well a model in training finds anomalies: a few unhealthy validation volumes, scored with the default settings.

With ``search.preview_trials`` above 1 settings are searched on them and on some healthy ones, as at the trial's end, and the
best counts. Otherwise no healthy volume is looked at: without statistics of healthy residuals ``scoring.normalise`` has no say,
predictions are not rounded, and the Dice is the best one before the component filter.

The value is comparable between training budgets and between trials, so that a pruner can stop the weak ones by it.
It is drawn as ``monitor/...`` and never mixed with final scores.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from cddpm.config import ExperimentConfig, to_dict, with_values
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.precision import certain
from cddpm.reconstruct.cohort import Cohort
from cddpm.reconstruct.predict import Networks
from cddpm.reconstruct.reconstruction import Reconstruction
from cddpm.scoring import ensemble, operating_point
from cddpm.scoring.metrics import mean
from cddpm.scoring.operating_point import Histogram
from cddpm.training.loop import InnerSearch
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
        names = config.objective_datasets
        self.volumes = [
            (name, v)
            for name in names
            for v in islice((v for v in store.cohort(name, "val", fold) if store.segmentation(v).any()), count)
        ]

    def score(self, model: ConditionedDiffusion, ranks: Ranks) -> dict[str, float]:
        """``monitor/<data set>/dice`` (or auprc) and their mean ``monitor/objective``; the same on all ranks."""
        objective = self.config.search.objective
        values = self._values(model, ranks) if self.volumes else {}
        scores = {f"monitor/{name}/{objective}": value for name, value in values.items()}
        return {**scores, OBJECTIVE: mean(scores.values()) or 0.0}

    def _values(self, model: ConditionedDiffusion, ranks: Ranks) -> dict[str, float]:
        """Of each data set with volumes."""
        if self.config.search.preview_trials > 1:
            return self._searched(Networks(self.config, model, self.guide, ranks.device), ranks)
        settings = self.config.reconstruction.model_copy(update={"noise_seeds": _seeds(self.config)})
        plain = self.config.model_copy(update={"reconstruction": settings})
        return self._plain(Networks(plain, model, self.guide, ranks.device), ranks)

    def _plain(self, networks: Networks, ranks: Ranks) -> dict[str, float]:
        """All ranks predict and score."""
        scoring = self.config.scoring.model_copy(update={"normalise": "none"})
        mine = Cohort(self.store, _grouped(self.volumes[ranks.rank :: ranks.world]))
        scorer = mine.scorer(mine.reconstruct(networks, scoring, exact=True))
        found = ranks.gather({name: scorer.histograms(name, scoring) for name in scorer.datasets})
        names = dict.fromkeys(name for share in found for name in share)
        return {name: self._measure([h for share in found for h in share.get(name, [])]) for name in names}

    def _measure(self, histograms: list[Histogram]) -> float:
        if self.config.search.objective == "auprc":
            return mean(operating_point.average_precision(h) for h in histograms) or 0.0
        return operating_point.best_dice([histograms]).dice

    def _searched(self, networks: Networks, ranks: Ranks) -> dict[str, float]:
        """All ranks predict, the first one searches."""
        if self.search is None:
            raise ValueError("search.preview_trials: nobody gave the preview a search")
        data, unhealthy = self.config.data, _grouped(self.volumes)
        healthy = self.store.cohort(data.healthy, "val", data.fold)[: self.config.training.validation_volumes]
        cohort = Cohort(self.store, unhealthy, healthy)
        shares = ranks.gather(self._share(cohort, networks, ranks))
        values: dict[str, float] | None = None
        if ranks.first:
            reconstruction = Reconstruction.joined(shares)
            scorer = cohort.scorer(reconstruction, threads=torch.get_num_threads())
            there = with_values(self.config, {"search.datasets": list(unhealthy)}, "preview")
            values = self.search(scorer, there, reconstruction.guided)
        return ranks.share(values)

    def _share(self, cohort: Cohort, networks: Networks, ranks: Ranks) -> Reconstruction:
        """Of every so many volumes of ``cohort`` one, as many as there are ranks."""
        return Cohort(self.store, healthy=cohort.volumes[ranks.rank :: ranks.world]).reconstruct(networks)


def _grouped(volumes: Sequence[tuple[str, int]]) -> Mapping[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for name, v in volumes:
        groups.setdefault(name, []).append(v)
    return groups


def preview_settings(config: ExperimentConfig) -> dict[str, Any]:
    """All settings that a preview's value depends on, beside those of the model, as plain JSON data."""
    search, reconstruction, scoring = config.search, config.reconstruction, config.scoring
    settings = {
        "objective": search.objective,
        "datasets": list(config.objective_datasets),
        "residual": list(ensemble.upstream(scoring, ensemble.levels_of(scoring, reconstruction.noise_levels))),
        "erosion_divisor": scoring.erosion_divisor,
        "median_kernel": scoring.median_kernel,
        "embedding_scale": reconstruction.embedding_scale,
        "guide": reconstruction.guide,
        "precision": certain(reconstruction.precision),
    }
    if search.preview_trials == 1:
        return settings
    return {
        **settings,
        "trials": search.preview_trials,
        "scoring": to_dict(scoring),
        "space": to_dict(search.scoring),
        "noise_levels": sorted(set(reconstruction.noise_levels)),
        "noise_seeds": sorted(set(reconstruction.noise_seeds)),
    }


def _seeds(config: ExperimentConfig) -> tuple[int, ...]:
    """One is enough, unless the residual is made of several reconstructions."""
    return config.reconstruction.noise_seeds if config.scoring.residual == "mahalanobis" else (0,)
