"""The sender with a scripted delivery: no MLflow here."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED

from cddpm.tracking.journal import Journal
from cddpm.tracking.sender import Sender


class Script:
    """Raises the given errors first (one per call), then takes everything."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[str] = []
        self.blocked = threading.Event()
        self.blocked.set()

    def deliver(self, entry: dict[str, Any]) -> None:
        self.blocked.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(entry["op"])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "a.jsonl")
    yield journal
    journal.close()


def _started(script: Script, journal: Journal, **options: bool) -> Sender:
    sender = Sender(script)  # type: ignore[arg-type]
    sender.add(journal, **options)
    sender.start()
    return sender


def _fill(journal: Journal, *ops: str) -> None:
    for op in ops:
        journal.append({"op": op, "run": "r"})


def test_all_in_order(journal: Journal) -> None:
    script = Script()
    _fill(journal, "one", "two")
    sender = _started(script, journal)
    _fill(journal, "three")
    assert sender.flush(5) == 0
    assert script.taken == ["one", "two", "three"]
    sender.stop(5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        MlflowException("API request failed: connection refused"),
        MlflowException("no", error_code=PERMISSION_DENIED),
        ConnectionResetError("gone"),
        RuntimeError("an object store's own kind of error"),
    ],
)
def test_a_passing_fault_loses_nothing(journal: Journal, fault: Exception) -> None:
    script = Script(fault, fault)
    _fill(journal, "one", "two")
    sender = _started(script, journal)
    assert sender.flush(5) == 0
    assert script.taken == ["one", "two"]
    assert sender.refused == 0
    sender.stop(5)


def test_a_refusal_is_kept_aside_and_does_not_block(
    journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(MlflowException("bad name", error_code=INVALID_PARAMETER_VALUE))
    _fill(journal, "one", "two")
    sender = _started(script, journal)
    assert sender.flush(5) == 0
    assert script.taken == ["two"]
    assert sender.refused == 1
    assert '"op": "one"' in (tmp_path / "a.refused").read_text()
    assert "MLflow refuses 'one' of run r: bad name" in caplog.text
    sender.stop(5)


def test_flush_gives_up_in_time_and_counts(journal: Journal) -> None:
    script = Script()
    script.blocked.clear()
    _fill(journal, "one", "two")
    sender = _started(script, journal)
    assert sender.flush(0.2) == 2
    script.blocked.set()
    assert sender.flush(5) == 0
    sender.stop(5)


def test_a_passing_journal_is_freed_when_empty_unless_kept(journal: Journal, tmp_path: Path) -> None:
    script = Script()
    _fill(journal, "one")
    other = Journal(tmp_path / "b.jsonl")
    _fill(other, "two")
    script.blocked.clear()
    sender = _started(script, journal, until_empty=True)
    sender.add(other, until_empty=True)
    assert sender.keep(other)
    script.blocked.set()
    assert sender.flush(5) == 0
    sender.stop(5)
    assert not sender.keep(journal)
    assert sender.keep(other)
    Journal(tmp_path / "a.jsonl").close()
    other.close()
