"""The scoring section: how cached reconstructions become an anomaly map, a threshold and a segmentation."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cddpm.config.sections import Frozen, Positive


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
