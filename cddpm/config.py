"""The configuration: typed, frozen, closed. Every field has its meaning, unit and single default here.

A file in ``tune_configs/`` is an ``ExperimentConfig`` as YAML. ``load`` reads one, applies overrides with dotted paths and
lists all faults at once, each with file, dotted path, value and what is allowed.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cddpm.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class Frozen(BaseModel):
    """Base of all configuration sections: immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise PydanticCustomError(
                "truth", "Input should not be true or false"
            )  # pydantic would take them for 1 and 0
        return value


class PhantomConfig(Frozen):
    """The synthetic cohort that is made when no DATA_DIR is given."""

    size: Literal["small", "full"] = "small"
    """``full``: shapes and voxel sizes of the published data; ``small``: half of them along each axis."""
    seed: int = 0
    healthy_train: Positive = 24
    healthy_val: Positive = 4
    healthy_test: Positive = 6
    unhealthy_val: Positive = 5
    """Volumes per unhealthy data set, validation."""
    unhealthy_test: Positive = 8
    """Volumes per unhealthy data set, test."""


class DataConfig(Frozen):
    """Which scans, and how they become what the network sees."""

    data_dir: Path | None = None
    """Folder in the published layout; empty: the phantom is made."""
    phantom: PhantomConfig = PhantomConfig()
    modality: Name = "t2"
    fold: Annotated[int, Field(ge=0)] = 0
    healthy: Name = "IXI"
    unhealthy: tuple[Name, ...] = ("Brats21", "MSLUB")
    splits: Literal["clean", "published", "strict"] = "clean"
    """A subject in two splits: ``clean`` drops it from training (and validation) with a warning, ``published`` keeps the
    rows as they are (reference behaviour), ``strict`` makes it an error."""
    orientation: Literal["LPS", "RAS", "stored"] = "LPS"
    """Axis directions of the working grid. ``stored`` keeps the array as it lies in the file (reference behaviour)."""
    voxel_size_mm: Annotated[float, Field(gt=0)] | None = 1.0
    """Scans of another voxel size are resampled to this first; empty: voxel size ignored (reference behaviour)."""
    volume_shape: tuple[Positive, Positive, Positive] = (192, 192, 100)
    """Voxels after centred cropping or padding."""
    rescale_factor: Annotated[float, Field(ge=1)] = 2.0
    """Downsampling after cropping: 192x192x100 becomes 96x96x50."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Intensities at these percentiles inside the brain mask become 0 and 1."""
    smoothing_iterations: Annotated[int, Field(ge=0)] = 3
    """Curvature flow steps of 0.125 on the image."""

    @property
    def working_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the volumes that the network sees; rounded down, so that no voxel lies outside of the crop."""
        x, y, z = (max(1, int(n / self.rescale_factor + 1e-6)) for n in self.volume_shape)
        return x, y, z

    @property
    def slice_shape(self) -> tuple[int, int]:
        """(H, W) of the slices that the network sees."""
        return self.working_shape[:2]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles: {low}, {high}: allowed is 0 <= low < high <= 100")
        if len(set(self.unhealthy)) != len(self.unhealthy):
            raise ValueError(f"unhealthy: {', '.join(self.unhealthy)}: a data set is named twice")
        return self


class EncoderConfig(Frozen):
    """The condition encoder (ResNet on the noise-free slice)."""

    architecture: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: Positive = 64
    """Channels of the first stage; 64 is the standard network."""
    max_pool: bool = True
    """Pooling after the first convolution. Without it the total downsampling is 16, not 32: for small slices."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the last block, rising linearly over the blocks (the reference trains with 0.05)."""

    @property
    def downsampling(self) -> int:
        """Input pixels per pixel of the last feature map, along each axis."""
        return 32 if self.max_pool else 16


