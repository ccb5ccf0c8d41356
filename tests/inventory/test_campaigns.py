"""Sweeps and evaluations: their state, what their results name and what they still need."""

import shutil
from pathlib import Path

import pytest
import torch
from shelf import Shelf
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.config import ExperimentConfig, ScoringConfig
from cddpm.errors import ArtifactError
from cddpm.inventory.entry import Referrer, referrers, running
from cddpm.tracking.package import Pipeline, write_package
from cddpm.training.stages import checkpoint_identity, encoder_identity, guide_config


def only(shelf: Shelf, *stores: str) -> Referrer:
    (found,) = referrers(shelf.output_dir, stores)
    return found


def test_results_name_what_they_used(shelf: Shelf) -> None:
    found = only(shelf, "s1")
    assert (found.label, found.state) == ("sweep quick", "finished")
    assert found.named == {"c1", "e1", "r1"}
    assert found.needed == set()
    assert found.tracking == {None}


def test_packages_name_what_they_were_made_from(shelf: Shelf) -> None:
    pipeline = Pipeline(
        scoring=ScoringConfig(),
        thresholds={"all": 0.1},
        fingerprints={"checkpoint": "c7", "guide": "c6", "store": "s1"},
    )
    path = shelf.output_dir / "sweeps" / "quick" / "packages" / "0000"
    write_package(path, {"weight": torch.ones(1)}, ExperimentConfig(name="demo"), pipeline)
    found = only(shelf)
    assert found.packaged == {"c7", "c6", "s1"}
    assert found.named == {"c1", "e1", "r1", "c7", "c6", "s1"}


def test_an_unfinished_trial_needs_what_it_would_find(shelf: Shelf) -> None:
    folder = shelf.campaign("sweeps", "quick", finished=False)
    (folder / "finished.json").unlink()
    config = tiny_config(
        tracking__uri="http://host:5000", diffusion__condition_dropout=0.0, reconstruction__guide="ddpm"
    )
    shelf.trial(folder, 1, config)
    found = only(shelf, "s1", "s2")
    guide = guide_config(config)
    assert guide is not None
    assert found.state == "unfinished"
    assert found.needed == {
        name(part, store)[0]
        for store in ("s1", "s2")
        for name, part in ((checkpoint_identity, config), (encoder_identity, config), (checkpoint_identity, guide))
    }
    assert found.tracking == {"http://host:5000"}


def test_an_evaluation_is_one_too(shelf: Shelf) -> None:
    shelf.campaign("evaluations", "table", [{"checkpoint": "c2", "encoder": None}])  # type: ignore[dict-item]
    labels = {found.label: found.named for found in referrers(shelf.output_dir, [])}
    assert labels == {"sweep quick": {"c1", "e1", "r1"}, "evaluation table": {"c2"}}


def test_a_held_folder_is_running(shelf: Shelf) -> None:
    lock = shelf.output_dir / "sweeps" / "quick" / ".lock"
    with artifact.lock(lock):
        assert only(shelf).state == "running"
        assert running(shelf.output_dir) == ["sweep quick"]
    assert only(shelf).state == "finished"
    assert running(shelf.output_dir) == []


@pytest.mark.parametrize(
    ("name", "text"), [("result.json", "{"), ("result.json", "[]"), ("config.json", '{"sedd": 1}')]
)
def test_what_cannot_be_read_is_not_guessed(shelf: Shelf, name: str, text: str) -> None:
    file = shelf.output_dir / "sweeps" / "quick" / "trials" / "0000" / name
    file.write_text(text)
    with pytest.raises(ArtifactError, match=name):
        only(shelf)


def test_no_campaigns(tmp_path: Path, shelf: Shelf) -> None:
    shutil.rmtree(shelf.output_dir / "sweeps")
    assert referrers(shelf.output_dir, ["s1"]) == []
    assert referrers(tmp_path / "nowhere", []) == []
