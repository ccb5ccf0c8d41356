"""What a sweep gives to Ray Tune and hears from it; Tune itself is replaced."""

import io
import re
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from test_warm_start import config
from test_warm_start import sweep as earlier_sweep

from cddpm import artifact, cluster
from cddpm.config import ExperimentConfig
from cddpm.errors import SearchError
from cddpm.search import budget, leaderboard, record, sweep, tuning
from cddpm.search import trial as trials
from cddpm.search.budget import Failures
from cddpm.search.display import Display
from cddpm.text import Console
from cddpm.training import stages

STORE = "0123456789abcdef"


class Lab:
    """Hears the same as the display."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def started(self, number: int, params: dict[str, Any], store: str) -> None:
        self.heard.append(("started", number))

    def wake(self) -> None:
        self.heard.append(("reported", -1))

    def ended(self, number: int, how: str) -> None:
        self.heard.append((how, number))


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for Ray; notes what it was given, and tells of trials that fail."""
    given: dict[str, Any] = {}

    class Tuner:
        """Every trial fails, with the messages of ``given["faults"]``."""

        def __init__(self, trainable: Any, tune_config: Any, run_config: Any) -> None:
            self.search, (self.events,) = tune_config.search_alg, run_config.callbacks

        def fit(self) -> None:
            folder = self.search._folder
            given.update(config=self.search._config, study=self.search._study, spent=budget.read(folder))
            for number, message in enumerate(given.get("faults", ["lost"])):
                artifact.write_json(trials.folder_of(folder, number) / trials.FAILED, {"error": message})
                trial = SimpleNamespace(config={"number": number, "params": {}}, error_file=None)
                self.events.on_trial_start(1, [], trial)
                self.events.on_trial_error(1, [], trial)

    monkeypatch.setattr(tuning.tune, "Tuner", Tuner)
    monkeypatch.setattr(tuning.tune, "with_parameters", lambda trainable, **given: trainable)
    monkeypatch.setattr(tuning.tune, "with_resources", lambda trainable, resources: trainable)
    monkeypatch.setattr(cluster, "Board", lambda: SimpleNamespace(look=dict, told=list))
    monkeypatch.setattr(cluster, "capacity", lambda: {"CPU": 8.0})
    return given


def tune(wanted: ExperimentConfig, folder: Path) -> str:
    text = io.StringIO()
    place = stages.Place(folder.parent / "artifacts", folder.parent / "artifacts/store" / STORE)
    folder.mkdir(parents=True, exist_ok=True)
    tuning.run(wanted, folder, place, 2, Lab(), Display(Console(file=text, width=300)))
    return text.getvalue()


@pytest.mark.slow
def test_earlier_trials_and_their_scoring_settings_arrive(tuned: dict[str, Any], tmp_path: Path) -> None:
    earlier_sweep(tmp_path, [{}, {"training.learning_rate": 0.9}, {"training.learning_rate": 2e-3}])
    wanted = config(tmp_path)
    said = tune(wanted, sweep.folder_of(wanted))
    assert "trial old/0001 is left out: training.learning_rate 0.9 is not in this space" in said
    assert [t.user_attrs.get("earlier") for t in tuned["study"].trials] == [None, "old/0002", "old/0000"]
    assert tuned["config"].search.scoring.start == ({"scoring.residual": "l2", "scoring.minimum_component_voxels": 7},)
    assert tuned["config"].search.training == wanted.search.training


@pytest.mark.slow
def test_a_spent_budget_is_told(tuned: dict[str, Any], tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__maximum_seconds=100)
    folder = sweep.folder_of(wanted)
    artifact.write_json(folder / budget.FILE, {"seconds": 99.0, "cpu_hours": 1.0, "gpu_hours": 0.0})
    assert "are spent" not in tune(wanted, folder)
    assert tuned["spent"].seconds == 99.0
    artifact.write_json(folder / budget.FILE, {"seconds": 100.0, "cpu_hours": 1.0, "gpu_hours": 0.0})
    said = tune(wanted, folder)
    assert re.search(r"search\.maximum_seconds: 100(\.\d+)? of 100 are spent; no new training starts", said)


