"""Reading and writing NIfTI: every odd file is a named error or a documented mend."""

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cddpm.data import volume
from cddpm.data.volume import Volume, VolumeFileError, read_image, read_mask, read_segmentation, write_volume
from cddpm.errors import StorageError, VolumeError

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (6, 7, 5)
VALUES = np.arange(210, dtype=np.float32).reshape(SHAPE)
MASK = (VALUES > 100).astype(np.uint8)


def fault_of(read: Callable[[Path], Volume], path: Path) -> VolumeFileError:
    """The fault of reading ``path``: it names the file, what was found and what to do."""
    with pytest.raises(VolumeFileError) as caught:
        read(path)
    error = caught.value
    assert str(error) == f"{path}: {error.found}; {error.allowed}"
    return error


def header_changed(path: Path, **fields: object) -> Path:
    """A float32 file whose header fields were overwritten."""
    image = nib.Nifti1Image(VALUES, AFFINE)
    raw = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(raw[348:]))
    return path


@pytest.mark.parametrize("name", ["plain.nii", "packed.nii.gz", "with a space.nii.gz", "Schädel_脳.nii.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / "new folder" / name, VALUES, AFFINE)
    found = read_image(tmp_path / "new folder" / name)
    np.testing.assert_array_equal(found.data, VALUES)
    np.testing.assert_array_equal(found.affine, AFFINE)
    assert found.data.dtype == np.float32
    assert found.voxel_size_mm == (1.0, 1.0, 1.0)
    assert found.notes == ()


def test_equal_data_equal_bytes(tmp_path: Path) -> None:
    write_volume(tmp_path / "one.nii.gz", VALUES, AFFINE)
    os.utime(tmp_path / "one.nii.gz", (1, 1))
    write_volume(tmp_path / "two.nii.gz", VALUES, AFFINE)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_given_header_is_kept_but_for_its_texts(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.header["descrip"] = b"scanner seven"
    image.set_qform(AFFINE, code=1)
    image.set_sform(AFFINE, code=4)
    image.to_filename(tmp_path / "scan.nii.gz")
    scan = read_image(tmp_path / "scan.nii.gz")
    write_volume(tmp_path / "map.nii.gz", MASK, scan.affine, header=scan.header)
    result = nib.load(tmp_path / "map.nii.gz")
    assert not bytes(result.header["descrip"]).strip(b"\0")
    assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (1, 4)
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(result.dataobj), MASK)


def test_bool_and_half_precision_become_types_that_nifti_has(tmp_path: Path) -> None:
    write_volume(tmp_path / "m.nii", MASK > 0, AFFINE)
    write_volume(tmp_path / "h.nii", VALUES.astype(np.float16), AFFINE)
    assert volume.describe(tmp_path / "m.nii").dtype == "uint8"
    assert volume.describe(tmp_path / "h.nii").dtype == "float32"


def test_unwritable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"x\.nii: no space left"):
        write_volume(tmp_path / "x.nii", VALUES, AFFINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "int64", "uint64", "float64", ">i2", ">f4", ">f8"])
