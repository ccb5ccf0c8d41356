"""What a sweep gives to Ray Tune and hears from it; Tune itself is replaced."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from rich.console import Console
from test_warm_start import config
from test_warm_start import sweep as earlier_sweep

from cddpm import artifact, cluster
from cddpm.config import ExperimentConfig
from cddpm.search import budget, sweep, tuning
from cddpm.search.display import Display
from cddpm.training import stages

STORE = "0123456789abcdef"


class Lab:
    """Hears the same as the display."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def started(self, number: int, params: dict[str, Any]) -> None:
        self.heard.append(("started", number))

    def reported(self, number: int) -> None:
        self.heard.append(("reported", number))

    def ended(self, number: int, how: str, result: Any) -> None:
        self.heard.append((how, number))


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for Ray; notes what it was given, and tells of one trial."""
    given: dict[str, Any] = {}

    def run(wanted: ExperimentConfig, study: optuna.Study, folder: Path, *rest: Any) -> None:
        *_, listener = rest
        given.update(config=wanted, study=study, spent=budget.read(folder))
        listener.started(0, {})
        listener.ended(0, "failed")

    monkeypatch.setattr(tuning, "run", run)
    monkeypatch.setattr(cluster, "Board", lambda: SimpleNamespace(look=dict))
    monkeypatch.setattr(cluster, "capacity", lambda: {"CPU": 8.0})
    return given


def tune(wanted: ExperimentConfig, folder: Path) -> str:
    text = io.StringIO()
    place = stages.Place(folder.parent / "artifacts", folder.parent / "artifacts/store" / STORE)
    folder.mkdir(parents=True, exist_ok=True)
    sweep._tune(wanted, folder, place, 2, Lab(), Display(Console(file=text, width=300)))
    return text.getvalue()


def test_earlier_trials_and_their_scoring_settings_arrive(tuned: dict[str, Any], tmp_path: Path) -> None:
    earlier_sweep(tmp_path, [{}, {"training.learning_rate": 0.9}, {"training.learning_rate": 2e-3}])
    wanted = config(tmp_path)
    said = tune(wanted, sweep.folder_of(wanted))
    assert "trial old/0001 is left out: training.learning_rate 0.9 is not in this space" in said
    assert [t.user_attrs.get("earlier") for t in tuned["study"].trials] == [None, "old/0002", "old/0000"]
    assert tuned["config"].search.scoring.start == ({"scoring.residual": "l2", "scoring.minimum_component_voxels": 7},)
    assert tuned["config"].search.training == wanted.search.training


def test_a_spent_budget_is_told(tuned: dict[str, Any], tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__maximum_seconds=100)
    folder = sweep.folder_of(wanted)
    artifact.write_json(folder / budget.FILE, {"seconds": 99.0, "cpu_hours": 1.0, "gpu_hours": 0.0})
    assert "are spent" not in tune(wanted, folder)
    assert tuned["spent"].seconds == 99.0
    artifact.write_json(folder / budget.FILE, {"seconds": 100.0, "cpu_hours": 1.0, "gpu_hours": 0.0})
    assert "search.maximum_seconds: 100 of 100 are spent; no new training starts" in tune(wanted, folder)


def searcher(wanted: ExperimentConfig, folder: Path) -> tuning.StudySearch:
    from cddpm.search import study

    folder.mkdir(parents=True, exist_ok=True)
    return tuning.StudySearch(study.open_study(folder / "study.db", wanted), wanted, folder)


def test_no_trial_is_proposed_beyond_the_budget(tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__maximum_gpu_hours=2)
    search = searcher(wanted, tmp_path)
    first = search.suggest("a")
    assert isinstance(first, dict)
    assert first["number"] == 0
    artifact.write_json(tmp_path / budget.FILE, {"seconds": 1.0, "cpu_hours": 1.0, "gpu_hours": 2.0})
    assert search.suggest("b") == "FINISHED"


def test_only_what_its_conditions_allow_is_proposed(tmp_path: Path) -> None:
    wanted = config(tmp_path, search__warm_start=[], search__training__trials=20)
    search, kinds = searcher(wanted, tmp_path), set()
    for name in "abcdefghijkl":
        params = search.suggest(name)["params"]
        kinds.add(params["diffusion.noise.kind"])
        assert ("diffusion.noise.octaves" in params) == (params["diffusion.noise.kind"] == "simplex")
    assert kinds == {"simplex", "gaussian"}


@pytest.mark.parametrize(("kind", "brackets"), [("asha", 1), ("hyperband", 3)])
def test_a_trial_is_put_into_the_bracket_of_its_number(tmp_path: Path, kind: str, brackets: int) -> None:
    wanted = config(tmp_path, search__scheduler=kind)
    scheduler = tuning._scheduler(wanted)
    assert len(scheduler._brackets) == brackets
    found = []
    for number in range(40):
        trial = SimpleNamespace(trial_id=str(number), config={"number": number})
        scheduler.on_trial_add(None, trial)
        found.append(scheduler._brackets.index(scheduler._trial_info[str(number)]))
    asha = wanted.search.asha
    assert found == [tuning.halving.bracket_of(wanted.seed, number, asha, brackets) for number in range(40)]
    assert len(set(found)) == brackets
    first_rungs = [bracket._rungs[-1][0] for bracket in scheduler._brackets]
    assert first_rungs == [asha.grace_images * asha.reduction_factor**b for b in range(brackets)]


def test_without_a_scheduler_nothing_is_stopped(tmp_path: Path) -> None:
    scheduler = tuning._scheduler(config(tmp_path, search__scheduler="none"))
    assert not hasattr(scheduler, "_brackets")
