"""What is to be evaluated: which methods, each an experiment per cohort, on which folds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cddpm.config import (
    BenchmarkConfig,
    CohortConfig,
    ExperimentConfig,
    Frozen,
    MethodConfig,
    explain,
    flat,
    load,
    override,
    parse,
    read_yaml,
    recorded,
    resolve_paths,
)
from cddpm.errors import ConfigError

FOLDER = "evaluations"


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated: per method's label one experiment per cohort, on ``folds``."""

    kind: str
    """``evaluation`` or ``benchmark``."""
    name: str
    methods: Mapping[str, Sequence[ExperimentConfig]]
    compared_with: str
    """Label of the method that the others are tested against."""

    @property
    def first(self) -> ExperimentConfig:
        """Where outputs go and how it is measured; the same for all methods."""
        return next(iter(self.methods.values()))[0]

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds that are trained and measured."""
        return self.first.evaluation.folds

    @property
    def folder(self) -> Path:
        """Where everything but artifacts and the lab book is kept."""
        return self.first.output_dir / FOLDER / self.name

    @property
    def doubt(self) -> str | None:
        """What makes the numbers of some folds better than they are, as a sentence; None if nothing is known that would."""
        data = self.first.data
        if data.intensities != "landmarks" or data.landmarks is None or len(self.folds) < 2:
            return None
        return (
            f"data.landmarks: the same are used in the folds {', '.join(map(str, self.folds))}; if they were learnt from the "
            "training scans of one of them, validation scans of the others had a part in them. Leave data.landmarks empty, "
            "and each fold learns its own"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """All settings that may never change between two starts."""
        free = (
            "output_dir",
            "storage",
            "tracking.",
            "search.",
            "compute.maximum_failures",
            "slurm.",
            "evaluation.folds",
            "data.fold",
            "training.precision",  # compared once it is settled
            "reconstruction.precision",
        )
        settings = {
            f"{label}/{config.data.modality}/{path}": value
            for label, configs in self.methods.items()
            for config in configs
            for path, value in flat(recorded(config)).items()
            if not path.startswith(free) or path.startswith("search.scoring")
        }
        return {**settings, "folds": list(self.folds)}


def evaluation(path: Path, overrides: Mapping[str, Any]) -> Plan:
    """One method: the experiment of a YAML file. Raises ``ConfigError``."""
    config = load(path, overrides)
    return Plan("evaluation", config.name, {config.name: [config]}, config.name)


def benchmark(path: Path, overrides: Mapping[str, Any], modality: str | None = None) -> Plan:
    """The methods and cohorts of a benchmark file; ``overrides`` win over all files.

    With ``modality`` only its cohorts, under a name of their own. Raises ``ConfigError`` listing every fault of all
    experiments.
    """
    try:
        asked = BenchmarkConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, str(path), BenchmarkConfig))) from None
    asked = _only(asked, modality, path) if modality else asked
    found: dict[str, list[ExperimentConfig]] = {}
    faults: list[str] = []
    for method in asked.methods:
        faults += _add(found, path, asked, method, overrides)
    if faults:
        raise ConfigError("\n".join(faults))
    _refuse_different_rules(path, found)
    return Plan("benchmark", asked.name, found, asked.compared_with or list(found)[-1])


def _only(asked: BenchmarkConfig, modality: str, path: Path) -> BenchmarkConfig:
    kept = tuple(cohort for cohort in asked.cohorts if cohort.modality == modality)
    if not kept:
        there = ", ".join(dict.fromkeys(cohort.modality for cohort in asked.cohorts))
        raise ConfigError(f"{path}: no cohort of modality '{modality}'; there are {there}")
    return asked.model_copy(update={"cohorts": kept, "name": f"{asked.name}-{modality}"})


def _add(
    found: dict[str, list[ExperimentConfig]],
    path: Path,
    asked: BenchmarkConfig,
    method: MethodConfig,
    overrides: Mapping[str, Any],
) -> Iterator[str]:
    """Put the experiments of one method into ``found``; yields the faults of those that cannot be."""
    for cohort in asked.cohorts:
        try:
            found.setdefault(method.label, []).append(_experiment(path, asked, method, cohort, overrides))
        except ConfigError as error:
            yield f"{method.label}, {cohort.modality}: {error}"


def _experiment(
    path: Path, asked: BenchmarkConfig, method: MethodConfig, cohort: CohortConfig, overrides: Mapping[str, Any]
) -> ExperimentConfig:
    file = path.parent / method.config
    own = {
        "name": asked.name,
        "data.modality": cohort.modality,
        "data.unhealthy": list(cohort.unhealthy),
        "search.datasets": [],
    }
    raw = read_yaml(file)
    for values in (asked.set, method.set, own, overrides):
        raw = override(raw, values, str(path))
    return resolve_paths(parse(raw, str(file)), Path.cwd())


def _refuse_different_rules(path: Path, found: Mapping[str, list[ExperimentConfig]]) -> None:
    """Rows of one table must be measured alike."""
    first, *others = found
    faults = [
        f"{path}: {fault} differs between '{first}' and '{label}'; put it into the benchmark's own 'set'"
        for label in others
        for section in ("data", "evaluation")
        for fault in _differences(section, getattr(found[first][0], section), getattr(found[label][0], section))
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def _differences(section: str, one: Frozen, other: Frozen) -> Iterator[str]:
    for name in type(one).model_fields:
        if getattr(one, name) != getattr(other, name):
            yield f"{section}.{name}"
