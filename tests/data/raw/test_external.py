"""Programs for brain extraction: called with files, believed only with a mask, and each failure is one sentence."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from cddpm.artifact import file_digest
from cddpm.data.raw import external
from cddpm.data.raw.head import Grid
from cddpm.errors import DataError

IMAGE = Grid(np.random.default_rng(0).uniform(0, 200, (9, 8, 7)).astype(np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))
READS = """#!{python}
import gzip, pathlib, sys
import numpy as np
words = sys.argv[1:]
if words == ["--version"]:
    {version}
named = dict(zip(words, words[1:]))
raw = bytearray(gzip.open(named["-i"]).read())
mask = (np.frombuffer(raw[352:], "<f4") > 100).astype("<f4")

def write(path):
    pathlib.Path(path).write_bytes(gzip.compress(bytes(raw[:352]) + mask.tobytes()))
"""
HD_BET = """assert named["-device"] == "cpu" and "--save_bet_mask" in words and "--no_bet_image" in words
write(named["-o"].replace(".nii.gz", "_bet.nii.gz"))
"""
SYNTHSTRIP = 'write(named["-m"])\n'
SHORTER = "raw[42] -= 1\nmask = mask[:448]\n"
"""One voxel less along the first axis."""
ENDS: dict[external.Kind, str] = {"hd-bet": HD_BET, "synthstrip": SYNTHSTRIP}


def fake(path: Path, end: str, version: str = 'print("Fake 1.7"); sys.exit()') -> Path:
    """A program at ``path`` that thresholds the file it is given, then does ``end``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(READS.format(python=sys.executable, version=version) + end)
    path.chmod(0o755)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hd-bet", "synthstrip"])
def test_a_program_on_path_is_found_and_its_mask_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: external.Kind
) -> None:
    path = fake(tmp_path / "bin of tools" / external.NAMES[kind][0], ENDS[kind])
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    found = external.on_path(kind)
    assert found == external.Program(kind, path, "Fake 1.7")
    mask = external.extract(found, IMAGE, "cpu")
    np.testing.assert_array_equal(mask.data, IMAGE.data > 100)
    assert mask.data.dtype == np.uint8
    np.testing.assert_array_equal(mask.affine, IMAGE.affine)


def test_a_program_without_a_version_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = fake(tmp_path / "hd-bet", HD_BET, "sys.exit('unrecognized arguments: --version')")
    assert external.program("hd-bet", path).version == f"sha256 {file_digest(path)[:16]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("sys.exit('no weights:\\n  offline')", "ended with code 1 and said: no weights: | offline"),
        ("pass\n", "left no mask brain_bet.nii.gz; is it HD-BET of version 2?"),
        (SHORTER + HD_BET, "its mask has 8x8x7 voxels, the scan 9x8x7"),
        ("mask *= 0\n" + HD_BET, "no voxel is inside the mask"),
    ],
)
def test_each_failure_is_one_sentence(tmp_path: Path, end: str, told: str) -> None:
    found = external.program("hd-bet", fake(tmp_path / "hd-bet", end))
    with pytest.raises(DataError) as error:
        external.extract(found, IMAGE, "cpu")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("no program")
    with pytest.raises(DataError, match="no file that can be run"):
        external.program("hd-bet", tmp_path / "notes.txt")
    (tmp_path / "broken").write_text("#!/nowhere/python\n")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(DataError, match="cannot be started"):
        external.extract(external.Program("synthstrip", tmp_path / "broken", ""), IMAGE, "cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert external.on_path("synthstrip") is None
    with pytest.raises(DataError, match=r"none of mri_synthstrip, .* is on PATH"):
        external.program("synthstrip", None)
    monkeypatch.setattr(external, "PATIENCE_SECONDS", 0.2)
    sleepy = tmp_path / "sleepy"
    sleepy.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    sleepy.chmod(0o755)
    with pytest.raises(DataError, match="not done after"):
        external.extract(external.Program("hd-bet", sleepy, ""), IMAGE, "cpu")
