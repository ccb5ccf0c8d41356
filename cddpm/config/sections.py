"""The sections of the configuration: every setting with its meaning, unit and single default."""

import math
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cddpm.labels import PUBLISHED, Labels
from cddpm.place import ON_DISK, address
from cddpm.storage import as_setting


def takes(annotation: Any, *kinds: type) -> bool:
    """Whether a value of one of ``kinds``, or a closed choice of that kind, is allowed; what lists hold does not count."""
    origin = get_origin(annotation)
    if origin is Literal:
        return any(isinstance(choice, kinds) for choice in get_args(annotation))
    if origin is Annotated:
        return takes(get_args(annotation)[0], *kinds)
    if origin in (Union, types.UnionType):
        return any(takes(option, *kinds) for option in get_args(annotation))
    return annotation in kinds


Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
ROUNDING = 1e-6
"""Quotients that are this near to a whole number are one: 21 / 1.4 is 15."""
USUAL_BRAIN_MM = 140.0
"""From the lowest slice with brain to the highest one, of an adult."""
RescaleGrid = Literal["centred", "published"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


FolderOrUri = Annotated[str, BeforeValidator(as_setting)]
"""A folder, or the URI of an object store."""


class Frozen(BaseModel):
    """Base of all configuration sections: immutable; unknown keys, NaN, infinity and addresses for paths refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and not takes(annotation, bool, str):  # of text pydantic names what is allowed
            raise PydanticCustomError(
                "truth", "Input should not be true or false"
            )  # pydantic would take them for 1 and 0
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_address_for_path(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, str | Path) and takes(annotation, Path) and address(value):
            raise PydanticCustomError("address", "Input should be {allowed}", {"allowed": ON_DISK})
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

    data_dir: FolderOrUri | None = None
    """Folder in the published layout, or ``s3://...`` with the same below it; empty: the phantom is made."""
    phantom: PhantomConfig = PhantomConfig()
    table: Path | None = None
    """CSV or YAML file that names the scans of data sets in any other layout; replaces the split files. Relative paths in
    it are relative to ``data_dir``, or to its own folder without one."""
    modality: Name = "t2"
    fold: Annotated[int, Field(ge=0)] = 0
    healthy: Name = "IXI"
    unhealthy: tuple[Name, ...] = ("Brats21", "MSLUB")
    splits: Literal["clean", "published", "strict"] = "clean"
    """A subject in two splits: ``clean`` drops it from training (and validation) with a warning, ``published`` keeps the
    rows as they are (reference behaviour), ``strict`` makes it an error. An unhealthy scan in validation and test is one
    always: no published table has any."""
    lesion_labels: dict[Name, tuple[Positive, ...]] = Field(default={})
    """By data set, ``{WMH: [1]}`` say: labels of segmentations that are the anomaly. Not named: 1 in MSLUB, ATLAS_v2 and WMH,
    every label above 0 in others. A label that is neither lesion nor ignored is an error."""
    ignored_labels: dict[Name, tuple[Positive, ...]] = Field(default={})
    """By data set: labels whose voxels count neither way, in no threshold and no metric. Not named: 2 (other pathology) in
    WMH, none in others."""
    orientation: Literal["LPS", "RAS", "stored"] = "LPS"
    """Axis directions of the working grid. ``stored`` keeps the array as it lies in the file (reference behaviour)."""
    voxel_size_mm: Annotated[float, Field(gt=0)] | None = 1.0
    """Scans of another voxel size are resampled to this first; empty: voxel size ignored (reference behaviour)."""
    volume_shape: tuple[Positive, Positive, Positive | None] = (192, 192, 100)
    """Voxels after cropping or padding around ``centre``. The last one empty (``[192, 192, null]``): as many axial slices as
    the brain of each scan needs, so that none of its voxels is cut away there; training then sees all of them too."""
    centre: Literal["brain", "scan"] = "brain"
    """What comes to the middle of them: the ``brain`` (the box of its mask), so that cropping a scan to its brain changes
    nothing, or the ``scan``, wherever the brain lies in it (reference behaviour)."""
    rescale_factor: Annotated[float, Field(ge=1)] = 2.0
    """Downsampling after cropping: 192x192x100 becomes 96x96x50."""
    rescale_grid: RescaleGrid = "centred"
    """Sizes that ``rescale_factor`` does not divide: ``centred`` rounds down and keeps the centre, ``published`` rounds up
    and samples from (rescale_factor - 1) / 2 on, so that the last sample may lie outside of the crop (reference behaviour).
    Where it divides them, as 192x192x100 by 2, both are one grid."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Intensities at these percentiles inside the brain mask become 0 and 1."""
    smoothing_iterations: Annotated[int, Field(ge=0)] = 3
    """Curvature flow steps of 0.125 on the image."""

    def working_size(self, voxels: int) -> int:
        """Samples over so many voxels of one axis of a volume, rounded as ``rescale_grid`` says."""
        return _samples(voxels / self.rescale_factor, self.rescale_grid)

    @property
    def working_shape(self) -> tuple[int, int, int | None]:
        """(X, Y, Z) of the volumes that the network sees; Z empty where each brain decides."""
        x, y, z = self.volume_shape
        return self.working_size(x), self.working_size(y), None if z is None else self.working_size(z)

    @property
    def usual_shape(self) -> tuple[int, int, int]:
        """``working_shape``, with what an adult's brain needs where each brain decides: for forecasts."""
        x, y, z = self.working_shape
        return x, y, self.working_size(round(USUAL_BRAIN_MM / (self.voxel_size_mm or 1))) if z is None else z

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
        for setting, named in (("lesion_labels", self.lesion_labels), ("ignored_labels", self.ignored_labels)):
            for dataset in sorted(named.keys() - {self.healthy, *self.unhealthy}):
                known = ", ".join((self.healthy, *self.unhealthy))
                raise ValueError(f"{setting}: '{dataset}' is none of the data sets {known}")
        for dataset, lesion in self.lesion_labels.items():
            both = sorted({*lesion} & {*self.ignored_labels.get(dataset, ())})
            if both:
                raise ValueError(f"ignored_labels: {both} of {dataset} stand in lesion_labels too; name each once")
        return self

    def labels_of(self, dataset: str) -> Labels:
        """What the labels of a data set's segmentations mean: as set, else as published."""
        known = PUBLISHED.get(dataset, Labels())
        lesion = self.lesion_labels.get(dataset)
        ignored = self.ignored_labels.get(dataset)
        if ignored is None:
            ignored = tuple(label for label in known.ignored if label not in (lesion or ()))
        if lesion is None and known.lesion is not None:
            lesion = tuple(label for label in known.lesion if label not in ignored)
        return Labels(lesion, ignored)


def _samples(quotient: float, grid: RescaleGrid) -> int:
    match grid:
        case "centred":
            return max(1, math.floor(quotient + ROUNDING))
        case "published":
            return math.ceil(quotient - ROUNDING)
    raise AssertionError(grid)


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

    base_width: Annotated[int, Field(ge=8, multiple_of=8)] = 128
    """Channels of the first level. Multiples of 32 have the published norms of 32 groups; others, for small machines, 8."""
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
    conditioning: Literal["vector", "cross-attention"] = "vector"
    """How the condition enters: one vector that drives every norm (reference), or also the encoder's last feature map,
    which the U-Net's middle block attends to."""

    @property
    def condition_channels(self) -> int:
        """Length of the condition vector."""
        return self.condition_width or 4 * self.base_width


class NoiseConfig(Frozen):
    """The noise that is added to slices."""

    kind: Literal["simplex", "gaussian", "pyramid"] = "simplex"
    octaves: Positive = 6
    persistence: Annotated[float, Field(gt=0, le=1)] = 0.8
    frequency: Positive = 64
    """Wavelength in pixels of the first octave; halved per octave."""
    standardise: bool = False
    """Scale simplex noise to unit variance (its own standard deviation is about 0.54)."""
    discount: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Of pyramid noise: amplitude of each coarser scale against the one before."""
    shared: bool = False
    """One field, rounded to float16, for a whole training batch or volume (reference behaviour), not one per slice."""


class PatchConfig(Frozen):
    """Patched diffusion (pDDPM): only a box of the slice is noised and restored, its surroundings stay as they are."""

    enabled: bool = False
    size: Positive = 48
    """Edge of the box, in pixels of the working grid."""
    placement: Literal["grid", "random"] = "grid"
    """Of training boxes: from the grid that reconstruction uses, or anywhere."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Pixels that neighbouring boxes of the grid share; where boxes overlap the reconstruction is their mean."""


SSIM_WINDOW = 11
"""Edge, in pixels, of the window of the structural similarity (Wang et al. 2004)."""


class DiffusionConfig(Frozen):
    """The forward process and the training objective."""

    timesteps: Positive = 1000
    schedule: Literal["cosine", "linear"] = "cosine"
    objective: Literal["x0", "eps"] = "x0"
    loss: Literal["l1", "l2", "ssim-l1"] = "l1"
    """``ssim-l1``: L1 + ssim_weight (1 - SSIM), for objective x0."""
    ssim_weight: Annotated[float, Field(gt=0)] = 1.0
    eps_reconstruction: Literal["exact", "unscaled"] = "exact"
    """How objective eps gives x_0: ``unscaled`` leaves out the division by sqrt(abar_t) (reference behaviour)."""
    noise: NoiseConfig = NoiseConfig()
    patch: PatchConfig = PatchConfig()
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
    artifact: Name | None = None
    """Fingerprint of a finished encoder below ``output_dir/artifacts`` (``cddpm import`` makes one): it is used, nothing
    is pretrained, and the other settings of this section have no say."""


class AugmentationConfig(Frozen):
    """Intensity augmentation of training slices."""

    enabled: bool = False
    gamma_probability: Fraction = 0.5
    gamma_log_range: Annotated[float, Field(ge=0)] = 0.3
    """The exponent is exp(U(-r, r))."""
    bias_probability: Fraction = 0.0
    """Of a smooth multiplicative field, exp of a polynomial of order 3 (reference: 0.25)."""
    bias_coefficient: Annotated[float, Field(ge=0)] = 0.5
    """Its coefficients are U(-r, r)."""
    blur_probability: Fraction = 0.0
    """Of Gaussian blur (reference: 0.25)."""
    blur_std_mm: Annotated[float, Field(ge=0)] = 2.0
    """Its standard deviation per axis is U(0, s) mm."""
    ghosting_probability: Fraction = 0.0
    """Of ghosts along a random axis (reference: 0.5)."""
    ghosting_intensity: tuple[float, float] = (0.5, 1.0)
    ghosting_number: tuple[Positive, Positive] = (4, 10)


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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the networks' forward passes; weights and sums stay float32. ``auto``: bfloat16 where the hardware
    computes it (CUDA capability 8.0, CPUs with AMX-BF16 or AVX512-BF16), else float32."""
    augmentation: AugmentationConfig = AugmentationConfig()
    minimum_brain_fraction: Fraction = 0.0
    """Training slices with less brain than this are left out; 0 keeps all, empty ones too (reference behaviour)."""
    evaluations: Positive = 10
    """Validations (and checkpoints) over the whole budget, evenly spaced."""
    validation_slices: Positive = 64
    """Healthy slices of the validation loss, with their noise levels and noise."""
    validation_draw: Literal["fixed", "random"] = "fixed"
    """The same slices, levels and noise in each validation, or new ones, one slice per volume (reference behaviour)."""
    keep: Literal["last", "best-loss", "best-score"] = "last"
    """Which weights become the checkpoint: the last ones, or those of the validation with the lowest loss (reference
    behaviour) or the highest objective of the preview."""
    validation_volumes: Positive = 4
    """Unhealthy validation volumes per data set that each validation scores."""
    artifact: Name | None = None
    """Fingerprint of a finished checkpoint below ``output_dir/artifacts`` (``cddpm import`` makes one): it is used, nothing
    is trained, and the other settings of this section have no say."""


class ReconstructionConfig(Frozen):
    """What is predicted and kept for scoring."""

    noise_levels: tuple[Positive, ...] = (250, 500, 750)
    """1-based steps t of 1..T; each is one forward pass per branch."""
    noise_seeds: tuple[int, ...] = (0,)
    embedding_scale: Annotated[float, Field(ge=0, le=20)] = 1.0
    """The condition is multiplied by this before it enters the network; 1 (reference) leaves it. Not affine: each value
    is a reconstruction of its own."""
    guide: Literal["none", "ddpm"] = "none"
    """What u is in x0(s) = u + s (c - u): the model's own prediction without condition (needs diffusion.condition_dropout),
    or that of a DDPM trained beside it with the same settings."""
    batch_size: Positive = 64
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """As in training."""


class EvaluationConfig(Frozen):
    """What is measured on test, and how its uncertainty is told."""

    folds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Folds that are trained and evaluated."""
    healthy_false_positive_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01, 0.05, 0.10)
    """Fractions of healthy validation brain voxels above the threshold at which Dice and lesion recall are told."""
    lesion_overlap: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A lesion counts as found, a predicted component as right, if more than this fraction of it overlaps."""
    lesion_size_limits_ml: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 1.0, 10.0)
    """Limits between size strata of lesions."""
    bootstrap_resamples: Positive = 10_000
    permutation_resamples: Positive = 10_000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    reference_metrics: bool = False
    """Also tell every number as the published code names and computes it, wrong names included."""
    contrast_powers: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Simulated domain shift: test images to these voxelwise powers are evaluated too (paper: 0.3 to 2.0)."""
    transfer_modality: Name | None = None
    """Domain shift by modality: test scans of this modality are evaluated too."""


class ComputeConfig(Frozen):
    """What a trial may use."""

    workers: Positive = 1
    """Processes of one training (DDP). Two make the steps of one but for the rounding of float32 and the masks of dropout:
    gradients differ by about 1e-5, in float64 by 1e-14; over many steps that grows as rounding does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """Used when the device is a GPU."""
    threads_per_worker: Positive | None = None
    """Computing threads of a worker; empty: its CPUs."""
    maximum_failures: Annotated[int, Field(ge=0)] = 2
    """Restarts of one training after a lost worker or node."""


class TrackingConfig(Frozen):
    """Where the lab book is."""

    uri: str | None = None
    """MLflow tracking URI; empty: a SQLite file in ``output_dir``."""
    when_away: Literal["go on", "refuse"] = "go on"
    """If the server does not answer at the start: go on, with everything kept in the sweep's folder until MLflow answers or
    ``cddpm registry sync`` brings it there; or end with an error."""
    experiment: Name = "cddpm"
    registered_model: Name = "cddpm"
    registered_trials: Positive = 3
    """The best so many trials of a sweep, by validation, become versions of the registered model."""