class ModelConfig(Frozen):
    """The U-Net that predicts x_0 (or eps) from the noised slice and the condition."""

    base_width: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    width_multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 2)
    residual_blocks: Positive = 3
    """Residual blocks per resolution level."""
    attention_head_width: Positive = 64
    """Channels per head of the middle block's attention."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    conditioned: bool = True
    """False: a plain DDPM without encoder."""
    condition_width: Positive | None = None
    """Length of the condition vector; empty: 4 x base_width (reference behaviour)."""

    @property
    def condition_channels(self) -> int:
        """Length of the condition vector."""
        return self.condition_width or 4 * self.base_width


class NoiseConfig(Frozen):
    """The noise that is added to slices."""

    kind: Literal["simplex", "gaussian"] = "simplex"
    octaves: Positive = 6
    persistence: Annotated[float, Field(gt=0, le=1)] = 0.8
    frequency: Positive = 64
    """Wavelength in pixels of the first octave; halved per octave."""
    standardise: bool = False
    """Scale simplex noise to unit variance (its own standard deviation is about 0.54)."""


class DiffusionConfig(Frozen):
    """The forward process and the training objective."""

    timesteps: Positive = 1000
    schedule: Literal["cosine", "linear"] = "cosine"
    objective: Literal["x0", "eps"] = "x0"
    loss: Literal["l1", "l2"] = "l1"
    noise: NoiseConfig = NoiseConfig()
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of training with the learned null embedding; 0 (reference) leaves nothing to guide with."""
    p2_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Loss weight (p2_k + SNR)^-p2_gamma of Choi et al. 2022; 0 (reference) weighs all noise levels alike."""
    p2_k: Annotated[float, Field(gt=0)] = 1.0


class PretrainingConfig(Frozen):
    """SparK masked image modelling of the encoder."""

    enabled: bool = True
    images: Positive = 200_000
    """Budget: slices seen."""
    batch_size: Positive = 64
    """Over all workers."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.65
    decoder_width: Annotated[int, Field(ge=16, multiple_of=16)] = 512
    evaluations: Positive = 10
    """Validations (and checkpoints) over the whole budget, evenly spaced."""


class AugmentationConfig(Frozen):
    """Intensity augmentation of training slices."""

    enabled: bool = False
    gamma_probability: Fraction = 0.5
    gamma_log_range: Annotated[float, Field(ge=0)] = 0.3
    """The exponent is exp(U(-r, r))."""


class TrainingConfig(Frozen):
    """Training of the diffusion model."""

    images: Positive = 2_000_000
    """Budget: slices seen, whatever the batch size or the number of workers."""
    batch_size: Positive = 32
    """Over all workers."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_images: Annotated[int, Field(ge=0)] = 0
    learning_rate_decay: Literal["none", "cosine"] = "none"
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Exponential moving average of the weights, per step; 0: off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    augmentation: AugmentationConfig = AugmentationConfig()
    minimum_brain_fraction: Fraction = 0.0
    """Training slices with less brain than this are left out; 0 keeps all, empty ones too (reference behaviour)."""
    evaluations: Positive = 10
    """Validations (and checkpoints) over the whole budget, evenly spaced."""
    validation_slices: Positive = 64
    """Fixed healthy slices of the validation loss, with fixed noise levels and noise."""
    validation_volumes: Positive = 4
    """Unhealthy validation volumes per data set that each validation scores."""


class ReconstructionConfig(Frozen):
    """What is predicted and kept for scoring."""

    noise_levels: tuple[Positive, ...] = (250, 500, 750)
    """1-based steps t of 1..T; each is one forward pass per branch."""
    noise_seeds: tuple[int, ...] = (0,)
    batch_size: Positive = 64
    precision: Literal["float32", "bfloat16"] = "float32"


class ScoringConfig(Frozen):
    """From cached reconstructions to a segmentation."""

    noise_levels: tuple[Positive, ...] | None = None
    """Levels that are averaged, out of the reconstructed ones; empty: all."""
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 1.0
    """s in x0(s) = u + s (c - u)."""
    residual: Literal["l1", "l2", "positive", "negative"] = "l1"
    """``positive``: input brighter than reconstruction only; ``negative``: darker only."""
    erosion_divisor: Annotated[int, Field(ge=1)] | None = 25
    """The brain mask is eroded (size of axis 1 // divisor) times per slice; empty: not eroded."""
    median_kernel: Literal[1, 3, 5, 7] = 5
    minimum_component_voxels: Annotated[int, Field(ge=0)] = 8
    """26-connected components with fewer (filled) voxels are removed."""
    operating_point: Literal["val-dice", "healthy-fpr", "fixed"] = "val-dice"
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
        return self


class ComputeConfig(Frozen):
    """What a trial may use."""

    workers: Positive = 1
    """Processes of one training (DDP)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """Used when the device is a GPU."""
    threads_per_worker: Positive | None = None
    """Computing threads of a worker; empty: its CPUs."""
    maximum_failures: Annotated[int, Field(ge=0)] = 2
    """Restarts of one training after a lost worker or node."""


class Float(Frozen):
    """A real parameter: ``{float: [low, high], log: true}``."""

    float: tuple[float, float]
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(self.float, self.log)
        return self


class Integer(Frozen):
    """A whole parameter: ``{int: [low, high], step: 1}``."""

    int: tuple[int, int]
    step: Positive = 1
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_range(self.int, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"step: {self.step}: a log range has step 1")
        return self


class Choice(Frozen):
    """One of several values: ``{choice: [a, b, c]}``. A value may be a list (of noise levels, say)."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)]


def _check_range(limits: tuple[float, float], log: bool) -> None:
    low, high = limits
    if not low < high:
        raise ValueError(f"range [{low}, {high}]: the first number must be below the second")
    if log and low <= 0:
        raise ValueError(f"range [{low}, {high}]: a log range must start above 0")


def _kind(value: Any) -> str | None:
    names = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, BaseModel) else ()
    return next((kind for kind in ("float", "int", "choice") if kind in names), None)


