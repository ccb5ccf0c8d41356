"""From noise fields to segmentations: what surrounds the networks, on this machine and its device, against plain ways.

Letters: S slices of a volume, H and W their rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from cddpm.config import AugmentationConfig, ExperimentConfig, NoiseConfig
from cddpm.data.augment import augment
from cddpm.data.store import SliceStore
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.models.device import memory_format
from cddpm.models.diffusion import level_index
from cddpm.models.noise import noise, octave_field
from cddpm.reconstruct.part import Key
from cddpm.reconstruct.predict import Manner, Request, predict_volumes
from cddpm.scoring import operating_point
from cddpm.scoring.metrics import dice
from cddpm.scoring.postprocess import anomaly_map, median_filter, remove_small_components
from cddpm.scoring.residual import anomaly_scores, difference, eroded_mask
from cddpm.seeds import seed_of
from gpu_check import device as devices
from gpu_check import networks
from gpu_check.agreement import EXACT, FLOAT32_LIMIT, HALF, apart, doubled
from gpu_check.networks import Scale
from gpu_check.record import Record

Array = np.ndarray
LEVELS = (250, 750)
GUIDANCE = 1.5
MAP_LIMIT = 1e-3
"""Of anomaly maps: they are float16."""
DICE_LIMIT = 5e-3


@dataclass(frozen=True)
class Piece:
    """Some slices of the first unhealthy volume: all (S, H, W)."""

    image: Array
    mask: Array
    lesion: Array

    @classmethod
    def of(cls, store: SliceStore, dataset: str, slices: int) -> "Piece":
        """So many slices around the one with most lesion."""
        volume = store.cohort(dataset, "val")[0]
        middle = int(store.segmentation(volume).sum((1, 2)).argmax())
        start = min(max(0, middle - slices // 2), store.volumes[volume].slices - slices)
        arrays = (store.image(volume), store.mask(volume), store.segmentation(volume))
        return cls(*(array[start : start + slices] for array in arrays))


def noise_fields(edge: int, record: Record) -> None:
    """Simplex fields against the slow sum of octaves in float64."""
    config, seeds = NoiseConfig(), [seed_of(0, "check", i) for i in range(3)]
    found = noise(config, seeds, (edge, edge))[:, 0]
    fields = [octave_field(s, (edge, edge), config.octaves, config.persistence, config.frequency) for s in seeds]
    record.compare("noise fields", apart(found, torch.from_numpy(np.stack(fields))), FLOAT32_LIMIT)


def augmentation(scale: Scale, record: Record, device: torch.device) -> None:
    """Every change of every slice, on the device against float64 on the CPU."""
    always = {f"{name}_probability": 1.0 for name in ("gamma", "bias", "blur", "ghosting")}
    config, slices = AugmentationConfig(enabled=True, **always), scale.slices()
    seeds = torch.tensor([seed_of(0, "augmentation", i) for i in range(len(slices))])
    found = augment(slices.to(device), seeds, config, 2.0)
    record.compare("augmentation", apart(found, augment(slices.double(), seeds, config, 2.0)), FLOAT32_LIMIT)


def reconstruction(scale: Scale, piece: Piece, record: Record, device: torch.device) -> None:
    """Both branches against float64, the same bits whatever is predicted beside, and what scoring makes of them."""
    config = scale.config(**{"diffusion.condition_dropout": 0.3, "diffusion.noise.shared": False})
    model = networks.model(config).eval()
    expected = plainly(model, config, piece.image)
    there = model.to(device).to(memory_format=memory_format(device))  # type: ignore[call-overload]
    for way, precision in ((EXACT, "float32"), (HALF, "bfloat16")):
        manner = Manner(config.diffusion.noise, config.seed, len(piece.image) + 1, precision, device)  # type: ignore[arg-type]
        with devices.tf32(way.tf32):  # the rest of the way is the manner's
            ((_, alone),) = predict_volumes(there, [asked(piece.image)], manner)
            for branch in ("c", "u"):
                error = apart(_joined(alone, branch), _joined(expected, branch))
                record.compare(f"reconstruction {branch}, {way.name}", error, way.limit)
            if way is EXACT or not scale.tiny:
                _, (_, beside) = predict_volumes(there, [asked(piece.image[::-1], "other"), asked(piece.image)], manner)
                record.compare(f"reconstruction beside others, {way.name}", _largest_difference(alone, beside), 0.0)
        if way is EXACT:
            scored(alone, expected, piece, record)


def asked(image: Array, key: str = "check") -> Request:
    """A volume at all levels."""
    return Request(key, image, tuple((level, 0) for level in LEVELS))


def plainly(model: ConditionedDiffusion, config: ExperimentConfig, image: Array) -> dict[Key, Array]:
    """Both branches in float64 on the CPU, level by level."""
    network, slices = doubled(model).eval(), torch.from_numpy(image.astype(np.float64)).unsqueeze(1)
    assert isinstance(network, ConditionedDiffusion)
    found = {}
    with torch.inference_mode():
        conditions = {"c": network.condition(slices), "u": network.null(len(slices))}
        for level in LEVELS:
            seeds = [seed_of(config.seed, "check", s, level, 0) for s in range(len(slices))]
            fields = noise(config.diffusion.noise, seeds, image.shape[1:]).double()
            t = torch.full((len(slices),), level_index(level))
            for branch, condition in conditions.items():
                x0 = network.predict_x0(slices, t, fields, condition)
                found[branch, level, 0] = x0[:, 0].numpy()
    return found


def scored(found: dict[Key, Array], expected: dict[Key, Array], piece: Piece, record: Record) -> None:
    """Anomaly maps and the best Dice of the device's reconstructions against those of float64."""
    maps = [_map(arrays, piece) for arrays in (found, expected)]
    record.compare("anomaly map", apart(*(torch.from_numpy(m.astype(np.float64)) for m in maps)), MAP_LIMIT)
    best = [operating_point.best_dice([[operating_point.histogram(m, piece.lesion > 0)]]).dice for m in maps]
    record.compare("best Dice", abs(best[0] - best[1]), DICE_LIMIT)


