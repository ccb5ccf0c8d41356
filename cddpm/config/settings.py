"""All settings of an experiment, section by section and by dotted path; and a benchmark, made of experiments."""

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, Field, model_validator

from cddpm.config.job import SlurmConfig
from cddpm.config.scans import DataConfig
from cddpm.config.sections import (
    ComputeConfig,
    DiffusionConfig,
    EncoderConfig,
    EvaluationConfig,
    FolderOrUri,
    Frozen,
    ModelConfig,
    Name,
    Positive,
    PretrainingConfig,
    ReconstructionConfig,
    TrackingConfig,
    TrainingConfig,
)
from cddpm.config.space import SearchConfig


class ScoringConfig(Frozen):
    """From cached reconstructions to a segmentation."""

    noise_levels: tuple[Positive, ...] | None = None
    """Levels that are combined, out of the reconstructed ones; empty: all."""
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """One per level of ``noise_levels``, in its order; only their ratios count, and a level of weight 0 is left out.
    Empty: all the same."""
    combine: Literal["reconstructions", "mean", "median", "geometric-mean", "minimum"] = "reconstructions"
    """What becomes of the levels and noise seeds: the residual of their mean reconstruction, or this of their residuals."""
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 1.0
    """s in x0(s) = u + s (c - u)."""
    residual: Literal["l1", "l2", "positive", "negative", "ssim", "ssim-ensemble", "mahalanobis"] = "l1"
    """``positive``: input brighter than reconstruction only; ``negative``: darker only; ``ssim``: 1 - structural
    similarity; ``ssim-ensemble``: its mean over windows of 3 to 17 pixels; ``mahalanobis``: distance to the distribution of
    all reconstructions, of which it needs two or more."""
    ssim_window: Literal[3, 5, 7, 9, 11, 13, 15, 17] = 11
    """For ``ssim``: pixels along an edge of its window; its standard deviation is 1.5 pixels for 11, and grows with it."""
    normalise: Literal["none", "healthy-z", "healthy-z-by-intensity"] = "none"
    """``healthy-z``: residuals of each level minus their mean, over their standard deviation, in healthy validation brains,
    before levels are combined; ``by-intensity``: in those of their voxels that are about as bright."""
    match_histogram: bool = False
    """A reconstruction's brain voxels get the intensities of the input's, in their own order, before the residual."""
    erosion_divisor: Annotated[int, Field(ge=1)] | None = 25
    """The brain mask is eroded (size of axis 1 // divisor) times per slice; empty: not eroded."""
    median_kernel: Literal[1, 3, 5, 7] = 5
    minimum_component_voxels: Annotated[int, Field(ge=0)] = 8
    """Connected components with fewer voxels are removed."""
    connectivity: Literal[6, 18, 26] = 26
    """Neighbours of a voxel that belong to its component: at faces, edges too, corners too."""
    component_size: Literal["filled", "voxels"] = "filled"
    """Voxels of a component with the holes that it encloses, or without."""
    operating_point: Literal["val-dice", "val-dice-filtered", "healthy-fpr", "seed-search", "fixed"] = "val-dice"
    """``val-dice``: exact optimum of the mean Dice on validation before the component filter; ``val-dice-filtered``: after
    it; ``seed-search``: the reference's ten-step search over pooled voxels; ``healthy-fpr``: quantile of healthy validation
    brains."""
    healthy_false_positive_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """For ``healthy-fpr``: fraction of healthy validation brain voxels above the threshold."""
    threshold: Annotated[float, Field(ge=0)] | None = None
    """For ``fixed``."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.operating_point == "fixed" and self.threshold is None:
            raise ValueError("threshold: missing; operating_point 'fixed' needs a number >= 0")
        if self.operating_point != "fixed" and self.threshold is not None:
            raise ValueError(f"threshold: {self.threshold} would be ignored; only operating_point 'fixed' reads it")
        faults = [*self._weight_faults(), *self._combination_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _combination_faults(self) -> Iterator[str]:
        if self.residual == "mahalanobis" and self.combine != "reconstructions":
            yield (
                f"combine: '{self.combine}' would be ignored; residual 'mahalanobis' looks at all reconstructions at once "
                "and goes with 'reconstructions' only"
            )

    def _weight_faults(self) -> Iterator[str]:
        weights, levels = self.level_weights, self.noise_levels
        if weights is None:
            return
        shown = list(weights)
        if levels is None:
            yield f"level_weights: {shown} belong to no levels; name as many in noise_levels"
        elif len(weights) != len(levels):
            yield f"level_weights: {shown} are {len(weights)} weights for the {len(levels)} levels of noise_levels"
        elif len(set(levels)) < len(levels):
            yield f"level_weights: {shown}: noise_levels {list(levels)} names a level twice; name each once"
        if not any(weights):
            yield f"level_weights: {shown}: at least one must be above 0"
        if self.combine in ("median", "minimum") or self.residual == "mahalanobis":
            what = "residual 'mahalanobis'" if self.residual == "mahalanobis" else f"combine '{self.combine}'"
            yield f"level_weights: {shown} would be ignored by {what}; leave them empty"


class Settings(Frozen):
    """Every setting, each right by itself; ``ExperimentConfig`` adds that they fit together."""

    name: Name
    method: Literal["diffusion", "intensity-threshold"] = "diffusion"
    """``intensity-threshold``: the image itself takes the place of the residual; nothing is trained."""
    seed: int = 0
    output_dir: Path = Path("outputs")
    """Folder of sweeps, evaluations, phantom and lab book on the driver's disk."""
    storage: FolderOrUri = ""
    """Where artifacts, states of trainings and a copy of each sweep's folder are kept, for all machines of a cluster: a folder
    (shared, if there are several), or ``s3://``, ``gs://`` or ``abfs://`` with bucket and prefix. Empty: ``output_dir``."""
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    training: TrainingConfig = TrainingConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    scoring: ScoringConfig = ScoringConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    search: SearchConfig = SearchConfig()
    tracking: TrackingConfig = TrackingConfig()
    slurm: SlurmConfig = SlurmConfig()

    @property
    def kept_in(self) -> str:
        """The storage: a folder or a URI."""
        return self.storage or str(self.output_dir)


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted paths of settings below ``model``."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section:
            yield from field_paths(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, None for a plain setting."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    found = [o for o in options if isinstance(o, type) and issubclass(o, Frozen)]
    return found[0] if found else None


def annotation_at(model: type[BaseModel], path: str) -> Any:
    """What the setting at a dotted path may be. Raises ``KeyError`` for a path that is none."""
    section, _, rest = path.partition(".")
    field = model.model_fields[section]
    if not rest:
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    inner = section_of(field.annotation)
    if inner is None:
        raise KeyError(path)
    return annotation_at(inner, rest)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def value_at(config: BaseModel, path: str) -> Any:
    """The setting at a dotted path. Raises ``AttributeError`` for a path that is none."""
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def changed(config: BaseModel, default: BaseModel) -> dict[str, Any]:
    """Settings of ``config`` that differ from ``default``, as plain data by dotted path; a dict is taken apart by its keys."""
    found: dict[str, Any] = {}
    for path in field_paths(type(config)):
        if value_at(config, path) != value_at(default, path):
            *section, name = path.split(".")
            holder = value_at(config, ".".join(section)) if section else config
            value = holder.model_dump(mode="json", include={name}, by_alias=True)[name]
            if isinstance(value, dict):  # a space: what its parameters leave out is left out
                value = holder.model_dump(mode="json", include={name}, by_alias=True, exclude_defaults=True)[name]
            found |= {f"{path}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {path: value}
    return found


def shown(value: Any) -> str:
    """A value as messages quote it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class CohortConfig(Frozen):
    """Unhealthy data sets that share a modality, and so a training."""

    modality: Name
    unhealthy: Annotated[tuple[Name, ...], Field(min_length=1)]


class MethodConfig(Frozen):
    """One row of the table."""

    label: str
    """What the table calls it."""
    config: Path
    """Experiment file, relative to the benchmark's own folder."""
    set: dict[str, Any] = Field(default={})
    """Settings of this method by dotted path; they win over the benchmark's ``set``."""


class BenchmarkConfig(Frozen):
    """Every method on every cohort and fold."""

    name: Name
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    cohorts: Annotated[tuple[CohortConfig, ...], Field(min_length=1)]
    set: dict[str, Any] = Field(default={})
    """Settings of all methods by dotted path."""
    compared_with: str | None = None
    """Label of the method that the others are tested against; empty: the last one."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        labels = [method.label for method in self.methods]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"methods: '{twice[0]}' is the label of two methods")
        if self.compared_with is not None and self.compared_with not in labels:
            raise ValueError(f"compared_with: '{self.compared_with}': allowed are {', '.join(labels)}")
        names = [name for cohort in self.cohorts for name in cohort.unhealthy]
        again = sorted({name for name in names if names.count(name) > 1})
        if again:
            raise ValueError(f"cohorts: data set '{again[0]}' stands in two cohorts")
        return self