def events_of(folder: Path, failures: Failures) -> tuning.Events:
    """Heard by a lab book and a display that nobody looks at."""
    display, meter = Display(Console(file=io.StringIO())), budget.Meter(folder, {})
    return tuning.Events(folder, lambda params: STORE, Lab(), display, meter, failures)


def searcher(
    wanted: ExperimentConfig,
    folder: Path,
    failures: Failures | None = None,
    missing: int = 100,
    boxes: dict[str, list[Any]] | None = None,
) -> tuning.StudySearch:
    from cddpm.search import study

    folder.mkdir(parents=True, exist_ok=True)
    boxes = {} if boxes is None else boxes
    board = SimpleNamespace(leave=lambda box, item: boxes.setdefault(box, []).append(item))
    known = study.open_study(folder / "study.db", wanted)
    return tuning.StudySearch(known, wanted, folder, missing, board, failures or Failures(None))


@pytest.mark.slow
def test_no_trial_is_proposed_beyond_the_budget(tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__maximum_gpu_hours=2)
    search = searcher(wanted, tmp_path)
    first = search.suggest("a")
    assert isinstance(first, dict)
    assert first["number"] == 0
    artifact.write_json(tmp_path / budget.FILE, {"seconds": 1.0, "cpu_hours": 1.0, "gpu_hours": 2.0})
    assert search.suggest("b") == "FINISHED"


@pytest.mark.slow
def test_trials_learn_that_none_will_follow(tmp_path: Path) -> None:
    boxes: dict[str, list[Any]] = {}
    search = searcher(config(tmp_path, search__warm_start=[]), tmp_path, missing=3, boxes=boxes)
    for name, told in (("a", []), ("b", []), ("c", [2])):
        search.suggest(name)
        assert boxes.get(trials.ALL_PROPOSED, []) == told


@pytest.mark.slow
def test_only_what_its_conditions_allow_is_proposed(tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__training__trials=20)
    search, kinds = searcher(wanted, tmp_path), set()
    for name in "abcdefghijkl":
        params = search.suggest(name)["params"]
        kinds.add(params["diffusion.noise.kind"])
        assert ("diffusion.noise.octaves" in params) == (params["diffusion.noise.kind"] == "simplex")
    assert kinds == {"simplex", "gaussian"}


@pytest.mark.slow
def test_equal_failures_end_the_sweep_in_words(tuned: dict[str, Any], tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__training__trials=9, search__equal_failures=2)
    tuned["faults"] = ["/a/0/x is gone\nmore", "/a/1/x is gone"]
    with pytest.raises(SearchError) as raised:
        tune(wanted, sweep.folder_of(wanted))
    assert str(raised.value).splitlines() == [
        "sweep 'new': 2 trials in a row failed alike (0000, 0001): /a/0/x is gone",
        "more",
        "No new trial was started (search.equal_failures: 2). Mend what the message says; then --resume runs the 9 trials "
        "that are missing",
    ]
    tune(wanted.model_copy(update={"search": wanted.search.model_copy(update={"equal_failures": None})}), tmp_path)


STOPPED, FINISHED, FAILED, KILLED, KILLED_STOPPING = "stopped", "finished", "failed", "killed", "killed while stopping"
PRUNED = {"search__asha__grace_images": 8, "search__asha__reduction_factor": 2}
IMAGES = (4, 9, 17, 33)
"""Of the validations of a trial, with batches that meet no rung."""


class Verdict(optuna.pruners.BasePruner):
    """Gives up whom the test gives up."""

    given_up = False

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return self.given_up


