"""What ``cddpm data prepare`` does to a scan on its way from the hospital's files to DATA_DIR."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cddpm.config.sections import Fraction, Frozen, Positive

StepName = Literal["reorient", "align", "extract", "bias", "register", "resample", "strip", "crop"]
Registration = Literal["affine", "rigid", "none"]
Extractor = Literal["auto", "given", "hd-bet", "synthstrip", "classical"]
Millimetres = Annotated[float, Field(gt=0)]


class PreparationConfig(Frozen):
    """The steps, in their order, and what each of them is told."""

    steps: tuple[StepName, ...] = ("reorient", "align", "extract", "bias", "register", "resample", "strip", "crop")
    """What is done, in this order; what is not named is left out. ``align`` brings a person's other modalities to the first,
    ``strip`` sets 0 outside of the brain. Only ``resample`` interpolates: all before it moves voxels in space by their affine
    alone."""
    orientation: Literal["LPS", "RAS"] = "LPS"
    """Directions of the array's axes after ``reorient`` and ``resample``."""
    voxel_size_mm: Millimetres = 1.0
    """Edge of the cubic voxels that ``resample`` makes."""
    template: Path | None = None
    """NIfTI file of the head or brain that ``register`` brings every head to: SRI24, MNI152. None is downloaded."""
    template_mask: Path | None = None
    """Its brain mask, on its grid; empty: all that is not 0, of a template without skull."""
    registration: Registration | None = None
    """``rigid`` keeps the size of a brain, ``affine`` (12 numbers) does not. Empty: affine with a template, none without."""
    extractor: Extractor = "auto"
    """Where the brain mask is from: the one ``given``; ``hd-bet`` (version 2) or ``synthstrip``, programs in an environment of
    their own; ``classical``, thresholds and morphology, with the template's mask where there is one. ``auto``: the first of
    these that is there."""
    extractor_program: Path | None = None
    """File of the program that ``extractor`` names; empty: looked for on PATH."""
    extractor_device: Literal["cpu", "cuda"] = "cpu"
    """Where that program computes."""
    bias_voxel_mm: Millimetres = 4.0
    """Voxels to which a scan is shrunk while N4 looks for the bias field; the field is applied to the scan itself."""
    bias_iterations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (20, 20, 20)
    """At most, for each level of N4; each level has half the spline spacing of the one before."""
    crop_margin_mm: Annotated[float, Field(ge=0)] = 10.0
    """Room around the brain's box after ``crop``; of no use with ``crop_shape``."""
    crop_shape: tuple[Positive, Positive, Positive] | None = None
    """Voxels along each axis after ``crop``, the brain's box in the middle; empty: the box and its margin."""
    lesion_change: Fraction = 0.05
    """A label whose volume changes by more than this, on the way through a step, is warned of."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.steps)) != len(self.steps):
            raise ValueError(f"steps: {', '.join(self.steps)}: a step is named twice")
        if self.template is None and self.template_mask is not None:
            raise ValueError("template_mask: there is no template that it could be the mask of; name both")
        if self.template is None and self.registration in ("affine", "rigid"):
            raise ValueError(f"registration: {self.registration} needs a template; name its file, or set none")
        if self.extractor_program is not None and self.extractor not in ("hd-bet", "synthstrip"):
            raise ValueError(
                f"extractor_program: '{self.extractor}' is no program; set extractor to hd-bet or synthstrip"
            )
        after = self.steps[self.steps.index("resample") + 1 :] if "resample" in self.steps else ()
        moved = [step for step in after if step in ("reorient", "align", "register")]
        if moved:
            raise ValueError(f"steps: {', '.join(moved)} after resample: scans would be moved without being resampled")
        return self

    @property
    def moves_to_template(self) -> Registration:
        """``registration``, or what it is where it is empty."""
        return self.registration or ("none" if self.template is None else "affine")
