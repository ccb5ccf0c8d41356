"""Stages as runs, and trials linked to whoever made what they use; the records are given, MLflow is real."""

from pathlib import Path

import pytest
from mlflow.entities import Run
from registered import publish, run

from cddpm.errors import ArtifactError
from cddpm.tracking import connection, names
from cddpm.tracking.stage_runs import StageRuns
from cddpm.training import checkpoint
from cddpm.training.watch import StageRecord, keep_record, kept_records

pytestmark = pytest.mark.slow

SAMPLE = {"cpu_percent": 50.0, "memory_mb": 800.0, "memory_percent": 10.0, "process_mb": 100.0}


def _record(stage: str, fingerprint: str) -> StageRecord:
    samples = [{"time": 1_700_000_000.5 + second, **SAMPLE, "gpu_percent": 90.0 + second} for second in range(3)]
    return StageRecord(stage, fingerprint, 1_700_000_000.0, 3.0, 2, 6.0, "host1", "a processor", "a GPU", samples)


def _runs(output_dir: Path) -> dict[str, Run]:
    client = connection.connect(connection.default_uri(output_dir), create=False)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.data.tags[names.RUN]: run for run in found}


@pytest.fixture
def runs(output_dir: Path, tmp_path: Path) -> dict[str, Run]:
    """The first sweep makes an encoder and a checkpoint; a trial of the second one finds the encoder."""
    artifacts = output_dir / "artifacts"
    checkpoint.append_history(artifacts / "encoder" / "e1" / checkpoint.HISTORY, {"images": 64, "pretrain/loss": 0.5})
    keep_record(tmp_path / "first", _record("encoder", "e1"), 0)
    keep_record(tmp_path / "first", _record("checkpoint", "c1"), 0)
    keep_record(tmp_path / "second", _record("checkpoint", "c2"), 7)
    for sweep, trial, used in (
        ("first", 0, {"store": "s1", "encoder": "e1", "checkpoint": "c1"}),
        ("second", 7, {"store": "s1", "encoder": "e1", "checkpoint": "c2"}),
    ):
        stages = StageRuns(tmp_path / sweep, artifacts)
        made = stages.runs(sweep, sweep)
        tags = stages.shares(trial, used)
        own = {"campaign": sweep, "tags": tags, "made_of": used}
        publish(output_dir, run(sweep, campaign=sweep), *made, run(names.trial_key(sweep, trial), **own))
        assert stages.gpu_seconds(trial) == 6.0 * (2 if sweep == "first" else 1)
    return _runs(output_dir)


def test_stages_are_children_of_their_sweep(runs: dict[str, Run], output_dir: Path) -> None:
    assert set(runs) == {
        *("first", "first/0000", "first/encoder-e1", "first/checkpoint-c1"),
        *("second", "second/0007", "second/checkpoint-c2"),
    }
    encoder = runs["first/encoder-e1"]
    assert encoder.info.run_name == "encoder of 0000 e1"
    assert (encoder.info.start_time, encoder.info.end_time) == (1_700_000_000_000, 1_700_000_003_000)
    assert encoder.info.status == "FINISHED"
    tags = encoder.data.tags
    assert tags[names.PARENT] == runs["first"].info.run_id
    assert (tags[names.KIND], tags[names.STAGE], tags[names.FINGERPRINT]) == ("stage", "encoder", "e1")
    assert (tags[names.HOST], tags[names.GPUS], tags[names.TRIAL]) == ("host1", "a GPU", "0")
    assert encoder.data.metrics[names.SECONDS] == 3.0
    assert encoder.data.metrics[names.GPU_SECONDS] == 6.0
    assert encoder.data.metrics[names.PRETRAIN_LOSS] == 0.5
    client = connection.connect(connection.default_uri(output_dir), create=False)
    busy = client.get_metric_history(encoder.info.run_id, names.gpu_metric(0, "utilization_percentage"))
    assert [(point.step, point.value, point.timestamp) for point in busy] == [
        (second, 90.0 + second, 1_700_000_000_500 + 1000 * second) for second in range(3)
    ]
    assert encoder.data.metrics[names.CPU_USED] == 50.0


def test_a_trial_is_linked_to_who_made_what_it_uses(runs: dict[str, Run]) -> None:
    first, second = runs["first/0000"].data.tags, runs["second/0007"].data.tags
    assert (first[names.MADE], first[names.REUSED]) == ("encoder, checkpoint", "store")
    assert (second[names.MADE], second[names.REUSED]) == ("checkpoint", "store, encoder")
    encoder = runs["first/encoder-e1"].info
    assert second[f"{names.MADE_BY}.encoder"] == encoder.run_id
    assert second[f"{names.MADE_BY}.checkpoint"] == runs["second/checkpoint-c2"].info.run_id
    assert f"{names.MADE_BY}.store" not in second  # nobody in this lab book made it
    link = f"- encoder: [encoder of 0000 e1](#/experiments/{encoder.experiment_id}/runs/{encoder.run_id})"
    assert second[names.NOTE].count(link) == 1


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    keep_record(tmp_path, _record("encoder", "e1"), None)
    ((name, entry),) = kept_records(tmp_path)
    assert (name, entry.record, entry.trial) == ("encoder-e1", _record("encoder", "e1"), None)
    assert list(kept_records(tmp_path, frozenset({"encoder-e1"}))) == []
    (tmp_path / "stages" / "encoder-e1.json").write_text('{"trial": 1, "stage"')
    with pytest.raises(ArtifactError, match=r"encoder-e1\.json: not a record of a stage .* only what it cost is lost"):
        list(kept_records(tmp_path))
