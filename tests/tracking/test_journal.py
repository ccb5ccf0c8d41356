from pathlib import Path

import pytest

from cddpm.errors import TrackingError
from cddpm.tracking.journal import Journal


def _ops(journal: Journal) -> list[str]:
    return [entry["op"] for entry in journal.entries()]


def _reopened(path: Path, journal: Journal) -> Journal:
    journal.close()
    return Journal(path)


def test_entries_wait_in_order_until_delivered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    assert journal.first() is None
    for op in ("one", "two", "three"):
        journal.append({"op": op})
    journal.delivered()
    journal = _reopened(tmp_path / "a.jsonl", journal)
    first = journal.first()
    assert first is not None
    assert first["op"] == "two"
    assert len(journal) == 2
    assert _ops(journal) == ["one", "two", "three"]
    journal.close()


def test_a_cut_last_line_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.append({"op": "one"})
    journal.append({"op": "two"})
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        journal = _reopened(path, journal)
        assert _ops(journal) == ["one"]
        journal.append({"op": "three"})
        journal = _reopened(path, journal)
        assert _ops(journal) == ["one", "three"]
    journal.close()


def test_a_line_removed_by_hand_shifts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    for op in ("one", "two", "three"):
        journal.append({"op": op})
    journal.delivered()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    journal = _reopened(path, journal)
    assert [entry["op"] for entry in journal._pending] == ["two", "three"]
    journal.close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n":1,"op":"x"}\nrubbish\n{"n":3,"op":"y"}\n')
    with pytest.raises(TrackingError, match=r"a\.jsonl: line 2 is damaged"):
        Journal(path)
    path.write_text('{"n":1,"op":"x"}\n')
    Journal(path).close()  # the failed attempt holds no lock


def test_a_damaged_bookmark_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.delivered").write_text("many")
    with pytest.raises(TrackingError, match=r"a\.delivered: not a number"):
        Journal(tmp_path / "a.jsonl")


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    with pytest.raises(TrackingError, match="another process"):
        Journal(tmp_path / "a.jsonl")
    _reopened(tmp_path / "a.jsonl", journal).close()


def test_nothing_but_finite_json_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        journal.append({"op": "x", "value": float("nan")})
    assert len(journal) == 0
    assert _ops(journal) == []
    journal.close()
