"""Machine, commit and versions are told without any guess."""

import re
from pathlib import Path

import pytest

from cddpm.tracking import provenance
from cddpm.tracking.provenance import Provenance, header, here, versions


def test_versions_are_those_of_installed_packages() -> None:
    assert versions(("torch", "no-such-package")).keys() == {"torch"}


def test_the_machine_is_told_by_its_processor_and_gpus() -> None:
    found = here("phantom", real=False)
    assert re.search(r", \d+ CPUs; ", found.machine)
    assert {"torch", "numpy"} <= found.versions.keys()


def test_outside_of_a_repository_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "x.py"))
    assert provenance.commit() == "unknown (not in a git repository)"


def test_changes_since_the_commit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *words: "abc" if words[0] == "rev-parse" else " M cddpm/x.py")
    assert provenance.commit() == "abc with uncommitted changes"
    monkeypatch.setattr(provenance, "_git", lambda *words: "abc" if words[0] == "rev-parse" else "")
    assert provenance.commit() == "abc"


def test_synthetic_data_are_announced_in_the_header() -> None:
    names = [name for name, _ in header(Provenance("phantom", False, "m", "c"), (0,))]
    assert names == ["Data", "Beware", "Folds", "Machine", "Commit", "Versions"]
    assert dict(header(Provenance("real", True, "m", "c"), ()))["Folds"] == "none"
    assert "Beware" not in dict(header(Provenance("real", True, "m", "c"), (0,)))
