"""Steps that move scans in space, by their affines alone: a person's modalities onto the first one, all of them to a template."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cddpm.data.raw.bias import otsu
from cddpm.data.raw.head import Figures, Grid, Head
from cddpm.data.raw.registration import Kind, Match, Scene, displacement_mm, match, overlap
from cddpm.data.raw.resampling import Affine, moved, same_lattice
from cddpm.data.raw.template import template as template_of

KEPT_MM = 0.5
"""A modality that would move by less, in the mean over the head, stays as its header has it: published sets are aligned."""


def align(head: Head) -> tuple[Head, Figures]:
    """Each other modality rigidly on the first one. What lies on the voxels of such a modality alone moves with it."""
    name, *others = head.images
    reference = head.images[name]
    bright = Grid(otsu(reference.data), reference.affine) if others else reference
    figures: dict[str, float | int | str | bool | None] = {}
    for other in others:
        image = head.images[other]
        found = match(Scene(reference, head.mask), Scene(image), "rigid")
        away = displacement_mm(bright, found.motion)
        figures |= {f"align_{other}_mm": round(away, 3), f"align_{other}_similarity": round(found.similarity, 4)}
        figures[f"align_{other}_kept"] = away < KEPT_MM
        if away >= KEPT_MM:
            head = _moved_with(head, other, found.motion)
    return head, figures


def _moved_with(head: Head, modality: str, motion: Affine) -> Head:
    image, reference = head.images[modality], head.reference

    def follows(label: Grid | None) -> Grid | None:
        if label is None or same_lattice(label, reference) or not same_lattice(label, image):
            return label
        return moved(label, motion)

    images = {**head.images, modality: moved(image, motion)}
    return replace(head, images=images, mask=follows(head.mask), segmentation=follows(head.segmentation))


def register(head: Head, template: tuple[Path, Path | None], kind: Kind) -> tuple[Head, Figures]:
    """Everything moved to the template, as its first modality's brain (without a mask: head) lies on the template's."""
    target = template_of(*template)
    found = match(target, Scene(head.reference, head.mask), kind)
    images = {name: moved(image, found.motion) for name, image in head.images.items()}
    mask = None if head.mask is None else moved(head.mask, found.motion)
    segmentation = None if head.segmentation is None else moved(head.segmentation, found.motion)
    return Head(images, mask, segmentation), _registration_figures(target, head, found)


def _registration_figures(target: Scene, head: Head, found: Match) -> Figures:
    """How like the two are now, and what the motion is: outliers in any of these are failures."""
    linear = found.motion[:3, :3]
    left, scales, right = np.linalg.svd(linear)
    turn = left @ right
    angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    dice = None
    if target.brain is not None and head.mask is not None:
        dice = round(overlap(target.brain, head.mask, found.motion), 4)
    return {
        "registration_similarity": round(found.similarity, 4),
        "registration_brain_dice": dice,
        "registration_volume_ratio": round(float(np.linalg.det(linear)), 4),
        "registration_scale_min": round(float(scales.min()), 4),
        "registration_scale_max": round(float(scales.max()), 4),
        "registration_turn_degrees": round(angle, 2),
        "registration_shift_mm": round(_shift(head, found.motion), 2),
    }


def _shift(head: Head, motion: Affine) -> float:
    """How far the middle of the first modality moves."""
    middle = head.reference.affine @ np.array([*(np.array(head.reference.data.shape) - 1) / 2, 1.0])
    return float(np.linalg.norm((motion @ middle - middle)[:3]))
