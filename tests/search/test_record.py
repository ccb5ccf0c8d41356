"""A sweep's folder is read in whatever state it is, and found by name or path; every start of it is kept."""

import json
from pathlib import Path

import built_sweep
import pytest
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.campaign import LOCK
from cddpm.config import parse, to_dict
from cddpm.errors import SearchError
from cddpm.search import record, trial
from cddpm.training import checkpoint, stages


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Ten trials: 3 was stopped early, 7 failed, the others finished."""
    return built_sweep.drawn(tmp_path, trials=10, points=4)


def test_every_trial_in_its_state(sweep: Path) -> None:
    found = record.read(sweep)
    states = {t.number: t.state for t in found.trials}
    assert states == {**dict.fromkeys(range(10), "finished"), 3: "stopped early", 7: "failed"}
    assert (found.trials[3].objective, found.trials[3].note) == (
        None,
        f"preview {found.trials[3].preview:.3f} after 16 images",
    )
    assert found.trials[7].note == "train: the loss became nan <at once>"
    assert found.trials[7].params["training.learning_rate"] == 1e-3  # of its own configuration
    assert len(found.ended) == 10
    assert [t.objective for t in found.finished] == sorted((t.objective for t in found.finished), reverse=True)
    assert found.champion is found.finished[0]
    assert not found.complete
    assert [len(t.points) for t in found.trials[:4]] == [4, 4, 4, 0]


def test_settings_that_a_point_does_not_say_are_as_configured(sweep: Path) -> None:
    found = record.read(sweep)
    settings = found.settings(found.finished[0])
    assert set(settings) == {*built_sweep.TRAINING, *built_sweep.SCORING}
    path = sweep / "trials/0000/result.json"
    raw = json.loads(path.read_text())
    artifact.write_json(path, {**raw, "best": {**raw["best"], "params": {}}})
    assert record.read(sweep).settings(record.read(sweep).trials[0])["scoring.guidance_scale"] == 1.0


def test_unended_trials_run_while_the_sweep_is_held(sweep: Path) -> None:
    artifact.write_json(sweep / "trials/0010" / trial.CONFIG, to_dict(built_sweep.config(sweep)))
    assert record.read(sweep).trials[-1].state == "interrupted"
    with artifact.lock(sweep / LOCK):
        found = record.read(sweep)
        assert found.running
        assert found.trials[-1].state == "running"
    assert not record.read(sweep).running


def test_reading_does_not_take_the_lock_away(sweep: Path) -> None:
    with artifact.lock(sweep / LOCK):
        record.read(sweep)
        with pytest.raises(BlockingIOError), artifact.lock(sweep / LOCK, wait=False):
            pass


def test_without_an_origin_the_first_trial_tells_the_configuration(sweep: Path) -> None:
    before = record.read(sweep).config
    (sweep / record.ORIGIN).unlink()
    found = record.read(sweep)
    assert found.config == before
    assert found.origin is None
    assert found.history(found.trials[3]) == []


def test_nothing_recorded_yet(tmp_path: Path) -> None:
    folder = built_sweep.begin(built_sweep.config(tmp_path))
    assert record.read(folder).trials == []
    (folder / record.ORIGIN).unlink()
    with pytest.raises(SearchError, match="has not begun its first trial"):
        record.read(folder)


def test_histories_of_finished_trials_and_of_those_in_the_making(sweep: Path) -> None:
    found = record.read(sweep)
    first, stopped = found.trials[0], found.trials[3]
    name = stages.checkpoint_identity(found.trial_config(stopped), "tiny")[0]
    folder = found.artifacts / stages.CHECKPOINT
    checkpoint.append_history(folder / first.result.checkpoint / checkpoint.HISTORY, {"images": 8.0, "val/loss": 0.5})
    checkpoint.append_history(folder / ".work" / name / checkpoint.HISTORY, {"images": 4.0, "val/loss": 0.7})
    assert found.history(first) == [{"images": 8.0, "val/loss": 0.5}]
    assert found.history(stopped) == [{"images": 4.0, "val/loss": 0.7}]
    assert found.history(first, stages.ENCODER) == []


@pytest.mark.parametrize(
    "name", ["trials/0002/result.json", "trials/0002/scoring_trials.json", "pareto.json", "test.json"]
)
def test_a_damaged_file_is_named(sweep: Path, name: str) -> None:
    (sweep / name).write_text("{")
    with pytest.raises(SearchError, match=name.replace(".", r"\.")):
        record.read(sweep)


def test_found_by_name_and_by_folder(sweep: Path, tmp_path: Path) -> None:
    assert record.find("drawn", tmp_path) == record.find(str(sweep), Path("elsewhere")) == sweep


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drwan", r"no sweep 'drwan'; did you mean 'drawn'\?"),
        ("quickstart", r"no sweep 'quickstart'; there are drawn$"),
        ("{tmp}/artifacts", r"artifacts: not the folder of a sweep"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(sweep: Path, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    with pytest.raises(SearchError, match=words):
        record.find(name.replace("{tmp}", str(tmp_path)), tmp_path)


def test_no_sweep_at_all(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="there is none; --output-dir names another folder"):
        record.find("drawn", tmp_path)


def test_no_start_was_entered(tmp_path: Path) -> None:
    assert record.read_origin(tmp_path) is None


def test_every_start_is_kept(tmp_path: Path) -> None:
    record.enter(tmp_path, tiny_config(), "store")
    record.enter(tmp_path, tiny_config(search__scoring__trials=7), "store")
    found = record.read_origin(tmp_path)
    assert found is not None
    assert parse(found.config, "test").search.scoring.trials == 7
    assert (found.store, len(found.starts)) == ("store", 2)
    assert found.starts[0].when <= found.starts[1].when
    assert "CPUs" in found.starts[0].machine
    assert {"cddpm", "torch", "optuna"} <= set(found.starts[0].versions)


def test_what_was_forced_is_kept(tmp_path: Path) -> None:
    record.enter(tmp_path, tiny_config(), "store")
    record.enter(tmp_path, tiny_config(), "other", ["data: was 'store', is 'other'"])
    found = record.read_origin(tmp_path)
    assert found is not None
    assert [start.forced for start in found.starts] == [(), ("data: was 'store', is 'other'",)]


def test_numbers_depend_on_packages_and_on_the_method() -> None:
    found = record.versions()
    assert {"version of torch", "version of method", "version of scoring", "version of cddpm"} <= set(found)


@pytest.mark.parametrize("text", ["", "[]", '{"config": {}}', '{"config": {}, "store": "s", "starts": [{"who": 1}]}'])
def test_a_damaged_origin_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / record.ORIGIN).write_text(text)
    with pytest.raises(SearchError, match=r"origin\.json: not the origin of a sweep"):
        record.read_origin(tmp_path)
