"""Steps that look at or change voxels: reorientation, brain mask, bias field, the one interpolation, stripping, cropping."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cddpm.config.preparation import Extractor, PreparationConfig
from cddpm.data import geometry
from cddpm.data.raw import external
from cddpm.data.raw.bias import bias_field, otsu
from cddpm.data.raw.extraction import classical
from cddpm.data.raw.head import Figures, Grid, Head
from cddpm.data.raw.lesions import burdens, comparison, labels_at
from cddpm.data.raw.resampling import (
    Lattice,
    around,
    cubic,
    lattice_of,
    mask_at,
    reoriented,
    same_lattice,
    voxel_ml,
    voxel_sizes,
)
from cddpm.data.raw.template import template as template_of
from cddpm.errors import DataError

Files = tuple[Path, Path | None]


def reorient(head: Head, codes: str) -> tuple[Head, Figures]:
    """Axes turned to the nearest of ``codes``; no voxel moves in space."""
    images = {name: reoriented(image, codes) for name, image in head.images.items()}
    mask = None if head.mask is None else reoriented(head.mask, codes)
    segmentation = None if head.segmentation is None else reoriented(head.segmentation, codes)
    axes = head.reference.affine[:3, :3] / voxel_sizes(head.reference.affine)
    oblique = float(np.degrees(np.arccos(np.clip(np.abs(axes).max(0).min(), -1, 1))))
    return Head(images, mask, segmentation), {"oblique_degrees": round(oblique, 2)}


def extract(
    head: Head, extractor: Extractor, program: external.Program | None, device: external.Device, template: Files | None
) -> tuple[Head, Figures]:
    """A brain mask on the first modality's voxels. Raises ``DataError`` when there is none in the end."""
    image = head.reference
    figures: dict[str, float | int | str | bool | None] = {"extraction": extractor}
    if program is not None:
        mask = external.extract(program, image, device)
        figures["extraction_version"] = program.version
    elif extractor == "given":
        if head.mask is None:
            raise DataError("extractor given: this head has no brain mask; name its file, or choose another extractor")
        mask = mask_at(head.mask, lattice_of(image))
    else:
        mask, found = classical(image, None if template is None else template_of(*template))
        figures |= found
    if not mask.data.any():
        raise DataError(
            f"the brain mask (extractor {extractor}) holds no voxel of the scan; do both lie in the same place?"
        )
    figures["brain_ml"] = round(_ml(mask), 1)
    return replace(head, mask=mask), figures


def _ml(mask: Grid) -> float:
    return float(np.count_nonzero(mask.data)) * voxel_ml(mask.affine)


def correct_bias(head: Head, voxel_mm: float, iterations: Sequence[int]) -> tuple[Head, Figures]:
    """Each image divided by its bias field, found in the brain; without a mask, in what Otsu's threshold calls bright."""
    images, figures = {}, {}
    for name, image in head.images.items():
        inside = otsu(image.data) if head.mask is None else mask_at(head.mask, lattice_of(image)).data > 0
        if not inside.any():
            raise DataError(
                f"{name}: the brain mask lies beside this scan; is it of another session, or its header wrong?"
            )
        field = bias_field(image, inside, voxel_mm, iterations)
        images[name] = Grid(image.data / field, image.affine)
        low, high = (float(value) for value in np.percentile(field[inside], (1, 99)))
        figures[f"bias_{name}_ratio"] = round(high / low, 4)
    return replace(head, images=images), figures


def resample(head: Head, config: PreparationConfig, template: Files | None) -> tuple[Head, Figures]:
    """Everything at the final voxels, interpolated here and nowhere else; not at all where a grid is the final one already.

    Where ``crop`` is among the steps only what it will keep is made.
    """
    through = None if template is None else template_of(*template).image.affine[:3, 3]
    lattice = around(head.reference, config.orientation, config.voxel_size_mm, through)
    if head.mask is not None and "crop" in config.steps and not same_lattice(head.reference, lattice):
        lattice = _near(mask_at(head.mask, lattice), config)
    kept = [name for name, image in head.images.items() if same_lattice(image, lattice)]
    images = {name: image if name in kept else cubic(image, lattice) for name, image in head.images.items()}
    mask = None if head.mask is None else mask_at(head.mask, lattice)
    figures: Figures = {"interpolated": len(kept) < len(images)}
    segmentation = head.segmentation
    if segmentation is not None:
        new = labels_at(segmentation, lattice)
        figures = {**figures, **comparison(burdens(segmentation), burdens(new), "resampling", config.lesion_change)}
        segmentation = new
    return Head(images, mask, segmentation), figures


