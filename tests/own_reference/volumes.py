"""Arrays of noise, scans, evaluation and augmentation, and split tables: inputs by seed, results by our functions."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import reference_settings
import torch
from reference_settings import Arrays, radial_power, turned

from cddpm.config import DataConfig, ScoringConfig
from cddpm.data.augment import along_axis, apply_bias, apply_gamma, blur_matrices, ghost_matrices
from cddpm.data.prepare import prepare
from cddpm.data.volume import read_image, read_mask, write_volume
from cddpm.models.noise import noise2, octave_field, permutation
from cddpm.published.scoring import (
    ReferenceVolume,
    healthy_reference_metrics,
    reference_anomaly_map,
    reference_metrics,
    reference_threshold,
    search_array,
)
from cddpm.scoring.metrics import confusion, dice, hausdorff_mm
from cddpm.scoring.operating_point import Optimum, area_under_roc, average_precision, histogram
from cddpm.scoring.postprocess import remove_small_components
from cddpm.scoring.residual import eroded_mask
from own_reference.sizes import Shape, Sizes

Table = dict[str, np.ndarray]
SCORING = ScoringConfig()
MASKED = 8
"""Components below this many voxels are taken away."""


# --- simplex noise ----------------------------------------------------------------------------------------------------


def simplex_inputs(sizes: Sizes) -> Table:
    seed = sizes.seed + 2
    return {
        "seeds": np.array(sizes.noise_seeds),
        "shape": np.array((sizes.noise_side,) * 2),
        "octaves": np.array(sizes.octaves),
        "persistence": np.array(sizes.persistence),
        "frequency": np.array(sizes.frequency),
        "noise2_x": np.linspace(-3.1, 8.7, 23 + sizes.single_octaves),
        "noise2_y": np.linspace(-5.3, 4.9, 31),
        "stat_seeds": np.arange(1, sizes.statistics_seeds + 1),
        "gen_noise_npseed": np.array(seed),
        "gen_noise_drawn_seeds": np.random.RandomState(seed).randint(-(10**10), 10**10, 2),
    }


def simplex_results(arrays: Arrays, single: int, batch: int) -> Table:
    """``single``: seeds with one octave; ``batch``: of ``gen_noise``."""
    result: Table = {}
    for i, seed in enumerate(arrays["seeds"].tolist()):
        result |= {f"perm_{i}": permutation(seed).astype(np.int64), f"octaves_{i}": field(arrays, seed)}
        if i < single:
            x, y = arrays["noise2_x"][None, :], arrays["noise2_y"][:, None]
            result[f"noise2_{i}"] = noise2(x, y, permutation(seed))
    fields = np.stack([field(arrays, seed) for seed in arrays["stat_seeds"].tolist()])
    flat, power = fields.reshape(len(fields), -1), radial_power(fields, fields.shape[1] // 2 + 1)
    result["stat_mean_std_min_max"] = np.stack([flat.mean(1), flat.std(1), flat.min(1), flat.max(1)], axis=1)
    result |= {"radial_power_mean": power.mean(0), "radial_power_std": power.std(0)}
    drawn = field(arrays, int(arrays["gen_noise_drawn_seeds"][1])).astype(np.float32).astype(np.float16)
    return result | {"gen_noise_f16": np.stack([drawn[None]] * batch)}


def field(arrays: Arrays, seed: int) -> np.ndarray:
    """The plain sum of octaves (H, W), float64."""
    config, shape = reference_settings.noise_config(arrays), reference_settings.noise_shape(arrays)
    return octave_field(seed, shape, config.octaves, config.persistence, config.frequency)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluation_inputs(sizes: Sizes) -> Table:
    result = {f"a_{name}": a for name, a in _pair(sizes, "a", sizes.volume_a).items()}
    result |= {f"b_{name}": b for name, b in _pair(sizes, "b", sizes.volume_b).items()}
    result["erode_unit_mask"] = _erosion_case(sizes)
    result["cc_unit_in"] = _component_case()
    return result


def _pair(sizes: Sizes, name: str, shape: Shape) -> Table:
    """A brain with a bright lesion and a reconstruction without it; multiples of 1/4096."""
    random = sizes.random("evaluation", name)
    grid = np.indices(shape) / (np.array(shape) - 1).reshape(3, 1, 1, 1) - 0.5
    brain = (grid**2).sum(0) < 0.22
    lesion = brain & (((grid - np.array([0.08, -0.1, 0.06]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 0.03)
    bright = lesion & (grid[0] + 0.3 * grid[2] < 0.13)
    image = brain * (0.45 + 0.1 * grid[1] + 0.03 * random.standard_normal(shape)) + 0.27 * bright
    reconstruction = brain * (0.45 + 0.1 * grid[1] + 0.01 * random.standard_normal(shape))
    specks = random.random(shape) < 0.004  # outside of the brain too
    arrays = {"orig": image + 0.2 * specks, "reco": reconstruction}
    rounded = {key: (np.rint(np.clip(a, 0, 1) * 4096) / 4096).astype(np.float32) for key, a in arrays.items()}
    return rounded | {"mask": brain.astype(np.uint8), "seg": lesion.astype(np.uint8)}


def _erosion_case(sizes: Sizes) -> np.ndarray:
    """A mask that touches the border, with a small hole and an empty slice."""
    mask = np.zeros(sizes.erosion_unit, np.uint8)
    mask[: sizes.erosion_unit[0] * 3 // 4, 5:-9, :-1] = 1
    mask[10, 20, 0] = 0
    return mask


def _component_case() -> np.ndarray:
    """Runs of 6, 7 and 8 voxels, chains that touch by corners, and a box with a hole."""
    case = np.zeros((18, 17, 16), np.uint8)
    for row, length in ((1, 6), (4, 7), (7, 8)):
        case[1, row, 1 : 1 + length] = 1
    for start, length in ((1, 8), (10, 7)):
        steps = np.arange(length)
        case[5 + steps, start + steps % 2, 1 + steps] = 1
    case[4:7, 13:16, 12:15] = 1
    case[5, 14, 13] = 0
    case[16, 1, 1] = 1
    return case


def reference_volume(arrays: Arrays, which: str) -> ReferenceVolume:
    """Volume ``a`` or ``b``, turned to (S, H, W)."""
    return ReferenceVolume(*(turned(arrays[f"{which}_{name}"]) for name in ("orig", "reco", "mask", "seg")))


def unturned(array: np.ndarray) -> np.ndarray:
    """(S, H, W) back to (X, Y, Z)."""
    return np.ascontiguousarray(array.transpose(1, 2, 0))


def evaluation_results(arrays: Arrays) -> Table:
    volume = reference_volume(arrays, "a")
    eroded = eroded_mask(volume.mask, 25)
    median5 = reference_anomaly_map(volume, SCORING)
    median3 = reference_anomaly_map(volume, ScoringConfig(median_kernel=3))
    truth = volume.segmentation > 0
    best = search_array(median5, truth)
    residual = np.abs(volume.image - volume.reconstruction)
    half = best.threshold / 2
    masks = {
        "a_thresholded": median5 > np.float32(best.threshold),
        "a_thresholded_half": median5 > np.float32(half),
        "a_raw_thresholded": residual > np.float32(half),
    }
    masks |= {name.replace("thresholded", "cc"): remove_small_components(mask, MASKED) for name, mask in masks.items()}
    result: Table = {name: unturned(mask.astype(np.uint8)) for name, mask in masks.items()}
    result |= {
        "a_erosion_iterations": np.array(arrays["a_mask"].shape[1] // 25),
        "a_eroded_mask": unturned(eroded.astype(np.uint8)),
        "a_eroded_diff_sum": np.array((residual * eroded).sum(dtype=np.float64)),
        "a_median5": unturned(median5),
        "a_median3_slice_mid": median3[len(median3) // 2],
        "cc_unit_out": remove_small_components(arrays["cc_unit_in"] > 0, MASKED).astype(np.uint8),
        "erode_unit_out": unturned(eroded_mask(turned(arrays["erode_unit_mask"]), 25).astype(np.uint8)),
    }
    return result | _evaluation_numbers(masks, median5, truth, best) | _degenerate()


def _evaluation_numbers(masks: dict[str, Any], scores: np.ndarray, truth: np.ndarray, best: Optimum) -> Table:
    counts, h = confusion(masks["a_cc"], truth), histogram(scores.astype(np.float16), truth)
    stored = (counts.true_negative, counts.false_negative, counts.false_positive, counts.true_positive)
    numbers: dict[str, Any] = {
        "a_dice": counts.dice,
        "a_dice_noCC": dice(masks["a_thresholded"], truth),
        "a_auc": area_under_roc(h),
        "a_auprc": average_precision(h),
        "a_tpr": counts.recall,
        "a_fpr_as_coded": counts.false_discovery_rate,
        "a_hausdorff": hausdorff_mm(masks["a_cc"], truth, (1, 1, 1)),
        "a_confusion_as_coded_TP_FP_TN_FN": stored,
    }
    for arithmetic in ("f32", "f64"):
        numbers |= {f"a_best_dice_{arithmetic}": best.dice, f"a_best_thresh_{arithmetic}": best.threshold}
    return {name: np.array(value) for name, value in numbers.items()}


def degenerate_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, scores and truth of searches that can find nothing."""
    values, nothing = np.linspace(0, 1, 1000, dtype=np.float32), np.zeros(1000, np.float32)
    yield "edge_best_empty_gt", values, np.zeros(1000, bool)
    yield "edge_best_zero_pred", nothing, values > 0.5
    yield "edge_best_zero_zero", nothing, np.zeros(1000, bool)


