import json
import shutil
import sqlite3
from pathlib import Path

import built_sweep
import pytest
import registered
from typer.testing import CliRunner, Result

from cddpm import artifact, cli
from cddpm.campaign import IDENTITY, LOCK
from cddpm.cli.registry import app
from cddpm.config import with_values
from cddpm.errors import ArtifactError, ConfigError, RefusedError, TrackingError, UndeliveredError
from cddpm.tracking import connection, lab, names
from cddpm.tracking.address import file_uri
from cddpm.tracking.package import read_package
from cddpm.tracking.package_files import INSIDE
from cddpm.tracking.registry import Registry

SWEEP = "full-search-t2-1a2b3c4d"


@pytest.fixture(autouse=True)
def here(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an empty outputs/mlflow.db."""
    monkeypatch.chdir(output_dir.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return output_dir.parent


@pytest.fixture
def three(three_versions: Path, here: Path) -> Registry:
    """A folder with outputs/mlflow.db as after a sweep."""
    shutil.copyfile(three_versions, here / "outputs" / "mlflow.db")
    (here / "outputs" / "mlartifacts").symlink_to(three_versions.with_name("mlartifacts"))
    return Registry.open(file_uri(here / "outputs" / "mlflow.db"))


def _invoke(*arguments: str, columns: int = 100) -> Result:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def _run(*arguments: str, columns: int = 100) -> str:
    return _invoke(*arguments, columns=columns).stdout


def _numbers(*arguments: str) -> list[int]:
    found = json.loads(_run(*arguments, "--json"))
    return [version["number"] for version in (found["versions"] if isinstance(found, dict) else found)]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_tables_read_whole(here: Path, tmp_path: Path, columns: int) -> None:
    for number, dice in enumerate((0.25, 0.5)):
        package = registered.make_package(tmp_path, number, SWEEP)
        metrics = {"val/dice": dice, "val/Brats21/dice": 1 - dice, "val/MSLUB/dice": 0.125, "test/dice": 1 - dice}
        registered.register(here / "outputs", package, f"{SWEEP}/{number:04d}", metrics=metrics)
    listed, ranked = _run("list", columns=columns), _run("best", columns=columns)
    for text in (listed, ranked):
        assert f"{SWEEP}/0000" in text
        assert "…" not in text
        assert all(len(line) <= columns for line in text.splitlines())
    assert ranked.index("0001") < ranked.index("0000")
    assert [word for word in ranked.split() if word in ("mean", "Brats21", "MSLUB")] == ["mean", "Brats21", "MSLUB"]
    assert "test/" not in ranked


@pytest.mark.slow
@pytest.mark.usefixtures("three")
def test_lists_are_filtered_and_sorted() -> None:
    assert _numbers("list") == [3, 2, 1]
    assert _numbers("list", "--sort", "dice", "--top", "2") == [2, 3]
    by_dataset = _run("list", "--sort", "Brats21/dice")
    assert "val/Brats21/dice" in by_dataset
    assert by_dataset.index("0.6000") < by_dataset.index("demo/0002") < by_dataset.index("demo/0001")
    assert _numbers("list", "--where", "params.guidance_scale > 0.5 and metrics.dice < 0.5") == [3]
    assert _numbers("best", "--dataset", "Brats21") == [1, 3, 2]
    assert _numbers("best", "--where", "params.guidance_scale > 0.5", "--top", "1") == [2]
    assert "No version of 'cddpm' fits" in _run("list", "--sweep", "other")
    with pytest.raises(TrackingError, match=r"there are .*guidance_scale"):
        _run("best", "--where", "params.guidance_scales > 1")


@pytest.mark.slow
def test_a_long_list_is_cut_and_says_so(here: Path) -> None:
    registered.many(here / "outputs" / "mlflow.db", 1, 150, 130)
    text = _run("list")
    assert "cddpm: 130 versions" in text
    assert "and 30 more: --top 130 shows them" in text
    assert "0030" in text  # version 31
    assert "sweep-000/0029" not in text
    assert "sweep-000/0000" in _run("list", "--top", "130")
    assert len(_numbers("list")) == 130


@pytest.mark.usefixtures("three")
def test_test_is_never_looked_at_in_silence() -> None:
    quiet = _invoke("best", "--json")
    assert json.loads(quiet.stdout)["chosen_on_test"] is False
    assert quiet.stderr == ""
    loud = _invoke("best", "--split", "test", "--json")
    found = json.loads(loud.stdout)
    assert (found["metric"], found["chosen_on_test"], found["versions"][0]["number"]) == ("test/dice", True, 1)
    for said in (loud.stderr, found["warning"]):
        assert "ranked by TEST scores: a choice made on test is no test any more" in said
    assert "WHICH IS TEST" in _run("best", "--split", "test")
    with pytest.raises(ConfigError, match="looks at test; choose by validation, or say --split test"):
        _run("best", "--where", "metrics.test/dice > 0.5")
    assert "ranked by TEST" in _invoke("list", "--where", "metrics.test/dice > 0.5").stderr


@pytest.mark.slow
@pytest.mark.usefixtures("three")
def test_from_promotion_to_a_package(here: Path) -> None:
    assert "'champion' is now version 2" in _run("promote", "demo/0001", "champion", "--why", "best of [two]")
    assert "(was version 2)" in _run("promote", "1", "--alias", "champion", "--why", "second thoughts", "--who", "anna")
    third = json.loads(_run("promote", "2", "--alias", "champion", "--require", "dice>=0.4", "--json"))
    assert (third["previous"], third["why"], third["conditions"]) == (1, "dice>=0.4", ["dice>=0.4"])
    shown = _run("show", "champion")
    assert "best of [two]" in shown
    assert "required: dice>=0.4" in shown
    assert [(e["why"], e["who"]) for e in json.loads(_run("show", "1", "--json"))["promotions"]] == [
        ("second thoughts", "anna")
    ]
    assert "'champion' is now version 1 of 'cddpm' (was version 2)." in _run("rollback", "champion")
    assert json.loads(_run("rollback", "champion", "--json"))["version"] == 2
    pulled = json.loads(_run("pull", "champion", "model", "--json"))
    assert pulled["directory"] == str(here / "model")
    assert read_package(here / "model").pipeline.trial == 1
    assert "Version 2" in _run("pull", "champion", "model")


@pytest.mark.slow
def test_conditions_of_a_promotion(three: Registry) -> None:
    _run("promote", "2", "--alias", "champion", "--not-worse-than", "champion")  # the first: nobody to be worse than
    for arguments in (["--require", "dice>0.45"], ["--not-worse-than", "champion"]):
        with pytest.raises(
            RefusedError, match=r"version 3 of 'cddpm' does not become 'champion': its val/dice is 0\.4"
        ) as error:
            _run("promote", "3", "--alias", "champion", *arguments)
        assert error.value.exit_code == 8
    assert three.find("champion").number == 2
    assert "refused: its val/dice" in _run("show", "3").replace("\n", " ")
    with pytest.raises(ConfigError, match="measured on test"):
        _run("promote", "1", "--alias", "champion", "--require", "test/dice > 0.5")
    forced = _invoke("promote", "1", "--alias", "champion", "--require", "test/dice > 0.5", "--force", "--json")
    assert "--force" in forced.stderr
    assert json.loads(forced.stdout)["forced"] is True
    assert "forced" in _run("show", "1")
    with pytest.raises(TrackingError, match="'champoin' is no version of 'cddpm'"):
        _run("promote", "1", "--alias", "champion", "--not-worse-than", "champoin")
    with pytest.raises(ConfigError, match="--why is missing"):
        _run("promote", "1", "--alias", "champion")
    with pytest.raises(ConfigError, match="--alias is missing"):
        _run("promote", "1", "--why", "x")


@pytest.mark.slow
@pytest.mark.usefixtures("three")
def test_archived_versions_are_hidden_until_asked_for() -> None:
    assert "Version 2 of 'cddpm' is archived" in _run("archive", "2", "--why", "superseded")
    assert _numbers("list") == [3, 1]
    assert _numbers("best") == [3, 1]
    assert _numbers("list", "--archived") == [3, 2, 1]
    assert "(archived)" in _run("list", "--archived")
    assert json.loads(_run("restore", "2", "--json"))["archived"] is False
    _run("promote", "1", "--alias", "champion", "--why", "x")
    with pytest.raises(RefusedError, match="version 1 of 'cddpm' is champion"):
        _run("archive", "1", "--why", "x")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("columns", [80, 120])
def test_versions_side_by_side(columns: int) -> None:
    text = _run("compare", "1", "2", "3", columns=columns)
    assert all(len(line) <= columns for line in text.splitlines())
    for part in ("scoring.guidance_scale", "0.300", "[0.200, 0.400]", "+0.200, p = 1.000", "2 subjects"):
        assert part in text
    found = json.loads(_run("compare", "1", "2", "--json"))
    assert found["settings"] == {"scoring.guidance_scale": ["0.5", "1.0"]}
    assert found["scores"][0]["against_first"][1]["p"] == 0.5
    with pytest.raises(ConfigError, match="name at least two versions"):
        _run("compare", "1")


@pytest.mark.usefixtures("three")
def test_the_way_from_the_data_is_a_tree() -> None:
    text = _run("lineage", "demo/0001")
    places = [
        text.index(step) for step in ("store s1", "encoder e1", "checkpoint c1", "reconstruction r1", "number: 2")
    ]
    assert places == sorted(places)
    steps = json.loads(_run("lineage", "2", "--json"))["steps"]
    assert [step["kind"] for step in steps][-2:] == ["score", "version"]


@pytest.mark.slow
def test_every_bad_package_is_named(three: Registry, tmp_path: Path, here: Path) -> None:
    assert "whole" in _run("verify")
    assert [row["whole"] for row in json.loads(_run("verify", "--json"))] == [True] * 3
    for number in (1, 3):
        _lose(three, number, tmp_path)
    done = CliRunner().invoke(app, ["verify", "--json"])
    assert isinstance(done.exception, ArtifactError)
    assert done.exception.exit_code == 4
    assert [row["whole"] for row in json.loads(done.stdout)] == [False, True, False]
    for number in (1, 3):
        assert f"version {number} of 'cddpm': its registered package is damaged or gone" in str(done.exception)
        with pytest.raises(ArtifactError, match=f"version {number} of 'cddpm'"):
            _run("pull", str(number), "model")
    assert not (here / "model").exists()
    _run("verify", "2")


def _lose(registry: Registry, number: int, folder: Path) -> None:
    """Version ``number`` points to a copy of its files, one of which is altered."""
    version = registry.find(str(number))
    package = registry.local_package(version)
    assert package is not None
    copy = Path(shutil.copytree(package.parents[1], folder / f"lost-{number}"))
    registered.altered(copy / INSIDE)
    with sqlite3.connect(registry.uri.removeprefix("sqlite:///")) as connection:
        statement = "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?"
        connection.execute(statement, (str(copy), version.model_id))


def test_predict_loads_nothing_of_a_bad_package(three: Registry, tmp_path: Path) -> None:
    _lose(three, 2, tmp_path)
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"")
    done = CliRunner().invoke(cli.app, ["predict", str(scan), "--out", str(tmp_path / "out"), "--model", "2"])
    assert isinstance(done.exception, ArtifactError)
    assert done.exception.exit_code == 4
    assert "version 2 of 'cddpm': its registered package is damaged or gone" in str(done.exception)
    assert "Nothing was loaded" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sync_brings_what_folders_say_and_tells_what_is_missing(here: Path) -> None:
    outputs = here / "outputs"
    assert "No sweep or evaluation in outputs" in _run("sync")
    built_sweep.begin(built_sweep.config(outputs, "late"))
    assert "late: 1 runs brought up to date" in _run("sync")
    assert "late: all of it is in MLflow" in _run("sync")
    assert json.loads(_run("sync", "--json"))[0]["changed"] == 0
    away = with_values(built_sweep.config(outputs, "never"), {"tracking.uri": "http://127.0.0.1:9"}, "test")
    built_sweep.begin(away)
    done = CliRunner().invoke(app, ["sync"])
    assert isinstance(done.exception, UndeliveredError)
    assert done.exception.exit_code == 9
    assert "never: 1 runs are not there" in done.stdout
    assert "never: http://127.0.0.1:9: the MLflow server does not answer" in str(done.exception)
    _run("sync", "--tracking-uri", file_uri(outputs / "mlflow.db"))  # for both: the first one was wrong


@pytest.mark.slow
def test_a_lab_book_that_was_lost_is_made_anew(here: Path) -> None:
    """All of it, but what people did in it: aliases, archives."""
    folder = built_sweep.begin(built_sweep.config(here / "outputs", "late"))
    built_sweep.ended(folder, 0, {"training.learning_rate": 1e-3}, "finished")
    before, rest = _run("sync"), here / "rest"
    shutil.copytree(here / "outputs", rest, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    assert _run("sync", "--output-dir", str(rest)) == before
    client = connection.connect(file_uri(rest / "mlflow.db"), create=False)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.data.tags[names.RUN] for run in runs} == {"late", "late/0000"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["origin.json", "events.jsonl", "stages/x.json"])
def test_a_damaged_folder_holds_no_other_up(here: Path, damage: str) -> None:
    for name in ("bad", "good"):
        built_sweep.begin(built_sweep.config(here / "outputs", name))
    artifact.write_text(here / "outputs" / "sweeps" / "bad" / damage, "rubbish\n")
    done = CliRunner().invoke(app, ["sync"])
    assert "good: 1 runs brought up to date" in done.stdout
    assert f"bad: {here / 'outputs' / 'sweeps' / 'bad' / damage}" in str(done.exception) or damage in str(
        done.exception
    )
    assert (here / "outputs" / "sweeps" / "bad" / damage).read_text() == "rubbish\n"


def test_what_another_process_publishes_is_named(here: Path) -> None:
    folder = built_sweep.begin(built_sweep.config(here / "outputs", "busy"))
    with (
        artifact.lock(folder / lab.LOCK),
        pytest.raises(UndeliveredError, match="another process is publishing it"),
    ):
        _run("sync")


def test_what_an_earlier_version_began_holds_nothing_up(here: Path) -> None:
    artifact.write_json(here / "outputs" / "sweeps" / "old" / IDENTITY, {})
    assert "old: was begun by an earlier version" in _run("sync")


def test_what_a_driver_holds_is_left_to_it(here: Path) -> None:
    folder = built_sweep.begin(built_sweep.config(here / "outputs", "busy"))
    with artifact.lock(folder / LOCK):
        assert "busy: is running" in _run("sync")


def test_an_empty_registry_says_so() -> None:
    assert "No model is registered as 'cddpm'" in _run("list")
    assert json.loads(_run("list", "--json")) == []


def test_no_lab_book_here(here: Path) -> None:
    (here / "outputs" / "mlflow.db").unlink()
    with pytest.raises(TrackingError, match=r"outputs/mlflow\.db: no lab book here.*--tracking-uri") as caught:
        _run("list")
    assert caught.value.exit_code == 5
    assert not (here / "outputs" / "mlflow.db").exists()


def test_the_environment_points_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/absent.db")
    with pytest.raises(TrackingError, match=r"absent\.db: no lab book here"):
        _run("list")
    assert "No model" in _run("list", "--tracking-uri", "sqlite:///outputs/mlflow.db")


@pytest.mark.slow
@pytest.mark.usefixtures("three")
def test_the_commands_need_neither_torch_nor_ray_nor_mlflow() -> None:
    """A command that reads may take a second; each of these takes longer to import."""
    commands = [
        ["list"],
        ["best", "--where", "params.guidance_scale > 0 and metrics.dice > 0"],
        ["show", "1"],
        ["lineage", "1"],
        ["restore", "3"],
        ["pull", "2", "model"],
        ["verify"],
        ["compare", "1", "2"],
    ]
    assert registered.imports_of(commands) == []
