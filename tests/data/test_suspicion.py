"""Whatever a prediction warns of, the check of training, validation and test scans warns of."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cddpm.config import DataConfig, PhantomConfig
from cddpm.data import geometry as grid
from cddpm.data.brain import suspicions
from cddpm.data.check import check
from cddpm.data.phantom.folder import make_phantom
from cddpm.data.volume import Volume, read_image, read_mask, read_segmentation, write_volume

pytestmark = pytest.mark.slow

SHAPE, VOXEL_MM = (36, 44, 36), 4.0
COHORTS = ["Controls train", "Controls val", "Controls test", "Tumours val", "Tumours test"]
AFFINE = np.diag([-VOXEL_MM, -VOXEL_MM, VOXEL_MM, 1.0])
Files = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Image, mask, segmentation and their affine."""


def brain(seed: int) -> Files:
    """A T2 brain of 1.4 l: bright near its surface, dark deep inside."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    radius = np.sqrt(sum((a / 0.85) ** 2 for a in axes))
    noise = np.random.default_rng(seed).uniform(-20, 20, SHAPE)
    image = np.where(radius < 1, 200 + 500 * radius**2 + noise, 0).astype(np.float32)
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[14:20, 16:22, 14:20] = 1
    return image, (radius < 1).astype(np.uint8), lesion, AFFINE


def skull(files: Files) -> Files:
    image, mask, *rest = files
    shell = ndimage.binary_dilation(mask, iterations=2) & (mask == 0)
    return np.where(shell, np.float32(np.median(image[mask > 0])), image), mask, *rest  # type: ignore[return-value]


def off_centre(files: Files) -> Files:
    moved, voxels = files[3].copy(), round(80 / files[3][2, 2])
    moved[:3, 3] -= voxels * moved[:3, 2]
    return *(np.pad(a, ((0, 0), (0, 0), (voxels, 0))) for a in files[:3]), moved  # type: ignore[return-value]


def t1(files: Files) -> Files:
    image, mask, *rest = files
    return np.where(mask > 0, image.max() + 1 - image, 0).astype(np.float32), mask, *rest  # type: ignore[return-value]


def scaled(factor: float) -> Callable[[Files], Files]:
    return lambda files: (*files[:3], files[3] @ np.diag([factor, factor, factor, 1]))


def oblique(files: Files) -> Files:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    return *files[:3], turn @ files[3]


def wide_mask(files: Files) -> Files:
    image, mask, *rest = files
    return image, ndimage.binary_dilation(mask, iterations=3).astype(np.uint8), *rest  # type: ignore[return-value]


def half_a_mask(files: Files) -> Files:
    image, mask, *rest = files
    return image, mask * (np.arange(mask.shape[1])[:, None] < mask.shape[1] // 2), *rest  # type: ignore[return-value]


QUIRKS: dict[str, tuple[Callable[[Files], Files], str]] = {
    "brain off the centre of the field": (off_centre, "outside of the model's field of view"),
    "a tenth of the spacing": (scaled(0.1), "the brain mask holds 1 ml"),
    "other voxels": (scaled(0.9), "were resampled to"),
    "skull on": (skull, "lie outside of the mask"),
    "T1 named T2": (t1, "unusual for T2"),
    "oblique": (oblique, "degrees oblique"),
    "a mask beyond the brain": (wide_mask, "the mask reaches beyond the brain; suspect it first"),
    "half a mask": (half_a_mask, "lie outside of the mask"),
}


def planted(folder: Path, cohort: str | None, change: Callable[[Files], Files]) -> tuple[DataConfig, Path]:
    """A table of one scan per cohort (two for training), the first of ``cohort`` changed; the settings and that scan."""
    lines, odd = ["dataset,subject,split,image,mask,segmentation"], folder / "none"
    for seed, name in enumerate([COHORTS[0], *COHORTS]):
        dataset, split = name.split()
        files = change(brain(seed)) if name == cohort and odd.name == "none" else brain(seed)
        places = [folder / f"{seed}_{kind}.nii" for kind in ("image", "mask", "seg")]
        odd = places[0] if name == cohort and odd.name == "none" else odd
        for place, array in zip(places, files[:3], strict=True):
            write_volume(place, array, files[3])
        lines.append(f"{dataset},s{seed},{split},{places[0]},{places[1]},{places[2] if dataset == 'Tumours' else ''}")
    (folder / "table.csv").write_text("\n".join(lines))
    size = {"voxel_size_mm": VOXEL_MM, "volume_shape": (36, 44, 36), "rescale_factor": 2}
    return DataConfig(healthy="Controls", unhealthy=("Tumours",), table=folder / "table.csv", **size), odd  # type: ignore[arg-type]


def test_nothing_is_said_of_sound_scans(tmp_path: Path) -> None:
    data, _ = planted(tmp_path, None, lambda files: files)
    assert check(data, tmp_path).findings == ()


PAIRS = [(quirk, cohort) for quirk in QUIRKS for cohort in COHORTS]
BY_DAY = {(quirk, COHORTS[number % len(COHORTS)]) for number, quirk in enumerate(QUIRKS)}


@pytest.mark.parametrize(
    ("quirk", "cohort"), [pair if pair in BY_DAY else pytest.param(*pair, marks=pytest.mark.nightly) for pair in PAIRS]
)
def test_the_check_tells_all_that_a_prediction_warns_of(tmp_path: Path, quirk: str, cohort: str) -> None:
    change, words = QUIRKS[quirk]
    data, odd = planted(tmp_path, cohort, change)
    if change is off_centre:  # which is none where the brain's centre is looked for
        data = data.model_copy(update={"centre": "scan"})
    image, mask = read_image(odd), read_mask(odd.with_name(odd.name.replace("image", "mask")))
    looked_for = mask.data > 0 if data.centre == "brain" else None
    warned = suspicions(image, mask, grid.plan(image, data, looked_for), data.modality)
    assert any(words in text for text in warned)
    report = check(data, tmp_path)
    told = {f.found for f in report.warnings if f.file in (str(odd), str(mask.path))}
    assert set(warned) <= told
    others = {f.file for f in report.findings} - {str(p) for p in tmp_path.glob(f"{odd.name[0]}_*")}
    assert not {file for file in others if not file.startswith(str(data.table))}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """One scan of each cohort (two for training) as the quickstart draws and reads them."""
    few = PhantomConfig(healthy_train=2, healthy_val=1, healthy_test=1, unhealthy_val=1, unhealthy_test=1)
    root = make_phantom(tmp_path_factory.mktemp("phantom") / "data", few, ("t2",), parallel=1)
    size = {"voxel_size_mm": 2.0, "volume_shape": (96, 96, 50), "rescale_factor": 2}
    return DataConfig(data_dir=root, unhealthy=("Brats21",), modality="t2", **size)  # type: ignore[arg-type]


def scans_of(root: Path) -> list[Path]:
    return sorted([*root.glob("Train/ixi/t2/*"), *root.glob("Test/Brats21/t2/*")])


@pytest.mark.nightly
def test_nothing_is_said_of_the_phantom(phantom: DataConfig) -> None:
    assert phantom.data_dir is not None
    root = Path(phantom.data_dir)
    assert len(scans_of(root)) == 6
    assert check(phantom, root).findings == ()


@pytest.mark.nightly
@pytest.mark.parametrize("quirk", QUIRKS)
def test_the_check_names_every_scan_of_the_phantom_with_a_quirk(
    phantom: DataConfig, quirk: str, tmp_path: Path
) -> None:
    assert phantom.data_dir is not None
    change, words = QUIRKS[quirk]
    root = Path(shutil.copytree(phantom.data_dir, tmp_path / "data"))
    odd = scans_of(root)[1:]  # the other one of training stays as it is
    for image in odd:
        places = [image.parents[1] / kind / image.name.replace("t2.", f"{kind}.") for kind in ("mask", "seg")]
        scan, mask = read_image(image), read_mask(places[0])
        lesion = read_segmentation(places[1]).data if places[1].exists() else mask.data * 0
        *arrays, affine = change((scan.data, mask.data, lesion, scan.affine))
        for place, array in zip([image, *places], arrays, strict=True):
            if place.exists():
                write_volume(place, array, affine)
    data = phantom.model_copy(update={"data_dir": root, "centre": "scan" if change is off_centre else "brain"})
    warned = [(f.file, *f.others) for f in check(data, root).warnings if words in f.found]
    named = {file for files in warned for file in files if Path(file).parent.name == "t2"}
    assert named == set(map(str, odd))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(2, 24) for _ in range(3))),
    sizes_mm=st.tuples(*(st.sampled_from([0.7, 1.0, 1.3, 2.5]) for _ in range(3))),
    kept=st.tuples(*(st.integers(1, 24) for _ in range(3))),
    orientation=st.sampled_from(["LPS", "RAS", "stored"]),
    rescale_grid=st.sampled_from(["centred", "published"]),
)
def test_the_field_of_view_is_where_results_come_back(
    shape: grid.Shape,
    sizes_mm: tuple[float, ...],
    kept: grid.Shape,
    orientation: Literal["LPS", "RAS", "stored"],
    rescale_grid: Literal["centred", "published"],
) -> None:
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], range(4)] = [-sizes_mm[0], sizes_mm[1], sizes_mm[2], 1]
    wanted = {"orientation": orientation, "rescale_grid": rescale_grid, "volume_shape": kept}
    way = grid.plan(Volume(np.zeros(shape), affine, Path("x.nii")), DataConfig(**wanted))  # type: ignore[arg-type]
    ones = np.ones(way.working_shape, np.uint8)
    np.testing.assert_array_equal(grid.field_of_view(way), grid.to_input_grid(ones, way, 0) > 0)


def test_there_is_one_list_and_a_prediction_asks_it() -> None:
    code = {file.name: file.read_text() for file in Path(grid.__file__).parents[1].rglob("*.py")}
    assert [name for name, text in code.items() if "= oddities(" in text] == ["brain.py"]
    assert {name for name, text in code.items() if "suspicions(" in text or "signs(" in text} == {
        "brain.py",
        "check.py",
        "predictor.py",
    }
