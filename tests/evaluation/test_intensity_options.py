"""What harmonised intensities undo of a change of the scanner, on scans of the phantom; with networks, by night."""

from pathlib import Path

import pytest
from intensity_options import CHANGES, dice, experiment, moved, table

from cddpm.data.phantom.folder import make_phantom


@pytest.mark.nightly
@pytest.mark.slow
def test_landmarks_undo_a_curve_and_lines_do_not(ten_scans: Path, tmp_path: Path) -> None:
    options = ("percentiles", "landmarks", "z-score")
    found = {option: moved(experiment(option), ten_scans, tmp_path, ("darker", "noise")) for option in options}
    assert found["landmarks"]["darker"] < 0.5 * found["percentiles"]["darker"]
    assert found["landmarks"]["darker"] == min(found[option]["darker"] for option in options)
    assert min(found[option]["noise"] for option in options) > 0.05  # no map of intensities undoes it


@pytest.mark.nightly
def test_the_table_of_the_readme_can_be_made_again(tmp_path: Path) -> None:
    config = experiment("landmarks", **{"training.images": 1280})
    root = make_phantom(tmp_path / "phantom", config.data.phantom)
    found = dice(config, root, tmp_path / "artifacts")
    assert found.keys() == {"none", *CHANGES}
    assert min(found.values()) > 0.1  # a threshold at 0 finds less than 0.05
    assert table({"landmarks": [found]}).count("|") > 20