def lived(search: tuning.StudySearch, folder: Path, name: str, fate: str, previews: list[float]) -> tuple[int, Any]:
    """Ray's calls for one trial, to its end or its driver's; returns its number and settings."""
    proposal = search.suggest(name)
    assert isinstance(proposal, dict)
    place = trials.folder_of(folder, proposal["number"])
    rows = [{"objective": p, "images": float(i), "final": 0.0} for p, i in zip(previews, IMAGES, strict=False)]
    verdict = search._study.pruner = Verdict()
    for row in rows:
        verdict.given_up = fate in (STOPPED, KILLED_STOPPING) and row is rows[-1]
        search.on_trial_result(name, row)
        assert (place / "stopped.json").exists() == verdict.given_up
    if fate == STOPPED:  # it saves its state, and ends
        rows.append({"objective": 0.0, "images": 0.0, "final": 1.0})
        search.on_trial_result(name, rows[-1])
    if fate == FINISHED:
        artifact.write_json(place / "result.json", {})
        rows.append({"objective": 0.5 + max(previews), "images": 49.0, "final": 1.0})
        search.on_trial_result(name, rows[-1])
    if fate == FAILED:
        artifact.write_json(place / "failed.json", {"number": proposal["number"], "error": "lost"})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) if "killed" in fate else nullcontext():
        if fate == KILLED_STOPPING:
            patch.setattr(tuning.studies, "tell_stopped", _killed)
        search.on_trial_complete(name, rows[-1]) if fate != KILLED else _killed()
    return proposal["number"], proposal["params"]


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([STOPPED, FINISHED, FAILED, KILLED, KILLED_STOPPING]),
            st.lists(st.floats(0, 0.5), min_size=1, max_size=len(IMAGES)),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_whatever_ends_a_trial_or_its_driver_the_study_knows_it_once(plan: list[tuple[str, list[float]]]) -> None:
    """In memory, which outlives a driver here as SQLite does, and is quick."""
    states, told, waiting, storage = dict[int, str](), dict[int, list[float]](), None, InMemoryStorage()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.studies, "_storage", lambda path: storage)
        folder = Path(name)
        wanted = config(folder, search__warm_start=[], search__training__trials=9, **PRUNED)
        search = searcher(wanted, folder)
        for place, (fate, previews) in enumerate(plan):
            number, params = lived(search, folder, str(place), fate, previews)
            assert waiting in (None, (number, params)), "a trial that was interrupted comes again, as it was"
            assert number not in states
            told.setdefault(number, []).extend(previews)
            waiting = (number, params) if fate == KILLED else None
            if "killed" in fate:
                search = searcher(wanted, folder)
            if fate != KILLED:
                states[number] = {FINISHED: "COMPLETE", FAILED: "FAIL"}.get(fate, "PRUNED")
        known = searcher(wanted, folder)._study.trials
        assert {t.number: t.state.name for t in known if t.state.is_finished()} == states
        assert [t.number for t in known] == list(range(len(known)))
        assert "RUNNING" not in {t.state.name for t in known}
        stopped = {n for n in states if trials.read_stop(trials.folder_of(folder, n))}
        assert stopped == {n for n, s in states.items() if s == "PRUNED"}
        for trial in known:
            assert set(trial.intermediate_values) <= {4, 8, 16, 32}
            assert set(trial.intermediate_values.values()) <= set(told.get(trial.number, []))
            if trial.state.name == "PRUNED":
                assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]


def test_a_rung_holds_no_value_that_a_search_has_found(tmp_path: Path) -> None:
    """What a trial ends with is the best of a search: no preview could keep up with it."""
    search = searcher(config(tmp_path, search__warm_start=[], search__training__trials=9, **PRUNED), tmp_path)
    for number in range(4):
        name, folder = str(number), trials.folder_of(tmp_path, number)
        search.suggest(name)
        weak = number == 3
        search.on_trial_result(name, {"objective": 0.05 if weak else 0.1 + number, "images": 9.0, "final": 0.0})
        assert (folder / "stopped.json").exists() == weak
        last = {"objective": 0.0 if weak else 50.0, "images": 49.0, "final": 1.0}
        search.on_trial_result(name, last)
        if not weak:
            artifact.write_json(folder / "result.json", {})
        search.on_trial_complete(name, last)
    assert [t.state.name for t in search._study.trials] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert [t.intermediate_values for t in search._study.trials] == [{8: 0.1}, {8: 1.1}, {8: 2.1}, {8: 0.05}]


