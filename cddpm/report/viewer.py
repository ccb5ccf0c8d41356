"""Volumes to look through in a page: slices, overlays, and a threshold with the Dice that it has."""

from collections.abc import Sequence

from cddpm.config import ScoringConfig
from cddpm.report.document import Viewer
from cddpm.report.exhibit import Exhibit, packed
from cddpm.text.numbers import number


def viewer(exhibits: Sequence[Exhibit]) -> Viewer:
    """The viewer of one or more volumes."""
    return Viewer([packed(exhibit) for exhibit in exhibits])


def described(scoring: ScoringConfig) -> str:
    """What stands between residual and threshold, and what comes after it, in words."""
    eroded = "" if scoring.erosion_divisor is None else f", brain mask eroded (divisor {scoring.erosion_divisor})"
    median = "no median filter" if scoring.median_kernel == 1 else f"3D median filter of {scoring.median_kernel} voxels"
    before = f"The anomaly map is post-processed: residual {scoring.residual}{eroded}, {median}."
    if scoring.minimum_component_voxels <= 1:
        return f"{before} The kept segmentation has no component filter either."
    size = "holes filled" if scoring.component_size == "filled" else "holes not counted"
    return (
        f"{before} The kept segmentation is also without components of fewer than {number(scoring.minimum_component_voxels)} "
        f"voxels ({scoring.connectivity} neighbours, {size}); the live threshold works without that filter."
    )
