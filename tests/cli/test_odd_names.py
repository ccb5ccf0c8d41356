"""Names that no terminal takes: they are printed escaped, and everything that reads results goes on with them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_package import Scan
from typer.testing import CliRunner, Result

from cddpm.cli import app
from cddpm.data.volume import write_volume
from cddpm.text import printable
from cddpm.tracking.package import Package

pytestmark = pytest.mark.slow
NAMES = (b"p\xe4tient $b_ 50% [bold]x", b"two\n\x1b[31mlines", "Schädel 脳".encode())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_names_in_any_bytes(quick_package: Package, scan: Scan, tmp_path: Path) -> None:
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    coarse = np.ascontiguousarray(scan.image.data[::2, ::2, ::2])
    for name in NAMES:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".nii.gz"))
        write_volume(path, coarse, scan.image.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    for name in (b"c\xfct.nii", b"m\xe4sk_mask.nii"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"no volume")
    done = run("predict", folder, "--out", out, "--model", quick_package.directory)
    assert done.exit_code == 1
    assert "1 of 4 scans failed; 1 file left out" in done.stderr, done.stderr
    assert r"error " + str(folder) + r"/c\xfct.nii: not a single-file NIfTI" in done.stderr
    assert r"left out " + str(folder) + r"/m\xe4sk_mask.nii: no scan by its name" in done.stderr
    for told in (r"p\xe4tient $b_ 50% [bold]x.nii.gz: ", r"two\x0a\x1b[31mlines.nii.gz: "):
        assert told in done.stdout
    results = sorted(out.rglob("result.json"))
    assert {os.fsencode(path.parent.name) for path in results} == set(NAMES)
    found = [json.loads(path.read_text(encoding="ascii")) for path in results]
    assert {one["volume_id"] for one in found} == {printable(os.fsdecode(name)) for name in NAMES}
    assert all(Path(one["scan"]).is_file() for one in found)
    shown = run("report", "--scan", out, "--output", tmp_path / "page.html")
    assert shown.exit_code == 0
    assert r"p\xe4tient" in (tmp_path / "page.html").read_text(encoding="utf-8")
    healthy = ("--healthy", folder, "--out", tmp_path / "calibration.json", "--fpr", 0.1)
    calibrated = run("registry", "calibrate", quick_package.directory, *healthy)
    assert calibrated.exit_code == 1  # the same scan again and again
    assert r"c\xfct.nii: not a single-file NIfTI" in calibrated.stderr
    assert json.loads((tmp_path / "calibration.json").read_text())["scans"]
