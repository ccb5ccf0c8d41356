"""The sections of the configuration but ``data`` (``scans``): every setting with its meaning, unit and single default."""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

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


ScannerChange = Literal["darker", "brighter", "bias-field", "noise", "resolution"]


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
    scanner_changes: tuple[ScannerChange, ...] = ()
    """Simulated domain shift before preparation: test scans as another scanner would have made them are evaluated too."""
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