def _map(arrays: dict[Key, Array], piece: Piece) -> Array:
    guided = [arrays["u", t, 0] + GUIDANCE * (arrays["c", t, 0] - arrays["u", t, 0]) for t in LEVELS]
    residual = anomaly_scores(difference(piece.image, np.mean(guided, axis=0).astype(np.float32), "l1"))
    return anomaly_map(residual, eroded_mask(piece.mask, None), 3)


def post_processing(piece: Piece, record: Record) -> None:
    """Median, components and operating point, compiled on this machine, against the plain ways."""
    random = np.random.default_rng(0)
    scores = np.where(piece.mask > 0, piece.image + 0.1 * random.random(piece.image.shape), 0).astype(np.float16)
    plain = ndimage.median_filter(scores.astype(np.float32), 3, mode="reflect")
    filtered = median_filter(scores, 3)
    record.compare("median", float(np.abs(filtered - plain).max()), 0.0)
    above = scores > np.quantile(scores, 0.95)
    kept = remove_small_components(above, 8)
    record.compare("components", float((kept != _large_components(above, 8)).sum()), 0.0)
    truth = piece.lesion > 0
    exact = operating_point.best_dice([[operating_point.histogram(filtered, truth)]]).dice
    tried = max(dice(filtered > t, truth) or 0.0 for t in np.unique(filtered))
    record.compare("operating point", abs(exact - tried), 1e-12)


def _large_components(above: Array, smallest: int) -> Array:
    """Components of touching voxels, filled ones, of at least so many voxels: one after the other."""
    labels, count = ndimage.label(above, np.ones((3, 3, 3)))
    kept = np.zeros(above.shape, bool)
    for label in range(1, count + 1):
        component = labels == label
        if ndimage.binary_fill_holes(component, np.ones((3, 3, 3))).sum() >= smallest:
            kept |= component
    return kept


def _joined(arrays: dict[Key, Array], branch: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([arrays[branch, level, 0].astype(np.float64) for level in LEVELS]))


def _largest_difference(one: dict[Key, Array], other: dict[Key, Array]) -> float:
    differences: Sequence[float] = [float(np.abs(one[key] - other[key]).max()) for key in one]
    return max(differences)