def strip(head: Head, most: float) -> tuple[Head, Figures]:
    """Images 0 outside of the brain. Lesions beyond the mask stay in the segmentation, and are told."""
    if head.mask is None:
        raise DataError("strip: there is no brain mask; let extract go before it, or leave strip out of the steps")
    images = {}
    for name, image in head.images.items():
        inside = mask_at(head.mask, lattice_of(image)).data > 0
        images[name] = Grid(np.where(inside, image.data, np.float32(0)), image.affine)
    figures: Figures = {}
    if head.segmentation is not None:
        inside = mask_at(head.mask, lattice_of(head.segmentation)).data > 0
        seen = replace(head.segmentation, data=np.where(inside, head.segmentation.data, 0))
        figures = comparison(burdens(head.segmentation), burdens(seen), "cutting it to the brain mask", most)
    return replace(head, images=images), figures


def crop(head: Head, config: PreparationConfig) -> tuple[Head, Figures]:
    """The box around the brain with its margin, or a fixed shape with that box in the middle; 0 beyond the field."""
    if head.mask is None:
        raise DataError(
            "crop: there is no brain mask to crop around; let extract go before it, or leave crop out of the steps"
        )
    for grid in (*head.images.values(), *([] if head.segmentation is None else [head.segmentation])):
        if not same_lattice(grid, head.mask):
            raise DataError("crop: images, mask and segmentation lie on different voxels; let resample go before it")
    start, shape = _box(head.mask, config)
    images = {name: _taken(image, start, shape) for name, image in head.images.items()}
    mask, segmentation = _taken(head.mask, start, shape), head.segmentation
    cut = 1 - np.count_nonzero(mask.data) / np.count_nonzero(head.mask.data)
    figures: Figures = {"brain_cut_fraction": round(float(cut), 4)}
    if segmentation is not None:
        new = _taken(segmentation, start, shape)
        figures = {**figures, **comparison(burdens(segmentation), burdens(new), "cropping", config.lesion_change)}
        segmentation = new
    return Head(images, mask, segmentation), figures


def _box(mask: Grid, config: PreparationConfig) -> tuple[geometry.Shape, geometry.Shape]:
    """(first voxel, shape) of what is kept."""
    planes = [np.flatnonzero(mask.data.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low, high = np.array([p[0] for p in planes]), np.array([p[-1] + 1 for p in planes])
    if config.crop_shape is None:
        margin = np.ceil(config.crop_margin_mm / voxel_sizes(mask.affine) - 1e-6).astype(int)
        low, shape = low - margin, high - low + 2 * margin
    else:
        shape = np.array(config.crop_shape)
        low = (low + high - shape) // 2
    (x, y, z), (i, j, k) = low.tolist(), shape.tolist()
    return (x, y, z), (i, j, k)


def _near(mask: Grid, config: PreparationConfig) -> Lattice:
    """The part of the lattice of ``mask`` that ``crop`` keeps; all of it where the mask is empty."""
    if not mask.data.any():
        return lattice_of(mask)
    start, shape = _box(mask, config)
    ends = [(max(0, s), min(n, s + k)) for s, k, n in zip(start, shape, mask.data.shape, strict=True)]
    shift = np.eye(4)
    shift[:3, 3] = [low for low, _ in ends]
    x, y, z = (high - low for low, high in ends)
    return Lattice((x, y, z), mask.affine @ shift)


def _taken(grid: Grid, start: geometry.Shape, shape: geometry.Shape) -> Grid:
    shift = np.eye(4)
    shift[:3, 3] = start
    return Grid(geometry.take(grid.data, start, shape), grid.affine @ shift)