def test_every_real_type_and_byte_order_reads_the_same(tmp_path: Path, dtype: str) -> None:
    order = ">" if dtype.startswith(">") else "<"
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    nib.Nifti1Image(VALUES.astype(dtype), AFFINE, header).to_filename(tmp_path / "x.nii.gz")
    found = read_image(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(found.data, VALUES)
    assert found.data.dtype == np.dtype("float32")


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.Nifti2Image(VALUES, AFFINE).to_filename(tmp_path / "x.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "x.nii").data, VALUES)


def test_slope_is_applied_and_slope_zero_is_one(tmp_path: Path) -> None:
    scaled = header_changed(tmp_path / "s.nii", scl_slope=2.0, scl_inter=3.0)
    np.testing.assert_array_equal(read_image(scaled).data, VALUES * 2 + 3)
    zero = header_changed(tmp_path / "z.nii", scl_slope=0.0, scl_inter=3.0)
    np.testing.assert_array_equal(read_image(zero).data, VALUES)


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    nib.Nifti1Image(VALUES[..., None, None], AFFINE).to_filename(tmp_path / "x.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "x.nii").data, VALUES)


def test_name_and_compression_may_disagree(tmp_path: Path) -> None:
    write_volume(tmp_path / "x.nii", VALUES, AFFINE)
    raw = (tmp_path / "x.nii").read_bytes()
    (tmp_path / "y.nii.gz").write_bytes(raw)
    (tmp_path / "z.nii").write_bytes(gzip.compress(raw))
    for name, said in (("y.nii.gz", "is not compressed"), ("z.nii", "is compressed")):
        found = read_image(tmp_path / name)
        np.testing.assert_array_equal(found.data, VALUES)
        assert said in found.notes[0]


@pytest.mark.parametrize("ending", [".nii", ".NII", ".Nii", ".nii.gz", ".NII.GZ", ".nii.GZ", ".Nii.Gz"])
def test_nothing_is_said_of_an_ending_in_letters_of_another_case(tmp_path: Path, ending: str) -> None:
    write_volume(tmp_path / "x.nii", VALUES, AFFINE)
    raw = (tmp_path / "x.nii").read_bytes()
    file = tmp_path / f"y{ending}"
    file.write_bytes(gzip.compress(raw) if ending.lower().endswith("gz") else raw)
    assert read_image(file).notes == ()


def test_values_of_a_mask_and_of_a_segmentation(tmp_path: Path) -> None:
    write_volume(tmp_path / "two.nii", MASK * 2, AFFINE)
    write_volume(tmp_path / "float.nii", MASK.astype(np.float64) * 255, AFFINE)
    for name in ("two.nii", "float.nii"):
        found = read_mask(tmp_path / name)
        np.testing.assert_array_equal(found.data, MASK)
        assert found.data.dtype == np.uint8
    labels = (VALUES % 5 * MASK).astype(np.int16)  # tumour parts 1, 2, 4
    write_volume(tmp_path / "labels.nii", labels, AFFINE)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "labels.nii").data, (labels > 0).astype(np.uint8))
    write_volume(tmp_path / "none.nii", MASK * 0, AFFINE)
    assert read_segmentation(tmp_path / "none.nii").data.sum() == 0


def broken_zero_bytes(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def broken_cut_gzip(path: Path) -> Path:
    write_volume(path, np.random.default_rng(0).normal(size=SHAPE), AFFINE)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def broken_flipped_gzip(path: Path) -> Path:
    write_volume(path, VALUES, AFFINE)
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 255  # the checksum
    path.write_bytes(bytes(raw))
    return path


def broken_cut_voxels(path: Path) -> Path:
    path = header_changed(path)
    path.write_bytes(path.read_bytes()[:-1])
    return path


def broken_gigantic(path: Path) -> Path:
    return header_changed(path, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])


def broken_magic(path: Path) -> Path:
    return header_changed(path, magic=b"abc")


def broken_pair(path: Path) -> Path:
    return header_changed(path, magic=b"ni1")


def broken_text(path: Path) -> Path:
    path.write_text("<html>404 not found</html>")
    return path


def broken_type_code(path: Path) -> Path:
    return header_changed(path, datatype=77)


def broken_complex(path: Path) -> Path:
    nib.Nifti1Image(VALUES.astype(np.complex64), AFFINE).to_filename(path)
    return path


def broken_rgb(path: Path) -> Path:
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colour, AFFINE).to_filename(path)
    return path


def broken_four_d(path: Path) -> Path:
    nib.Nifti1Image(np.zeros((*SHAPE, 3), np.float32), AFFINE).to_filename(path)
    return path


def broken_two_d(path: Path) -> Path:
    nib.Nifti1Image(VALUES[:, :, 0], AFFINE).to_filename(path)
    return path


def broken_single_slice(path: Path) -> Path:
    nib.Nifti1Image(VALUES[:, :, :1], AFFINE).to_filename(path)
    return path


def broken_all_zero(path: Path) -> Path:
    write_volume(path, VALUES * 0, AFFINE)
    return path


