"""A predicted scan in Chromium: the Dice that is shown is Python's, on the files that were written."""

from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.data.volume import read_map, read_segmentation
from cddpm.scoring import metrics

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", [pytest.param("patient", marks=pytest.mark.nightly), "turned"])
def test_the_live_dice_is_that_of_the_files(browser: Browser, predicted: Path, tmp_path: Path, name: str) -> None:
    folder, truth = predicted / "out" / name, predicted / f"{name}_seg.nii.gz"
    command = ["report", "--scan", str(folder), "--truth", str(truth), "--output", str(tmp_path / "page.html")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    anomaly = read_map(folder / "anomaly_map.nii.gz").data.astype(np.float64)
    lesion = read_segmentation(truth).data > 0
    browser.open((tmp_path / "page.html").as_uri())
    browser.wait(f"document.getElementById('viewer').dataset.ready === '{name}'")
    browser.run("document.getElementById('viewer-threshold').focus()")
    shown = set()
    for key in ("Home", "ArrowRight", "ArrowRight", "End", "ArrowLeft", "ArrowLeft"):
        browser.press(key)
        threshold, dice = browser.run(
            "[document.querySelector('output[for=viewer-threshold]'), document.getElementById('viewer-dice')].map("
            "(e) => Number(e.dataset.value))"
        )
        assert dice == metrics.dice(anomaly > threshold, lesion)
        shown.add(dice)
    assert len(shown) > 3
    kept = float(browser.run("document.getElementById('viewer-kept').dataset.value"))
    assert kept == metrics.dice(read_segmentation(folder / "segmentation.nii.gz").data > 0, lesion)
    assert "works without that filter" in browser.text()
    browser.picture(tmp_path / "scan.png")
    assert (browser.console, browser.requested) == ([], [])