def ended(folder: Path, number: int, result: dict[str, Any] | None, error_file: Path | None) -> Any:
    return SimpleNamespace(
        config={"number": number, "params": {}}, last_result=result, error_file=error_file and str(error_file)
    )


@pytest.mark.slow
def test_after_equal_failures_nothing_is_proposed(tmp_path: Path) -> None:
    """A user's fault is written by its trial; of any other error Ray keeps the traceback, of a killed process nothing."""
    failures = Failures(2)
    wanted = config(tmp_path, search__warm_start=[])
    search = searcher(wanted, tmp_path, failures)
    events = events_of(tmp_path, failures)
    (tmp_path / "error.txt").write_text("Traceback ...\n  more\nValueError: 7 is odd\n")
    events.on_trial_error(1, [], ended(tmp_path, 0, None, tmp_path / "error.txt"))
    artifact.write_json(trials.folder_of(tmp_path, 1) / "failed.json", {"number": 1, "error": "the loss became nan"})
    events.on_trial_complete(2, [], ended(tmp_path, 1, {"objective": 0.1, "images": 5}, None))
    events.on_trial_error(3, [], ended(tmp_path, 2, None, tmp_path / "absent"))
    assert isinstance(search.suggest("a"), dict)
    (tmp_path / "error.txt").write_text("ValueError: 9 is odd\n")
    events.on_trial_error(4, [], ended(tmp_path, 3, None, tmp_path / "error.txt"))
    assert search.suggest("b") == "FINISHED"
    assert [row.note for row in leaderboard.rows(tmp_path)] == [
        "ValueError: 7 is odd",
        "the loss became nan",
        "the trial's process died",
        "ValueError: 9 is odd",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [SearchError("gone"), None], ids=["failed", "stopped"])
def test_no_trial_ends_without_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """Ray Tune ends the whole sweep over a trial that has never told the objective."""

    def made(*_: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    reports: list[dict[str, float]] = []
    monkeypatch.setattr(trials, "made", made)
    board = SimpleNamespace(warnings=lambda name: nullcontext(), left=lambda box, after: [])
    place, wanted = stages.Place(tmp_path / "artifacts", tmp_path / "store"), config(tmp_path, search__warm_start=[])
    trials.run({"number": 0, "params": {}}, tmp_path, wanted, place, 0.0, board, reports.append)
    assert [row["objective"] for row in reports] == [0.0]
    assert (trials.folder_of(tmp_path, 0) / "failed.json").exists() == isinstance(outcome, Exception)
    search = searcher(wanted, tmp_path / "sweep")
    search.suggest("a")
    for row in reports:
        search.on_trial_result("a", row)
    assert search._study.trials[0].intermediate_values == {}


def test_a_resume_on_other_data_or_of_another_version_is_refused_or_entered(tmp_path: Path) -> None:
    wanted = config(tmp_path)
    identity = sweep._identity(wanted)
    assert identity["version of optuna"] == optuna.__version__
    assert "search.equal_failures" not in identity
    other = {**identity, "version of torch": "0.1"}
    campaign = sweep.Campaign("sweep", "new", tmp_path / "new", identity, forceable=True)
    there, here = (stages.Place(tmp_path / "artifacts", tmp_path / name) for name in ("there", "here"))
    with campaign.held(False, lambda: None):
        campaign.begin()
        assert sweep._other_data(campaign, there, force=False) == []
        record.enter(campaign.folder, wanted, "there")
    artifact.write_json(campaign.folder / "identity.json", other)
    with (
        pytest.raises(SearchError, match=r"version of torch: was '0.1', is '\d"),
        campaign.held(True, lambda: None),
    ):
        pass
    with campaign.held(True, lambda: None, force=True) as changed:
        assert [line.split(":")[0] for line in changed] == ["version of torch"]
        with pytest.raises(
            SearchError, match=r"another data; .*--force:\ndata \(slice store\): was 'there', is 'here'"
        ):
            sweep._other_data(campaign, here, force=False)
        assert sweep._other_data(campaign, here, force=True) == ["data (slice store): was 'there', is 'here'"]
