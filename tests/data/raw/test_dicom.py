"""DICOM folders: the volume lies where its slices say, and what cannot be read as one volume is refused with a remedy."""

import locale
from pathlib import Path

import numpy as np
import pytest
from dicom_files import PATIENT, ROOT, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cddpm.data.raw.dicom import _tags, read_series, series_in
from cddpm.errors import VolumeError

DATA = np.random.default_rng(0).integers(0, 900, (7, 6, 5)).astype(np.float32)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 6).map(lambda x: round(x, 2))] * 3),
)
def test_every_direction_and_spacing_is_where_its_slices_say(
    tmp_path_factory: pytest.TempPathFactory, angles: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    folder = tmp_path_factory.mktemp("series")
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = write_series(folder, DATA, orientation=(*turn[:, 0], *turn[:, 1]), spacing=spacing)
    grid = read_series(folder)
    np.testing.assert_array_equal(grid.data, DATA)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-4)
    assert grid.data.dtype == np.float32


def test_reading_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    before = locale.setlocale(locale.LC_ALL)
    write_series(tmp_path, DATA)
    series_in(tmp_path)
    read_series(tmp_path)
    assert locale.setlocale(locale.LC_ALL) == before
    with pytest.raises(VolumeError):
        read_series(tmp_path, "99")
    assert locale.setlocale(locale.LC_ALL) == before


def test_of_several_series_one_is_asked_for_and_no_patient_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, DATA, 3, "t1 mprage Zzpatient sag")
    write_series(tmp_path, 2 * DATA, 12, "Zzpatient^Quentin ax FLAIR 19610417")
    with pytest.raises(VolumeError, match=r"2 series: 3 \(5 files, t1 mprage sag\); 12 \(5 files, ax FLAIR\)") as error:
        read_series(tmp_path)
    assert "--series" in str(error.value)
    assert not [value for value in PATIENT.values() if value.split("^")[0].lower() in str(error.value).lower()]
    np.testing.assert_array_equal(read_series(tmp_path, "12").data, 2 * DATA)
    uid = next(one.uid for one in series_in(tmp_path) if one.number == 3)
    np.testing.assert_array_equal(read_series(tmp_path, uid).data, DATA)
    with pytest.raises(VolumeError, match=r"no series 4; there are 3 .*; 12"):
        read_series(tmp_path, "4")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"skipped": (2,)}, r"slices lie 4\.00 to 8\.00 mm apart: some are missing"),
        ({"skipped": (1, 2, 3, 4)}, r"a single slice; a volume is needed"),
        ({"spacing": (2.0, 3.0, 0.0)}, r"several slices lie at one place"),
        ({"shift_mm": 1.5}, r"slices are shifted against each other .*dcm2niix"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    spacing = changes.get("spacing")
    if spacing == (2.0, 3.0, 0.0):  # two time points under one UID: positions are alike
        write_series(tmp_path, DATA)
        for file in sorted(tmp_path.iterdir()):
            (tmp_path / f"again_{file.name}").write_bytes(file.read_bytes())
    else:
        write_series(tmp_path, DATA, **changes)  # type: ignore[arg-type]
    with pytest.raises(VolumeError, match=said):
        read_series(tmp_path)


def test_enhanced_multi_frame_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_series(tmp_path, DATA)
    for file in tmp_path.iterdir():  # the class as the writer padded it, by that of Enhanced MR
        raw = file.read_bytes()
        plain, enhanced = b"1.2.840.10008.5.1.4.1.1.4\x00", b"1.2.840.10008.5.1.4.1.1.4.1\x00"
        head, tag, rest = raw.partition(b"\x08\x00\x16\x00")
        assert rest[4:].startswith(plain)
        file.write_bytes(head + tag + len(enhanced).to_bytes(4, "little") + enhanced + rest[4 + len(plain) :])
    with pytest.raises(VolumeError, match=r"enhanced multi-frame DICOM; convert it with dcm2niix"):
        read_series(tmp_path)


def test_a_number_is_the_whole_number_whatever_uids_begin_with(tmp_path: Path) -> None:
    """UIDs begin with ``1.2.``, so that of series 1 was any of them."""
    for number in (1, 2, 12):
        write_series(tmp_path, number * DATA, number)
    for number in (1, 2, 12):
        np.testing.assert_array_equal(read_series(tmp_path, str(number)).data, number * DATA)
    uids = [one.uid for one in series_in(tmp_path)]
    for number, uid in zip((1, 2, 12), uids, strict=True):
        np.testing.assert_array_equal(read_series(tmp_path, uid).data, number * DATA)
    with pytest.raises(VolumeError, match=r"3 series of this UID; there are 1 "):
        read_series(tmp_path, ROOT)


def test_a_part_of_a_uid_is_no_number(tmp_path: Path) -> None:
    write_series(tmp_path, DATA, 3)
    write_series(tmp_path, 2 * DATA, 4)
    with pytest.raises(VolumeError, match=r"no series 1; there are 3 .*; 4"):
        read_series(tmp_path, "1")


@pytest.mark.parametrize("kept_bytes", [0, 140, 600])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_unreadable_slice_is_told_wherever_it_lies(tmp_path: Path, kept_bytes: int, place: int) -> None:
    write_series(tmp_path, DATA)
    file = tmp_path / f"IM{place * 7919 % 1000:04d}_3.dcm"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(VolumeError, match=r": 1 file cannot be read; copy them again") as error:
        read_series(tmp_path)
    assert file.name not in str(error.value)


def test_an_error_names_the_folder_and_no_file_in_it(tmp_path: Path) -> None:
    """Slices of two sizes under one UID: ITK's own text has the name of one of them."""
    write_series(tmp_path, DATA, skipped=(4,))
    write_series(tmp_path, np.concatenate([DATA, DATA]), skipped=(0, 1, 2, 3))
    with pytest.raises(VolumeError, match=r"series 3 cannot be read; convert it with dcm2niix") as error:
        read_series(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    (tmp_path / "Zzpatient.dcm").write_bytes(b"none")
    with pytest.raises(VolumeError, match=r"a file cannot be read as DICOM") as error:
        _tags(str(tmp_path / "Zzpatient.dcm"))
    assert "Zzpatient" not in str(error.value)


@pytest.mark.parametrize(
    "kind",
    [
        "1.2.840.10008.1.3.10",
        "1.2.840.10008.5.1.4.1.1.88.22",
        "1.2.840.10008.5.1.4.1.1.11.1",
        "1.2.840.10008.5.1.4.1.1.4.2",
    ],
)
def test_lists_reports_and_states_of_display_do_no_harm(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path, DATA)
    value = kind.encode() + b"\0" * (len(kind) % 2)
    meta = b"\x02\x00\x02\x00UI" + len(value).to_bytes(2, "little") + value
    size = b"\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little")
    (tmp_path / "OTHER").write_bytes(b"\0" * 128 + b"DICM" + size + meta)
    (tmp_path / "notes.txt").write_text("seen")
    np.testing.assert_array_equal(read_series(tmp_path).data, DATA)


def test_a_folder_without_dicom_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Zzpatient.txt").write_text("notes")
    with pytest.raises(VolumeError, match=r"no DICOM series in this folder"):
        read_series(tmp_path)
    assert "Zzpatient" not in "".join(capfd.readouterr())