def broken_constant(path: Path) -> Path:
    write_volume(path, VALUES * 0 + 7, AFFINE)
    return path


def broken_singular(path: Path) -> Path:
    return header_changed(path, sform_code=1, srow_x=[1, 0, 0, 0], srow_y=[2, 0, 0, 0], srow_z=[0, 0, 1, 0])


def broken_zero_voxel(path: Path) -> Path:
    return header_changed(path, sform_code=1, srow_x=[0, 0, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0])


def broken_nan_affine(path: Path) -> Path:
    return header_changed(path, sform_code=1, srow_x=[np.nan, 0, 0, 0])


def broken_sheared(path: Path) -> Path:
    return header_changed(path, sform_code=1, srow_x=[1, 0, 0.5, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0])


def broken_loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def broken_dangling(path: Path) -> Path:
    path.symlink_to("gone.nii")
    return path


def broken_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "name", "code", "found"),
    [
        (broken_zero_bytes, "x.nii.gz", "empty-file", "0 bytes"),
        (broken_cut_gzip, "x.nii.gz", "truncated", "gzip stream cut or damaged"),
        (broken_flipped_gzip, "x.nii.gz", "truncated", "CRC check failed"),
        (broken_cut_voxels, "x.nii", "truncated", "1191 bytes, but its header announces 1192"),
        (broken_gigantic, "x.nii", "truncated", "its header announces 131072000000352"),
        (broken_magic, "x.nii", "not-nifti", "magic b'abc"),
        (broken_pair, "x.nii", "not-nifti", "magic b'ni1"),
        (broken_text, "x.nii", "not-nifti", "starts with 3c 68 74 6d"),
        (broken_type_code, "x.nii", "not-nifti", "damaged NIfTI header (data code 77"),
        (broken_complex, "x.nii.gz", "dtype", "complex64"),
        (broken_rgb, "x.nii", "dtype", "RGB"),
        (broken_four_d, "x.nii", "dimensions", "6x7x5x3 (4-D)"),
        (broken_two_d, "x.nii", "dimensions", "6x7 (2-D)"),
        (broken_single_slice, "x.nii", "dimensions", "6x7x1 (2-D beside axes of one voxel)"),
        (broken_all_zero, "x.nii", "all-zero", "all voxels are 0"),
        (broken_constant, "x.nii", "constant", "all voxels are 7"),
        (broken_singular, "x.nii", "affine", "singular affine"),
        (broken_zero_voxel, "x.nii", "affine", "singular affine"),
        (broken_nan_affine, "x.nii", "affine", "singular affine"),
        (broken_sheared, "x.nii", "affine", "sheared axes, 27 degrees off the right angle"),  # atan(0.5)
        (broken_loop, "x.nii", "symlink-loop", "leads back to itself"),
        (broken_dangling, "x.nii", "missing", "it is a link to gone.nii"),
        (broken_folder, "x.nii", "unreadable", "Is a directory"),
        (lambda path: path, "x.nii", "missing", "no such file"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, make: Callable[[Path], Path], name: str, code: str, found: str) -> None:
    error = fault_of(read_image, make(tmp_path / name))
    assert error.code == code
    assert found in error.found


def test_mask_faults(tmp_path: Path) -> None:
    write_volume(tmp_path / "empty.nii", MASK * 0, AFFINE)
    assert fault_of(read_mask, tmp_path / "empty.nii").code == "empty-mask"
    write_volume(tmp_path / "image.nii", VALUES, AFFINE)
    assert "is this the image?" in fault_of(read_mask, tmp_path / "image.nii").allowed
    write_volume(tmp_path / "negative.nii", -MASK.astype(np.int16), AFFINE)
    assert fault_of(read_mask, tmp_path / "negative.nii").code == "not-binary"


def test_segmentation_faults(tmp_path: Path) -> None:
    write_volume(tmp_path / "soft.nii", VALUES / 300, AFFINE)
    assert fault_of(read_segmentation, tmp_path / "soft.nii").code == "not-binary"
    write_volume(tmp_path / "negative.nii", -MASK.astype(np.int16), AFFINE)
    assert "values from -1 to 0" in fault_of(read_segmentation, tmp_path / "negative.nii").found


def test_oblique_axes_are_told_and_nearest_is_taken(tmp_path: Path) -> None:
    turn = np.radians(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    write_volume(tmp_path / "x.nii", VALUES, affine)
    found = read_image(tmp_path / "x.nii")
    assert found.notes == ("axes lie 20 degrees oblique to the scanner's; RAS is taken",)
    assert volume.axis_codes(found.affine) == "RAS"


def test_a_little_shear_is_told(tmp_path: Path) -> None:
    sheared = header_changed(
        tmp_path / "x.nii", sform_code=1, srow_x=[1, 0, 0.05, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0]
    )
    assert read_image(sheared).notes == ("axes are sheared by 2.9 degrees; they are taken as right angles",)
    assert volume.describe(sheared).orientation == "RAS"


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["int64", "uint8", ">i2"])
def test_a_result_under_the_header_of_any_scan_keeps_its_values(
    tmp_path: Path, kind: type, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(np.dtype(dtype))
    header.set_slope_inter(0.5, -3)
    kind(VALUES % 100, AFFINE, header).to_filename(tmp_path / "scan.nii")
    scan = read_image(tmp_path / "scan.nii")
    result = VALUES / 7
    caplog.clear()
    write_volume(tmp_path / "map.nii.gz", result, scan.affine, header=scan.header)
    found = read_image(tmp_path / "map.nii.gz")
    assert type(found.header) is type(scan.header)
    assert caplog.messages == []  # nibabel's own lines name no file
    np.testing.assert_array_equal(found.data, result)
    np.testing.assert_array_equal(found.affine, scan.affine)


def test_qform_against_sform_is_told_and_sform_is_used(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(np.diag([1.0, 1.0, 1.0, 1.0]), code=1)
    image.to_filename(tmp_path / "x.nii")
    found = read_image(tmp_path / "x.nii")
    np.testing.assert_array_equal(found.affine, AFFINE)
    assert "qform and sform place voxels up to 15.6 mm apart; sform is used" in found.notes  # 2 * hypot(5, 6)


def test_header_without_orientation_is_told(tmp_path: Path) -> None:
    path = header_changed(tmp_path / "x.nii", sform_code=0, qform_code=0)
    assert "neither qform nor sform" in read_image(path).notes[0]


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_describe_reads_the_header_only(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, np.zeros((40, 50, 60), np.int16), np.diag([-2.0, -1.0, 3.0, 1.0]))
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    found = volume.describe(tmp_path / name)
    assert (found.shape, found.voxel_size_mm, found.orientation, found.dtype) == (
        (40, 50, 60),
        (2, 1, 3),
        "LPS",
        "int16",
    )
    assert fault_of(volume.describe, broken_text(tmp_path / "t.nii")).code == "not-nifti"


def test_digest_knows_voxels_not_headers(tmp_path: Path) -> None:
    write_volume(tmp_path / "x.nii", VALUES, AFFINE)
    write_volume(tmp_path / "y.nii.gz", VALUES, np.eye(4), dtype=np.int16)
    write_volume(tmp_path / "z.nii", VALUES + 1, AFFINE)
    x, y, z = (volume.voxel_digest(read_image(tmp_path / n)) for n in ("x.nii", "y.nii.gz", "z.nii"))
    assert x == y != z


def test_fault_crosses_a_process_border(tmp_path: Path) -> None:
    error = fault_of(read_image, tmp_path / "gone.nii")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, VolumeError)
    assert (str(copy), copy.code, copy.exit_code) == (str(error), "missing", 3)


def test_corners_tell_how_far_grids_lie_apart() -> None:
    other = AFFINE.copy()
    other[:3, 3] = (0, 3, 4)
    assert volume.affine_distance_mm(AFFINE, other, SHAPE) == 5
    wider = np.diag([-1.5, -1.0, 1.0, 1.0])
    assert volume.affine_distance_mm(AFFINE, wider, SHAPE) == 2.5  # half a millimetre over five voxels