def _degenerate() -> Table:
    found = {name: search_array(scores, truth) for name, scores, truth in degenerate_cases()}
    searched = {name: np.array([best.dice, best.threshold]) for name, best in found.items()}
    return searched | {"edge_dice_empty_empty": np.array(np.nan)}


def evaluation_dictionaries(arrays: Arrays) -> dict[str, Any]:
    """The three published dictionaries and the threshold between them."""
    a, b = (reference_volume(arrays, which) for which in "ab")
    threshold = reference_threshold([a, b], SCORING)
    healthy = ReferenceVolume(b.image, b.reconstruction, b.mask, np.zeros_like(b.segmentation))
    return {
        "val_brats21_A_then_B": reference_metrics([a, b], SCORING),
        "val_threshold_total": threshold,
        "test_brats21_B": reference_metrics([b], SCORING, threshold),
        "test_has_threshold_after_end": False,
        "val_healthy_IXI_B_no_seg": healthy_reference_metrics([healthy], SCORING),
    }


# --- scans ------------------------------------------------------------------------------------------------------------


def write_scan(sizes: Sizes, which: int, folder: Path, name: str) -> None:
    """A textured ellipsoid of whole numbers and its mask, as NIfTI files."""
    shape = sizes.scans[which][0]
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = 0.9 * axes[0] ** 2 + axes[1] ** 2 + 1.2 * axes[2] ** 2 < 0.8
    noise = sizes.random("scan", name).normal(0, 25, shape)
    image = np.where(inside, np.rint(500 + 180 * axes[0] - 90 * axes[1] * axes[2] + noise), 0).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if which == 0 else np.diag([1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (90.0, 120.0, -60.0)
    write_volume(folder / f"{name}.nii.gz", image, affine)
    write_volume(folder / f"{name}_mask.nii.gz", inside.astype(np.uint8), affine)


def preprocessing_inputs(sizes: Sizes, which: int) -> Table:
    shape, crop, factor = sizes.scans[which]
    return {"imageDim": np.array(crop), "rescaleFactor": np.array(factor), "raw_shape": np.array(shape)}


def preprocessing_results(arrays: Arrays, folder: Path, name: str) -> Table:
    """On the published grid, whatever the sizes."""
    data = DataConfig(
        orientation="stored",
        voxel_size_mm=None,
        volume_shape=tuple(arrays["imageDim"].tolist()),
        rescale_factor=float(arrays["rescaleFactor"]),
        rescale_grid="published",
        centre="scan",
    )
    done = prepare(read_image(folder / f"{name}.nii.gz"), read_mask(folder / f"{name}_mask.nii.gz"), None, data)
    return {
        "percentiles_1_99_in_mask": np.array(done.intensities),
        "final_vol": done.image,
        "final_mask": done.mask,
    }


# --- augmentation -----------------------------------------------------------------------------------------------------


def augmentation_inputs(sizes: Sizes) -> Table:
    order = sizes.bias_order
    number, axis, intensity, restored = sizes.ghost
    random = sizes.random("augmentation")
    return {
        "x": (1.1 * sizes.uniform("augmented", shape=sizes.augmented) - 0.05).astype(np.float32),
        "gamma": np.array(0.81),
        "bias_order": np.array(order),
        "bias_coefs": random.uniform(-0.5, 0.5, (order + 1) * (order + 2) * (order + 3) // 6),
        "blur_std": random.uniform(0.3, 2.0, 3),
        "ghost_num": np.array(number),
        "ghost_axis": np.array(axis),
        "ghost_intensity": np.array(intensity),
        "ghost_restore": np.array(restored),
    }


def augmentations(arrays: Arrays, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The four changes of the arrays' volume, under the published names."""
    x = torch.from_numpy(arrays["x"]).to(dtype)[None]
    blurred = x
    for axis, std in enumerate(arrays["blur_std"]):
        blurred = along_axis(blurred, axis, blur_matrices(x.shape[axis + 1], np.array([std])))
    axis = int(arrays["ghost_axis"])
    number, intensity = np.array([int(arrays["ghost_num"])]), np.array([float(arrays["ghost_intensity"])])
    ghosts = ghost_matrices(x.shape[axis + 1], number, intensity, float(arrays["ghost_restore"]))
    return {
        "gamma_out": apply_gamma(x, torch.tensor([float(arrays["gamma"])], dtype=dtype))[0],
        "bias_out": apply_bias(x, arrays["bias_coefs"][None], int(arrays["bias_order"]))[0],
        "blur_out": blurred[0],
        "ghost_out": along_axis(x, axis, ghosts)[0],
    }


def augmentation_results(arrays: Arrays) -> Table:
    return {name: y.numpy().astype(np.float32) for name, y in augmentations(arrays, torch.float64).items()}


# --- split tables -----------------------------------------------------------------------------------------------------

PATHS = ("label", "img_path", "mask_path", "seg_path")
IXI = (
    *("", "img_name", "SEX_ID (1=m, 2=f)", "HEIGHT", "WEIGHT", "ETHNIC_ID", "MARITAL_ID", "OCCUPATION_ID"),
    *("QUALIFICATION_ID", "DATE_AVAILABLE", "STUDY_DATE", "age", *PATHS, "Agegroup"),
)
BRATS = (
    *("", "img_name", "Cohort Name (if publicly available)", "Site No (represents the originating institution)"),
    *("Local ID\xa0", "age", *PATHS),
)
MSLUB = ("", "img_name", "age", "sex", "ms_type", *PATHS, "Agegroup")
WMH = ("", "img_name", "label", "age", *PATHS[1:])
UNHEALTHY = {
    "splits/Brats21": (BRATS, "BraTS2021_{:05}", 100, 1151),
    "splits/MSLUB": (MSLUB, "patient{:02}", 10, 20),
    "splits_t1/ATLAS_v2": (WMH, "sub-r001s{:03}", 175, 480),
    "splits_t1/WMH": (WMH, "Utrecht_{}", 15, 45),
}
"""The numbers are the published scheme's."""


def write_tables(sizes: Sizes, folder: Path) -> None:
    """Made-up tables in the published form, with repeated rows and healthy subjects that are in two splits."""
    for path, (columns, name, validation, test) in UNHEALTHY.items():
        dataset = path.rpartition("/")[2]
        subjects = [name.format(number) for number in sizes.random(path).permutation(validation + test)]
        rows = [_row(dataset, subject) for subject in subjects]
        _write(folder / f"{path}_val.csv", columns, rows[:validation])
        _write(folder / f"{path}_test.csv", columns, rows[validation:])
    _write_healthy(sizes, folder / "splits")


def _write_healthy(sizes: Sizes, folder: Path) -> None:
    training, validation, test = sizes.healthy
    random = sizes.random("IXI")
    everyone = [
        f"IXI{n:03}-{random.choice(['Guys', 'HH', 'IOP'])}-{random.integers(200, 2700)}"
        for n in range(sum(sizes.healthy))
    ]
    held, rest = everyone[:test], everyone[test:]
    for fold in range(5):
        chosen = [rest[i] for i in random.permutation(training + validation)]
        train, val = chosen[:training], chosen[training:]
        train += [*random.choice(train, 2), *random.choice(held, 1 + fold % 3), *random.choice(val, fold % 2)]
        val += [*random.choice(held, fold // 3)]
        _write(folder / f"IXI_train_fold{fold}.csv", IXI, [_row("IXI", s) for s in train])
        _write(folder / f"IXI_val_fold{fold}.csv", IXI, [_row("IXI", s) for s in val])
    rows = [_row("IXI", s) for s in held]
    _write(folder / "IXI_test.csv", IXI, [*rows, rows[1] | {"age": "61.5"}])
    there = [s for s in everyone if s not in (held[0], rest[3])]
    (folder / "avail_t2.csv").write_text(",0\n" + "".join(f"{i},{s}_t2.nii.gz\n" for i, s in enumerate(there)))


def _row(dataset: str, subject: str) -> dict[str, str]:
    healthy = dataset == "IXI"
    home = "/Train/ixi" if healthy else f"/Test/{dataset}"
    return {
        "": "7",
        "img_name": f"{subject}_t1.nii.gz" if dataset in ("IXI", "WMH") else subject,
        "age": "38.9" if healthy else "",
        "label": "0" if healthy else "1",
        "img_path": f"{home}/t1/{subject}_t1.nii.gz",
        "mask_path": f"{home}/mask/{subject}_mask.nii.gz",
        "seg_path": "" if healthy else f"{home}/seg/{subject}_seg.nii.gz",
    }


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
