"""``cddpm data prepare``: from an official download to a folder that ``cddpm data check`` passes; faults by exit code."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import raw_trees
from readme_pages import ROOT, read
from typer.testing import CliRunner, Result

from cddpm import cluster
from cddpm.cli import app
from cddpm.data.split import SHOWN
from cddpm.errors import ConfigError, DataError

STEPS = ("--steps", "reorient,extract,resample,strip")
pytestmark = pytest.mark.slow


def run(*words: object) -> Result:
    done = CliRunner().invoke(app, ["data", *map(str, words)], env={"COLUMNS": None})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "steps.yaml"
    file.write_text("voxel_size_mm: 5\n")
    return file


def test_a_download_becomes_a_data_dir(tmp_path: Path, config: Path) -> None:
    raw, out = raw_trees.mslub(tmp_path / "raw", (1, 2, 3)), tmp_path / "DATA"
    (raw / "patient03" / "patient03_T2W.nii.gz").unlink()
    words = ("prepare", "MSLUB", raw, out, "--config", config, *STEPS, "--at-once", 1)
    preview = run(*words, "--dry-run")
    assert preview.exit_code == 0
    assert "MSLUB: 2 subjects (2 t1, 2 t2)" in preview.stdout
    assert "warning: patient03: patient03: no t2; left out" in preview.stdout
    assert not out.exists()
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "2 prepared, 0 were there already, 0 failed" in done.stdout
    again = json.loads(run(*words, "--json").stdout)
    assert (again["made"], again["there"], again["failed"]) == (0, 2, 0)
    assert [one["subject"] for one in again["found"]["MSLUB"]] == ["patient01", "patient02"]
    (out / "Test/MSLUB/t1/patient01_t1.nii.gz").unlink()
    (raw / "patient02" / "patient02_T1W.nii.gz").write_bytes(b"x" * 400)
    broken = run(*words)
    assert broken.exit_code == 1
    assert "1 prepared, 0 were there already, 1 failed" in broken.stdout
    assert "error: MSLUB/patient02: patient02/patient02_T1W.nii.gz: not a single-file NIfTI" in broken.stdout


def test_the_layout_of_the_readme_is_found(tmp_path: Path, config: Path) -> None:
    """The example in cddpm/data/README.md, with the files that it names."""
    page = read(ROOT / "cddpm" / "data" / "README.md")
    (content,) = (block for block in page.blocks("yaml") if "images:" in block)
    layout = tmp_path / "study.yaml"
    layout.write_text(content)
    for seed, code in enumerate(("P001", "P002")):
        home = tmp_path / "raw" / "patients" / code
        raw_trees.save(home / "FLAIR_ax.nii.gz", raw_trees.head(seed, "flair"))
        raw_trees.save(home / "T1.nii.gz", raw_trees.head(seed, "t1"))
        raw_trees.save(home / "brain.nii.gz", raw_trees.brain())
        raw_trees.save(home / "lesion.nii.gz", raw_trees.lesion())
    (tmp_path / "raw" / "patients.csv").write_text("code,years\nP001,61\nP002,47\n")
    out = tmp_path / "DATA"
    words = ("custom", tmp_path / "raw", out, "--layout", layout, "--config", config, *STEPS, "--at-once", 1)
    done = run("prepare", *words)
    assert done.exit_code == 0, done.output
    assert "Clinic: 2 subjects (2 flair, 2 t1)" in done.stdout
    assert "61" in "".join(path.read_text() for path in (out / "splits").iterdir())


def test_what_is_asked_for_wrongly_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    raw = raw_trees.wmh(tmp_path / "raw", {"Utrecht": (0,)})
    for words, kind, said in (
        (("WMH", raw, raw / "DATA"), DataError, r"DATA_DIR lies in RAW_DIR"),
        (("WMH", raw, tmp_path / "D", "--steps", "reorient,skull"), ConfigError, r"steps\.1: .*'skull'"),
        (("WMH", raw, tmp_path / "D", "--extractor", "fsl"), ConfigError, r"extractor: .*'fsl'"),
        (("WMH", raw, tmp_path / "D", "--series", "t1="), ConfigError, r"--series t1=: allowed is NUMBER"),
        (("WMH", raw, tmp_path / "D", "--template", tmp_path / "none.nii"), DataError, r"the template cannot be read"),
    ):
        with pytest.raises(kind, match=said):
            run("prepare", *words, "--at-once", 1)
        assert not (tmp_path / "D").exists()
    assert run("prepare", "WMH", tmp_path, tmp_path.with_name("else"), "--modality", "t1", "--dry-run").exit_code == 0
    assert run("prepare", "IXI", raw, tmp_path / "D", "--dry-run").exit_code == 1


def test_data_sets_that_went_through_other_steps_are_told(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "DATA"
    run(
        "prepare",
        "WMH",
        raw_trees.wmh(tmp_path / "w", {"Utrecht": (0,)}),
        out,
        "--config",
        config,
        *STEPS,
        "--at-once",
        1,
    )
    words = ("prepare", "MSLUB", raw_trees.mslub(tmp_path / "m", (1,)), out, "--config", config, "--at-once", 1)
    assert "other-steps" not in run(*words, *STEPS).stdout  # a mask that is given instead of found is no difference
    assert "WMH went through other steps" in run(*words, "--steps", "reorient,extract,bias,resample,strip").stdout


def test_who_lacks_the_mask_that_is_to_be_given_stops_nobody(tmp_path: Path, config: Path) -> None:
    raw = raw_trees.mslub(tmp_path / "raw", (1, 2))
    next((raw / "patient02").glob("*brainmask*")).unlink()
    words = ("--config", config, *STEPS, "--extractor", "given", "--at-once", 1)
    done = run("prepare", "MSLUB", raw, tmp_path / "DATA", *words)
    assert done.exit_code == 1
    assert "1 prepared, 0 were there already, 1 failed" in done.stdout
    assert "MSLUB/patient02: extractor given: this head has no brain mask" in done.stdout


def test_a_warning_of_many_subjects_is_one_line(tmp_path: Path, config: Path) -> None:
    raw = raw_trees.mslub(tmp_path / "raw", tuple(range(1, SHOWN + 3)))
    for path in raw.rglob("*_T1W.nii.gz"):
        path.write_bytes(gzip.decompress(path.read_bytes()))
    words = ("prepare", "MSLUB", raw, tmp_path / "DATA", "--config", config, *STEPS, "--at-once", 1)
    (line,) = (line for line in run(*words).stdout.splitlines() if "not compressed" in line)
    shown = ", ".join(f"MSLUB/patient{number:02d}" for number in range(1, SHOWN + 1))
    assert line.startswith(f"warning: {shown} and 2 more: t1: the name says .gz")
    warned = json.loads(run(*words, "--json").stdout)["warnings"]
    assert sum("not compressed" in " ".join(one) for one in warned.values()) == SHOWN + 2


def test_relative_files_of_settings_are_found_from_every_node(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks run in folders of their own: what they are told is absolute, and was looked for on every node."""
    monkeypatch.chdir(tmp_path)
    raw = raw_trees.mslub(tmp_path / "raw", (1,))
    raw_trees.save(tmp_path / "template.nii.gz", raw_trees.head(0, "t1"))
    raw_trees.save(tmp_path / "brain.nii.gz", raw_trees.brain())
    seen: dict[str, Path] = {}

    def spread(function: Callable[[Any], Any], items: list[Any], *_: object) -> Iterator[Any]:
        monkeypatch.chdir(tmp_path / "raw")
        yield from map(function, items)

    for name in ("check_answers", "connect", "kill"):
        monkeypatch.setattr(cluster, name, lambda *_: None)
    monkeypatch.setattr(cluster, "check_seen", lambda path, what: seen.update({what: path}))
    monkeypatch.setattr(cluster, "bounded_map", spread)
    config.write_text("voxel_size_mm: 5\nregistration: rigid\n")
    words = ("--config", config, "--template", "template.nii.gz", "--template-mask", "brain.nii.gz")
    done = run("prepare", "MSLUB", raw, "DATA", *words, "--steps", "reorient,extract,register,resample")
    assert done.exit_code == 0, done.output
    assert seen == {
        "RAW_DIR": raw,
        "DATA_DIR": tmp_path / "DATA",
        "template": tmp_path / "template.nii.gz",
        "template_mask": tmp_path / "brain.nii.gz",
    }
