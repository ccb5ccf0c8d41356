"""Fields of a patient are planted in headers, extensions, sidecars, DICOM tags and names: no output byte has them."""

import gzip
import json
import stat
from pathlib import Path

import nibabel as nib
import pytest
import yaml
from dicom_files import PATIENT, ROOT, write_series
from raw_trees import AFFINE, brain, head, lesion, save
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.data.volume import read_image, write_volume

HEADER = {"descrip": b"Zzdescrip 1961", "aux_file": b"Zzaux.txt", "intent_name": b"Zzintent", "db_name": b"Zzdbname"}
PERSONS = ("Mueller_Hans", "Zzvorname Zzname", "17.04.1961")
PLANTED = {
    *(part for value in PATIENT.values() for part in value.split("^")),
    *(value.decode() for value in HEADER.values()),
    *(
        "Zzname",
        "Zzvorname",
        "Zzbroken",
        "Zzseveral",
        "Zzincomplete",
        "Zzlesion",
        "Zzseries",
        "Mueller",
        "Hans",
        "17.04.1961",
        "Kinderklinik",
        ROOT,
        "Zzextension",
        "Zzsidecar",
    ),
}
pytestmark = pytest.mark.slow


def planted(path: Path, image: object, affine: object = AFFINE) -> None:
    """A NIfTI file with every text of its header set, an extension, and a sidecar."""
    save(path, image, affine, HEADER)  # type: ignore[arg-type]
    found = nib.load(path)
    found.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Zzextension Mueller_Hans"))
    nib.save(found, path)
    assert b"Zzextension" in gzip.decompress(path.read_bytes())
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"PatientName": "Zzsidecar"}))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sound persons, one of them as DICOM, and two whose files are broken."""
    root = tmp_path_factory.mktemp("scans") / "Kinderklinik"
    for person in PERSONS[:2]:
        folder = root / "in" / person
        planted(folder / "t1 17.04.1961.nii.gz", head(0, "t1"))
        planted(folder / "brain_Zzname.nii.gz", brain())
        planted(folder / "Zzlesion.nii.gz", lesion())
    folder = root / "in" / PERSONS[2]
    affine = write_series(folder / "t1 Zzseries", head(1, "t1"), spacing=(5.0, 5.0, 5.0))
    planted(folder / "brain_Zzname.nii.gz", brain(), affine)
    planted(folder / "Zzlesion.nii.gz", lesion(), affine)
    for person in ("Zzbroken", "Zzseveral"):
        folder = root / "in" / person
        planted(folder / "brain_Zzname.nii.gz", brain())
        planted(folder / "Zzlesion.nii.gz", lesion())
    (root / "in" / "Zzbroken" / "t1 Zz.nii.gz").write_bytes(b"Zzpatient is no NIfTI" * 40)
    for number in (3, 4):
        write_series(root / "in" / "Zzseveral" / "t1 all", head(1, "t1")[:5, :5, :5], number)
    (root / "in" / "Zzincomplete").mkdir()
    save(root / "in" / "Zzincomplete" / "t1 Zz.nii.gz", head(0, "t1"))
    return root


def run(raw: Path, out: Path, *more: str) -> Result:
    layout = raw.parent / "layout.yaml"
    one = {"images": {"t1": "in/{subject}/t1*"}, "mask": "in/{subject}/brain*.nii.gz"}
    layout.write_text(yaml.safe_dump({"datasets": {"Study": {**one, "segmentation": "in/{subject}/Zzlesion.nii.gz"}}}))
    steps = ("--steps", "reorient,extract,resample,strip", "--at-once", "1")
    config = raw.parent / "steps.yaml"
    config.write_text("voxel_size_mm: 5\n")
    words = ("data", "prepare", "custom", raw, out, "--layout", layout, "--config", config, *steps, *more)
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": None})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def leaks(text: str) -> list[str]:
    return sorted(word for word in PLANTED if word.lower() in text.lower())


def bytes_of(folder: Path) -> str:
    """Every byte and every name below ``folder``, as text."""
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        data += gzip.decompress(data) if path.suffix == ".gz" else b""
        found.append(str(path.relative_to(folder)) + data.decode("latin-1"))
    return "\n".join(found)


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_planted_field_is_in_any_output(
    raw: Path,
    tmp_path: Path,
    form: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    out = tmp_path / "DATA"
    preview = run(raw, out, "--dry-run", *form)
    assert not out.exists()
    done = run(raw, out, *form)
    assert done.exit_code == 1
    assert "not a single-file NIfTI" in done.output
    assert "2 series: 3 (5 files, t1 mprage sag)" in done.output
    assert len(list((out / "manifests" / "Study").iterdir())) == 3
    told = done.output + preview.output + "".join(capfd.readouterr()) + caplog.text
    assert not leaks(told), told
    assert not leaks(bytes_of(out))
    for path in (out / "Test" / "Study" / "t1").iterdir():
        header = nib.load(path).header
        assert not header.extensions
        assert not any(bytes(header[name]).strip(b"\0") for name in HEADER)


def test_the_names_lie_in_one_file_for_one_reader(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "DATA")
    file = tmp_path / "DATA.names.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"DATA", "DATA.names.json", ".DATA.prepare.lock"}
    known = json.loads(file.read_text())["names"]
    ids = {path.stem for path in (tmp_path / "DATA" / "manifests" / "Study").iterdir()}
    assert {known[one] for one in ids} == {f"Study/{person}" for person in PERSONS}
    again = run(raw, tmp_path / "DATA")
    assert "0 prepared, 3 were there already, 2 failed" in again.output
    other = run(raw, tmp_path / "OTHER", "--names", str(file))
    assert "3 prepared" in other.output
    assert ids == {path.stem for path in (tmp_path / "OTHER" / "manifests" / "Study").iterdir()}


def test_names_stay_where_they_are_allowed_and_headers_do_not(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "DATA", "--keep-names")
    assert (tmp_path / "DATA/Test/Study/t1/Mueller_Hans_t1.nii.gz").is_file()
    assert not (tmp_path / "DATA.names.json").exists()
    found = bytes_of(tmp_path / "DATA")
    assert not [
        word for word in ("Zzextension", "Zzdescrip", "Zzdbname", "MRN7788990011", "Zzhospital") if word in found
    ]


def test_results_of_a_prediction_keep_the_header_without_what_it_says_of_a_person(tmp_path: Path) -> None:
    planted(tmp_path / "scan.nii.gz", head(0, "t1"))
    scan = read_image(tmp_path / "scan.nii.gz")
    write_volume(tmp_path / "map.nii.gz", scan.data, scan.affine, header=scan.header)
    assert not leaks(gzip.decompress((tmp_path / "map.nii.gz").read_bytes()).decode("latin-1"))
    assert bytes(scan.header["descrip"]).startswith(b"Zzdescrip")  # the scan's own stays as it is
    kept, before = nib.load(tmp_path / "map.nii.gz").header, nib.load(tmp_path / "scan.nii.gz").header
    for name in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x"):
        assert (kept[name] == before[name]).all()