Parameter = Annotated[
    Annotated[Float, Tag("float")] | Annotated[Integer, Tag("int")] | Annotated[Choice, Tag("choice")],
    Discriminator(
        _kind,
        custom_error_type="parameter",
        custom_error_message="allowed is {float: [low, high]}, {int: [low, high]} or {choice: [...]}",
    ),
]
Space = dict[str, Parameter]


class LevelConfig(Frozen):
    """One level of the search: its space by dotted configuration path, and how many points are tried."""

    trials: Positive = 1
    space: Space = {}
    start: tuple[dict[str, Any], ...] = ()
    """Points tried first."""
    sampler: Literal["tpe", "random"] = "tpe"


class AshaConfig(Frozen):
    """Asynchronous successive halving over images seen; the weak are stopped at each rung."""

    enabled: bool = True
    grace_images: Positive = 100_000
    reduction_factor: Annotated[int, Field(ge=2)] = 3


class SearchConfig(Frozen):
    """The sweep: training trials on Ray Tune + Optuna, each ending in a search over its cached reconstructions."""

    objective: Literal["dice", "auprc"] = "dice"
    """Mean over the volumes of each objective data set, then over data sets, on *validation*."""
    datasets: tuple[Name, ...] = ()
    """Unhealthy data sets of the objective; empty: all of ``data.unhealthy``."""
    training: LevelConfig = LevelConfig()
    """Space over training settings: a trial costs a training."""
    scoring: LevelConfig = LevelConfig(trials=64)
    """Space over ``scoring.*``: a trial is arithmetic on the cache."""
    asha: AshaConfig = AshaConfig()
    concurrent_trials: Positive | None = None
    """Trainings at the same time; empty: as many as the cluster holds."""
    maximum_seconds: Annotated[float, Field(gt=0)] | None = None
    """No new training starts after this wall-clock time."""


class TrackingConfig(Frozen):
    """Where the lab book is."""

    uri: str | None = None
    """MLflow tracking URI; empty: a SQLite file in ``output_dir``."""
    experiment: Name = "cddpm"
    registered_model: Name = "cddpm"
    registered_trials: Positive = 3
    """The best so many trials of a sweep, by validation, become versions of the registered model."""


