"""Where a sweep comes from: every start is kept, the last configuration counts."""

from pathlib import Path

import pytest
from tiny_training import tiny_config

from cddpm.config import parse
from cddpm.errors import SearchError
from cddpm.search import origin


def test_nothing_was_entered(tmp_path: Path) -> None:
    assert origin.read(tmp_path) is None


def test_every_start_is_kept(tmp_path: Path) -> None:
    origin.enter(tmp_path, tiny_config(), "store")
    origin.enter(tmp_path, tiny_config(search__scoring__trials=7), "store")
    found = origin.read(tmp_path)
    assert found is not None
    assert parse(found.config, "test").search.scoring.trials == 7
    assert (found.store, len(found.starts)) == ("store", 2)
    assert found.starts[0].when <= found.starts[1].when
    assert "CPUs" in found.starts[0].machine
    assert {"cddpm", "torch", "optuna"} <= set(found.starts[0].versions)


def test_what_was_forced_is_kept(tmp_path: Path) -> None:
    origin.enter(tmp_path, tiny_config(), "store")
    origin.enter(tmp_path, tiny_config(), "other", ["data: was 'store', is 'other'"])
    found = origin.read(tmp_path)
    assert found is not None
    assert [start.forced for start in found.starts] == [(), ("data: was 'store', is 'other'",)]


def test_numbers_depend_on_packages_and_on_the_method() -> None:
    found = origin.versions()
    assert {"version of torch", "version of method", "version of scoring", "version of cddpm"} <= set(found)


@pytest.mark.parametrize("text", ["", "[]", '{"config": {}}', '{"config": {}, "store": "s", "starts": [{"who": 1}]}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / origin.ORIGIN).write_text(text)
    with pytest.raises(SearchError, match=r"origin\.json: not the origin of a sweep"):
        origin.read(tmp_path)
