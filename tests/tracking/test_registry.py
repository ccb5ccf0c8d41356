import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import registered

from cddpm.errors import ArtifactError, TrackingError
from cddpm.tracking import connection
from cddpm.tracking.package import read_package
from cddpm.tracking.package_files import INSIDE
from cddpm.tracking.registry import Registry


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    return registered.filled(tmp_path_factory.mktemp("filled"), database)


@pytest.fixture
def registry(filled: Path) -> Registry:
    return Registry.open(connection.default_uri(filled))


@pytest.mark.slow
def test_versions_know_their_origin(registry: Registry) -> None:
    versions = registry.versions()
    assert [(v.number, v.trial_name) for v in versions] == [(3, "demo/0002"), (2, "demo/0001"), (1, "demo/0000")]
    assert versions[2].metrics == registered.METRICS[0]
    assert "val/hd95" not in versions[0].metrics  # not finite
    assert versions[0].tags["cddpm.version"] == "0.1"


@pytest.mark.slow
def test_registering_again_gives_the_same_version(filled: Path) -> None:
    runs = [replace(one, tags={**one.tags, "again": "1"}) for one in registered.demo(filled)]
    mirror = registered.publish(filled, *runs)
    assert [mirror.version(one) for one in runs] == [None, 1, 2, 3]


@pytest.mark.slow
def test_an_upload_that_a_crash_cut_is_finished(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = registered.publish(output_dir, one := registered.run("demo"))
    client, run, package = mirror.connect(), mirror.run_id(one) or "", registered.make_package(output_dir, 0)
    registry = Registry(client, mirror.uri)
    with monkeypatch.context() as patch:
        patch.setattr(registry._client, "finalize_logged_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            registry.register(run, package, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(registry._client, "create_model_version", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            registry.register(run, package, {}, {})
    assert registry.register(run, package, {}, {}) == 1
    assert len(client.search_logged_models(["1"])) == 1


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({"metric": "dice", "top": 9}, [2, 3, 1]),
        ({"metric": "dice"}, [2]),
        ({"metric": "dice", "dataset": "Brats21", "top": 2}, [1, 3]),
        ({"metric": "loss", "top": 3}, [3, 1, 2]),
        ({"metric": "dice", "split": "test", "top": 3}, [1, 2]),
        ({"metric": "objective"}, [1]),
    ],
)
def test_best_ranks_on_validation_unless_told(registry: Registry, asked: dict, order: list[int]) -> None:
    assert [version.number for version in registry.best(**asked)] == order


def test_an_unknown_metric_names_the_nearest(registry: Registry) -> None:
    with pytest.raises(TrackingError, match=r"has the metric 'val/Brats21/dise'; there are val/Brats21/dice"):
        registry.best("dise", "Brats21")
    with pytest.raises(TrackingError, match="split: 'train': allowed are val, test"):
        registry.best(split="train")


@pytest.mark.slow
def test_references(registry: Registry) -> None:
    registry.promote("2", "tried", "for a test")
    run_id = registry.find("2").run_id
    for ref in ("2", "tried", "demo/0001", run_id):
        assert registry.find(ref).number == 2
    for wrong, near in (("demo/001", "demo/000"), ("tird", "tried"), ("17", "did you mean 1")):
        with pytest.raises(TrackingError, match=f"'{wrong}' is no version of 'cddpm'.*{near}"):
            registry.find(wrong)


def test_nothing_registered(filled: Path) -> None:
    empty = Registry.open(connection.default_uri(filled), "other")
    assert empty.versions() == []
    with pytest.raises(TrackingError, match="there are none yet"):
        empty.find("1")
    with pytest.raises(TrackingError, match="register a model first"):
        empty.best()


def test_pull_brings_a_package_that_verifies(registry: Registry, tmp_path: Path) -> None:
    target = registry.pull("demo/0001", tmp_path / "model")
    assert read_package(target).pipeline.trial == 1
    assert registry.pull("2", target) == target
    with pytest.raises(ArtifactError, match="holds something else than version 3"):
        registry.pull("3", target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_nothing_is_made_in_the_working_directory(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = Registry.open(connection.default_uri(filled))
    registry.promote("1", "here", "a test")
    registry.pull("here", tmp_path / "model")
    registry.best()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("harm", ["alter", "weights", "manifest", "all", "swap", "loader", "requirements"])
def test_a_harmed_package_is_named_and_nothing_comes(filled: Path, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(filled / "mlartifacts", copy)
    registry = Registry.open(connection.default_uri(filled))
    home = filled / "mlartifacts" / "models" / registry.find("2").model_id / "artifacts"
    other = filled / "mlartifacts" / "models" / registry.find("3").model_id / "artifacts"
    try:
        match harm:
            case "alter":
                (home / INSIDE / "model.safetensors").write_bytes(b"x")
            case "weights":
                (home / INSIDE / "model.safetensors").unlink()
            case "loader":
                mlmodel = home / "MLmodel"
                mlmodel.write_text(mlmodel.read_text().replace("cddpm.predict.pyfunc", "antigravity"))
            case "requirements":
                (home / "requirements.txt").unlink()
            case "manifest":
                (home / "manifest.json").unlink()
            case "all":
                shutil.rmtree(home)
            case "swap":
                shutil.rmtree(home)
                shutil.copytree(other, home)
        for attempt in (lambda: registry.pull("2", tmp_path / "model"), lambda: registry.promote("2", "bad", "no")):
            with pytest.raises(ArtifactError, match=r"version 2 of 'cddpm': .*Nothing was loaded"):
                attempt()
    finally:
        shutil.rmtree(filled / "mlartifacts")
        copy.rename(filled / "mlartifacts")
    assert not (tmp_path / "model").exists()
    assert "bad" not in {alias for version in registry.versions() for alias in version.aliases}


def test_a_damaged_package_is_not_registered(output_dir: Path) -> None:
    package = registered.make_package(output_dir, 0)
    (package / "pipeline.json").write_text(json.dumps({}))
    mirror = registered.publish(output_dir, one := registered.run("demo"))
    registry = Registry(mirror.connect(), mirror.uri)
    with pytest.raises(ArtifactError, match=r"pipeline\.json: altered"):
        registry.register(mirror.run_id(one) or "", package, {}, {})
    assert registry.versions() == []