class ExperimentConfig(Frozen):
    """A whole experiment: data, networks, training, scoring, search."""

    name: Name
    seed: int = 0
    output_dir: Path = Path("outputs")
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    training: TrainingConfig = TrainingConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    scoring: ScoringConfig = ScoringConfig()
    compute: ComputeConfig = ComputeConfig()
    search: SearchConfig = SearchConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        faults = [
            *_shape_faults(self),
            *_pretraining_faults(self),
            *_noise_faults(self),
            *_batch_faults(self),
            *_search_faults(self),
        ]
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _shape_faults(config: ExperimentConfig) -> Iterator[str]:
    height, width = config.data.slice_shape
    unet = 2 ** (len(config.model.width_multipliers) - 1)
    factor = config.encoder.downsampling if config.model.conditioned else unet
    if height != width or height % unet or height % factor:
        yield (
            f"data.volume_shape: slices of {height}x{width} pixels after rescaling; allowed are square slices with a "
            f"multiple of {max(unet, factor)} pixels (data.rescale_factor, model.width_multipliers and encoder.max_pool "
            "decide)"
        )
    model = config.model
    channels = model.base_width * model.width_multipliers[-1]
    if channels % model.attention_head_width:
        yield (
            f"model.attention_head_width: {model.attention_head_width}; allowed are divisors of the {channels} channels "
            "of the last level (model.base_width times the last of model.width_multipliers)"
        )


