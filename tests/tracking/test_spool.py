"""A sweep's entries that MLflow never saw, delivered by hand afterwards: runs, points, files, the registered champion."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from cddpm.config import ExperimentConfig, ScoringConfig, TrackingConfig, to_dict
from cddpm.errors import TrackingError
from cddpm.tracking import connection, names
from cddpm.tracking.address import file_uri
from cddpm.tracking.catalogue_client import CatalogueClient
from cddpm.tracking.package import Pipeline, write_package
from cddpm.tracking.promotion import BEGUN
from cddpm.tracking.registry import Registry
from cddpm.tracking.runs import LabBook
from cddpm.tracking.spool import Waiting, deliver_spool, to_deliver, waiting
from cddpm.tracking.values import Promised

NOBODY = "http://127.0.0.1:9"


def _package(folder: Path, value: float = 1.0) -> Path:
    pipeline = Pipeline(scoring=ScoringConfig(), thresholds={"all": 0.1})
    write_package(folder, {"w": torch.full((3,), value)}, ExperimentConfig(name="demo"), pipeline)
    return folder


def _a_sweep_without_mlflow(output_dir: Path, tracking: TrackingConfig) -> int:
    """Returns how many entries wait."""
    book = LabBook.open(tracking, output_dir, output_dir / "spool")
    trial = book.trial(book.parent("demo", to_dict(ExperimentConfig(name="demo")), {}), 0, {"training.images": 9}, {})
    book.log_history(trial, [{"images": step, "train/loss": 1 / step} for step in range(1, 21)])
    (output_dir / "note.txt").write_text("hello")
    book.log_artifact(trial, output_dir / "note.txt")
    package = _package(output_dir / "package")
    book.register(trial, package, {"val/dice": 0.5}, {}, "cddpm", Promised("champion", "the best"))
    assert book.registered(trial, "cddpm") is None
    book.close(trial, "FINISHED")
    book.close("demo", "FINISHED")
    return book.end(timeout_seconds=0.1)


@pytest.fixture
def left(output_dir: Path) -> int:
    return _a_sweep_without_mlflow(output_dir, TrackingConfig(uri=NOBODY))


def _found(uri: str) -> tuple[MlflowClient, dict[str, str]]:
    client = connection.connect(uri, create=False)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, {run.data.tags[names.RUN]: run.info.run_id for run in runs}


def test_what_waits_is_told_without_touching_it(output_dir: Path, left: int) -> None:
    before = sorted(p.read_bytes() for p in (output_dir / "spool").iterdir() if p.is_file())
    (entry,) = waiting(output_dir / "spool")
    assert entry == Waiting("demo", left, NOBODY, "cddpm", output_dir / "spool" / "demo.jsonl")
    assert sorted(p.read_bytes() for p in (output_dir / "spool").iterdir() if p.is_file()) == before
    assert waiting(output_dir / "nowhere") == []
    assert to_deliver(left, output_dir).endswith(f"deliver them with `cddpm registry sync --output-dir {output_dir}`")


def test_a_server_that_is_still_away_is_said(output_dir: Path, left: int) -> None:
    done = deliver_spool(output_dir / "spool")
    assert (done.delivered, done.waiting, done.refused) == (0, left, 0)
    assert len(done.faults) == 1
    assert f"demo: {NOBODY}: the MLflow server does not answer" in done.faults[0]


@pytest.mark.slow
def test_all_is_delivered_elsewhere_and_only_once(output_dir: Path, left: int) -> None:
    uri, told = connection.default_uri(output_dir), []
    done = deliver_spool(output_dir / "spool", uri, told=lambda entry: told.append(entry.sweep))
    assert (done.delivered, done.waiting, done.refused, done.faults) == (left, 0, 0, ())
    assert told == ["demo"]
    assert deliver_spool(output_dir / "spool", uri).delivered == 0
    client, runs = _found(uri)
    assert set(runs) == {"demo", "demo/0000"}
    history = client.get_metric_history(runs["demo/0000"], names.TRAIN_LOSS)
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 21)]
    assert {file.path for file in client.list_artifacts(runs["demo/0000"])} == {"note.txt"}
    assert client.get_run(runs["demo"]).info.status == "FINISHED"
    champion = Registry.open(uri).find("champion")
    assert (champion.number, champion.trial_name, champion.metrics) == (1, "demo/0000", {"val/dice": 0.5})
    (entry,) = Registry.open(uri).promotions()
    assert (entry.alias, entry.version, entry.why) == ("champion", 1, "the best")


def test_what_was_begun_in_one_lab_book_is_not_torn_apart(output_dir: Path, left: int) -> None:
    (output_dir / "spool" / "demo.delivered").write_text("2\n")
    done = deliver_spool(output_dir / "spool", connection.default_uri(output_dir))
    assert (done.delivered, done.waiting) == (0, left - 2)
    assert f"a part of it lies in {NOBODY} already" in done.faults[0]


def test_a_journal_in_use_is_left_to_its_owner(output_dir: Path) -> None:
    with LabBook.open(TrackingConfig(), output_dir, output_dir / "spool") as book:
        book.parent("demo", {}, {})
        book._sender.stop(5)
        book.close("demo", "FINISHED")
        done = deliver_spool(output_dir / "spool")
    assert done.delivered == 0
    assert done.faults == () or "another process is writing this sweep's journal" in done.faults[0]


@pytest.mark.slow
def test_a_damaged_package_is_refused_and_the_rest_arrives(output_dir: Path, left: int) -> None:
    (output_dir / "package" / "config.json").write_text("{}")
    uri = connection.default_uri(output_dir)
    done = deliver_spool(output_dir / "spool", uri)
    assert (done.delivered, done.waiting, done.refused) == (left - 1, 0, 1)
    assert "config.json: altered or damaged" in done.faults[0]
    assert "config.json: altered or damaged" in (output_dir / "spool" / "demo.refused").read_text()
    client, runs = _found(uri)
    assert client.get_run(runs["demo"]).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["before", "between", "after"])
def test_a_promotion_that_was_cut_off_is_completed_once(
    output_dir: Path, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = TrackingConfig()
    with LabBook.open(tracking, output_dir, output_dir / "spool") as book:
        trial = book.trial(book.parent("demo", {}, {}), 0, {}, {})
        book.register(trial, _package(output_dir / "package"), {"val/dice": 0.5}, {}, "cddpm")
        assert book.flush(30) == 0
        assert book.registered(trial, "cddpm") == 1
    registry = Registry.open(connection.default_uri(output_dir))
    time_ms = 1_700_000_000_000
    if killed == "between":
        with monkeypatch.context() as patch:
            patch.setattr(CatalogueClient, "set_alias", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                registry.promote_once(1, "champion", "why", "me", "abc", time_ms)
        assert [entry.refused for entry in registry.promotions()] == [BEGUN]
    if killed == "after":
        registry.promote_once(1, "champion", "why", "me", "abc", time_ms)
    assert not registry.promote_once(1, "champion", "why", "me", "abc", time_ms).refused
    assert registry.find("champion").number == 1
    assert len(registry.promotions()) == 1


@pytest.mark.slow
def test_a_late_delivery_takes_no_alias_from_a_later_promotion(output_dir: Path) -> None:
    with LabBook.open(TrackingConfig(), output_dir, output_dir / "spool") as book:
        parent = book.parent("demo", {}, {})
        for number in range(2):
            trial = book.trial(parent, number, {}, {})
            book.register(trial, _package(output_dir / f"package{number}", number), {}, {}, "cddpm")
        assert book.flush(30) == 0
    registry = Registry.open(connection.default_uri(output_dir))
    registry.promote("demo/0001", "champion", "by hand")
    late = registry.promote_once(1, "champion", "why", "me", "abc", 1_700_000_000_000)
    assert late.refused == "version 2 was promoted since"
    assert registry.find("champion").trial_name == "demo/0001"


def test_a_journal_that_does_not_say_where_asks(output_dir: Path) -> None:
    (output_dir / "spool").mkdir()
    (output_dir / "spool" / "old.jsonl").write_text('{"n":1,"op":"close","run":"old","status":"FINISHED","time":1}\n')
    done = deliver_spool(output_dir / "spool")
    assert "does not say which lab book it was written for; name one (--tracking-uri)" in done.faults[0]


def test_a_damaged_journal_holds_no_other_up(output_dir: Path) -> None:
    spool = output_dir / "spool"
    spool.mkdir()
    (spool / "bad.jsonl").write_text("rubbish\n")
    entry = {"n": 1, "op": "open", "run": "good", "tags": {}, "params": {}, "time": 1}
    home = {"uri": file_uri(output_dir / "mlflow.db"), "experiment": "cddpm"}
    (spool / "good.jsonl").write_text(json.dumps({**entry, **home}) + "\n")
    done = deliver_spool(spool)
    assert (done.delivered, done.waiting) == (1, 0)
    assert len(done.faults) == 1
    assert "bad: " in done.faults[0]
    assert "line 1 is damaged" in done.faults[0]
    assert (spool / "bad.jsonl").read_text() == "rubbish\n"
    with pytest.raises(TrackingError, match="line 1 is damaged"):
        waiting(spool)