def _pretraining_faults(config: ExperimentConfig) -> Iterator[str]:
    if not (config.pretraining.enabled and config.model.conditioned):
        return
    factor, ratio, width = config.encoder.downsampling, config.pretraining.mask_ratio, config.pretraining.decoder_width
    if width % factor:
        yield f"pretraining.decoder_width: {width}: allowed is a multiple of {factor} (the encoder's downsampling)"
    height, columns = config.data.slice_shape
    patches = (height // factor) * (columns // factor)
    visible = round(patches * (1 - ratio))
    if not 0 < visible < patches:
        yield (
            f"pretraining.mask_ratio: {ratio} leaves {visible} of {patches} patches visible; at least one must be "
            "visible and one hidden (data.volume_shape, data.rescale_factor and encoder.max_pool decide how many there are)"
        )


def _noise_faults(config: ExperimentConfig) -> Iterator[str]:
    levels, last = config.reconstruction.noise_levels, config.diffusion.timesteps
    for level in levels:
        if level > last:
            yield f"reconstruction.noise_levels: {level}: allowed is 1 to {last} (diffusion.timesteps)"
    for level in config.scoring.noise_levels or ():
        if level not in levels:
            yield f"scoring.noise_levels: {level} is not reconstructed; allowed are {list(levels)} (reconstruction.noise_levels)"
    dropout = config.diffusion.condition_dropout
    if not config.model.conditioned and dropout:
        yield f"diffusion.condition_dropout: {dropout}: a model without condition (model.conditioned: false) has nothing to drop"
    if config.scoring.guidance_scale != 1 and not dropout:
        yield (
            f"scoring.guidance_scale: {config.scoring.guidance_scale} needs a model trained with "
            "diffusion.condition_dropout > 0; without it only 1 is allowed"
        )


def _batch_faults(config: ExperimentConfig) -> Iterator[str]:
    workers = config.compute.workers
    for section, batch in (("pretraining", config.pretraining.batch_size), ("training", config.training.batch_size)):
        if batch % workers:
            yield f"{section}.batch_size: {batch} is not divisible by compute.workers ({workers})"
    if config.pretraining.images < config.pretraining.batch_size:
        yield f"pretraining.images: {config.pretraining.images} is less than one batch ({config.pretraining.batch_size})"
    if config.training.images < config.training.batch_size:
        yield f"training.images: {config.training.images} is less than one batch ({config.training.batch_size})"


def _search_faults(config: ExperimentConfig) -> Iterator[str]:
    for dataset in config.search.datasets:
        if dataset not in config.data.unhealthy:
            yield f"search.datasets: '{dataset}' is not among data.unhealthy ({', '.join(config.data.unhealthy)})"
    for level in ("training", "scoring"):
        section: LevelConfig = getattr(config.search, level)
        for path, parameter in section.space.items():
            yield from _parameter_faults(level, path)
            yield from _value_faults(f"search.{level}.space.{path}", path, _values(parameter))
        for point in section.start:
            for path in point:
                if path not in section.space:
                    yield f"search.{level}.start: '{path}' is not in search.{level}.space"
                yield from _value_faults(f"search.{level}.start.{path}", path, [point[path]])
    if config.search.training.trials > 1 and not config.search.training.space:
        yield (
            f"search.training.trials: {config.search.training.trials} trainings of an empty space would all be the same; "
            "name settings in search.training.space, or ask for 1"
        )
    yield from _start_faults(config)
    yield from _combination_faults(config)
    if "scoring.guidance_scale" in config.search.scoring.space and not _may_drop_condition(config):
        yield (
            "search.scoring.space: 'scoring.guidance_scale' is searched, but diffusion.condition_dropout is 0 in every trial"
        )


def _start_faults(config: ExperimentConfig) -> Iterator[str]:
    """The first trial is the configuration as it is, so its own values must lie in the space."""
    for path, parameter in config.search.training.space.items():
        value: Any = config
        for part in path.split(".") if path in FIELDS else ():
            value = getattr(value, part)
        if path in FIELDS and not _contains(parameter, value):
            yield f"search.training.space.{path}: {value!r}, the setting itself, is not in it; the first trial tries that"


def _contains(parameter: Float | Integer | Choice, value: Any) -> bool:
    if isinstance(parameter, Choice):
        return any(_listed(choice) == _listed(value) for choice in parameter.choice)
    if value is None or isinstance(value, str | tuple):
        return False
    low, high = parameter.float if isinstance(parameter, Float) else parameter.int
    return bool(low <= value <= high)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _combination_faults(config: ExperimentConfig) -> Iterator[str]:
    """Values of the space that fit their own setting, but not the rest of the configuration."""
    training, scoring = config.search.training.space, config.search.scoring.space
    for path in ("training.batch_size", "pretraining.batch_size"):
        for batch in _values(training[path]) if path in training else ():
            if isinstance(batch, int) and batch % config.compute.workers:
                yield f"search.training.space.{path}: {batch} is not divisible by compute.workers ({config.compute.workers})"
    if "scoring.noise_levels" in scoring and "reconstruction.noise_levels" not in training:
        made = config.reconstruction.noise_levels
        chosen = [levels for levels in _values(scoring["scoring.noise_levels"]) if isinstance(levels, list | tuple)]
        for level in sorted({level for levels in chosen for level in levels} - set(made), key=str):
            yield (
                f"search.scoring.space.scoring.noise_levels: {level} is not reconstructed; allowed are {list(made)} "
                "(reconstruction.noise_levels)"
            )


def _values(parameter: Parameter) -> list[Any]:
    """The choices, or both ends of a range and, of a whole range, its second value."""
    if isinstance(parameter, Choice):
        return list(parameter.choice)
    if isinstance(parameter, Float):
        return list(parameter.float)
    low, high = parameter.int
    return [low, min(low + parameter.step, high), high]


def _value_faults(where: str, path: str, values: list[Any]) -> Iterator[str]:
    """Searched values that the setting at ``path`` itself would refuse."""
    if path not in FIELDS:
        return
    *sections, name = path.split(".")
    model: type[BaseModel] = ExperimentConfig
    for section in sections:
        model = _section(model.model_fields[section].annotation) or model
    field = model.model_fields[name]
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    setting: TypeAdapter[Any] = TypeAdapter(annotation)
    for value in values:
        try:
            setting.validate_python(value)
        except ValidationError as error:
            yield f"{where}: {error.errors(include_url=False)[0]['msg']} (found {_shown(value)})"


def _may_drop_condition(config: ExperimentConfig) -> bool:
    return config.diffusion.condition_dropout > 0 or "diffusion.condition_dropout" in config.search.training.space


def _parameter_faults(level: str, path: str) -> Iterator[str]:
    where = f"search.{level}.space"
    if path not in FIELDS:
        yield f"{where}: '{path}' is no setting{_did_you_mean(path, FIELDS)}"
    elif level == "scoring" and not path.startswith("scoring."):
        yield f"{where}: '{path}': allowed here are scoring.* settings; others belong to search.training.space"
    elif level == "training" and path.split(".")[0] in (
        "scoring",
        "search",
        "tracking",
        "output_dir",
        "name",
        "data",
        "compute",
    ):
        yield f"{where}: '{path}': allowed here are encoder, model, diffusion, pretraining, training and reconstruction settings"


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted paths of settings below ``model``."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section:
            yield from field_paths(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _section(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    found = [o for o in options if isinstance(o, type) and issubclass(o, Frozen)]
    return found[0] if found else None


FIELDS = frozenset(field_paths(ExperimentConfig))


def _did_you_mean(word: str, allowed: Any) -> str:
    near = difflib.get_close_matches(word, sorted(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


class _ClosedLoader(yaml.SafeLoader):
    """Plain data only, and no key twice in one mapping (YAML would silently keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is set twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Read a YAML file, apply ``overrides`` (dotted path -> value), resolve its paths.

    Raises ``ConfigError`` that lists every fault with file and dotted path.
    """
    try:
        raw = yaml.load(path.read_text(), Loader=_ClosedLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, a mapping of settings is needed")
    merged = override(raw, overrides or {}, str(path))
    return resolve_paths(parse(merged, str(path)), Path.cwd())


def parse(raw: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate plain data. Raises ``ConfigError`` listing every fault with ``source`` and dotted path."""
    try:
        return ExperimentConfig.model_validate(raw)
    except ValidationError as error:
        faults = [*_explain(error, source), *_faults_behind(error, raw, source)]
        raise ConfigError("\n".join(faults)) from None


def _faults_behind(error: ValidationError, raw: Mapping[str, Any], source: str) -> Iterator[str]:
    """Faults between settings, which pydantic looks for only when each setting is right by itself.

    The faulty settings are left out for this second look, and so is what it then says about them.
    """
    places = [fault["loc"] for fault in error.errors(include_url=False) if fault["loc"]]
    if not places:
        return
    rest = _deep_copy(raw)
    for place in places:
        _remove(rest, place)
    try:
        ExperimentConfig.model_validate({"name": "unnamed", **rest})
    except ValidationError as second:
        doubtful = [".".join(str(part) for part in place[:2]) for place in places]
        yield from (line for line in _explain(second, source) if not any(path in line for path in doubtful))


def _remove(nested: dict[str, Any], place: tuple[int | str, ...]) -> None:
    inner = nested.get(place[0]) if isinstance(place[0], str) else None
    if len(place) > 1 and isinstance(inner, dict) and place[1] in inner:
        _remove(inner, place[1:])
    elif isinstance(place[0], str):
        nested.pop(place[0], None)


def override(raw: Mapping[str, Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of the nested mapping ``raw`` with ``values`` put in by dotted path. Raises ``ConfigError`` on unknown paths."""
    merged = _deep_copy(raw)
    unknown = [
        f"{source}: {path}: no such setting{_did_you_mean(path, FIELDS)}" for path in values if path not in FIELDS
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))
    for path, value in values.items():
        *sections, name = path.split(".")
        target = merged
        for section in sections:
            if target.get(section) is None:
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise ConfigError(f"{source}: {section}: holds {target!r}; a mapping of settings is needed")
        target[name] = value
    return merged


def with_values(config: ExperimentConfig, values: Mapping[str, Any], source: str = "trial") -> ExperimentConfig:
    """``config`` with some settings replaced by dotted path, validated again. Raises ``ConfigError``."""
    return parse(override(to_dict(config), values, source), source)


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain JSON data of a configuration."""
    return config.model_dump(mode="json")


def resolve_paths(config: ExperimentConfig, root: Path) -> ExperimentConfig:
    """Make every path absolute (workers run in other directories)."""
    data_dir = config.data.data_dir
    data = config.data.model_copy(update={"data_dir": (root / data_dir).resolve() if data_dir else None})
    return config.model_copy(update={"data": data, "output_dir": (root / config.output_dir).resolve()})


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return list(value) if isinstance(value, list | tuple) else value


def _explain(error: ValidationError, source: str) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            yield f"{source}: {path}: unknown setting{_nearest(fault['loc'])}"
        elif fault["type"] == "value_error":
            for line in str(fault["ctx"]["error"]).splitlines():
                yield f"{source}: {path + '.' if path else ''}{line}"
        else:
            yield f"{source}: {path}: {fault['msg']} (found {_shown(fault['input'])})"


def _nearest(loc: tuple[int | str, ...]) -> str:
    *sections, name = [str(part) for part in loc]
    model: type[BaseModel] | None = ExperimentConfig
    for section in sections:
        field = model.model_fields.get(section) if model else None
        model = _section(field.annotation) if field else None
    return _did_you_mean(name, model.model_fields) if model else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
