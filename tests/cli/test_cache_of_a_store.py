"""``cddpm cache --storage``: what lies in an object store, and what of it in this node's cache."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
import stored_shelf
from shelf import Shelf, full
from typer.testing import CliRunner, Result

from cddpm import shelf as node_shelf
from cddpm import storage
from cddpm.cli.cache import app
from cddpm.errors import ArtifactError, ConfigError, TrackingError
from cddpm.storage import Bucket

pytestmark = pytest.mark.slow
URI = "memory://bucket/place"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)


def data(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture
def desk(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a lab book and an empty cache."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(node_shelf.CACHE, str(tmp_path / "cache"))
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "mlflow.db").write_bytes(database.read_bytes())
    return tmp_path


@pytest.fixture
def objects(desk: Path) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        yield from stored_shelf.memory(patch)


@pytest.fixture
def shelf(desk: Path, objects: dict[str, Any]) -> Shelf:
    kept = full(desk / "elsewhere")
    stored_shelf.stored(kept, URI)
    stored_shelf.aged(objects, kept)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_what_lies_in_the_store_and_what_in_the_cache_is_told_apart(
    desk: Path, objects: dict[str, Any], seed: int
) -> None:
    """Whatever of the artifacts lies in either, or in both."""
    draw, kept = random.Random(seed), stored_shelf.drawn(desk / "elsewhere", seed)
    bucket = stored_shelf.stored(kept, URI)
    cache = node_shelf.cache_folder(URI) / "artifacts"
    expected: dict[tuple[str, str], list[bool]] = {}
    for path in sorted(kept.artifacts.glob("*/[!.]*")):
        there, here = draw.choice([(True, True), (True, False), (False, True)])
        if path.parent.name == "prediction":  # others are views of it
            there, here = True, True
        kind, name = path.parent.name, path.name
        expected[kind, name] = [there, here]
        if here:
            shutil.copytree(path, cache / kind / name)
        if not there:
            bucket.delete_all(f"artifacts/{kind}/{name}")
    rows = data("ls", "--storage", URI)["artifacts"]
    found = {
        (r["kind"], r["fingerprint"]): [r[f"bytes_in_{at}"] is not None for at in ("bucket", "cache")] for r in rows
    }
    assert found == expected
    for row in rows:
        size = sum(
            f.stat().st_size for f in (kept.artifacts / row["kind"] / row["fingerprint"]).rglob("*") if f.is_file()
        )
        assert {row["bytes_in_bucket"], row["bytes_in_cache"]} - {None} == {size}
        assert row["path"].startswith(URI if row["bytes_in_bucket"] is not None else str(desk / "cache"))
    printed = run("ls", "--storage", URI).stdout
    stored, cached = (sum(one[n] for one in expected.values()) for n in (0, 1))
    assert f"{URI}/artifacts: {stored} artifacts, " in printed
    assert f"; in this node's cache: {cached}, " in printed
    assert all(name in printed for _, name in expected)


def test_ls_names_who_needs_it(shelf: Shelf) -> None:
    printed = run("ls", "--storage", URI).stdout
    for word in ("in the bucket", "in the cache", "c1", "20 d", "sweep quick", "2 volumes at 250, seeds 0"):
        assert word in printed
    assert "cddpm-shadow" not in printed
    rows = {row["fingerprint"]: row for row in data("ls", "--storage", URI)["artifacts"]}
    assert rows["c1"]["referred_to_by"] == ["sweep quick"]
    assert rows["c1"]["path"] == f"{URI}/artifacts/checkpoint/c1"


def test_verify_says_what_it_fetches_and_names_what_is_damaged(shelf: Shelf) -> None:
    done = run("verify", "--storage", URI)
    assert "11 artifacts" in done.stdout
    assert done.stderr.startswith("fetching ")
    told = data("verify", "--storage", URI)
    assert (told["artifacts"], told["faults"]) == (11, [])
    assert told["bytes_read"] > 16_000
    bucket = Bucket(URI)
    (name,) = (one for one in bucket.names("artifacts/checkpoint/c1") if "/parts/" in one)
    bucket.write(name, b"x")
    with pytest.raises(ArtifactError, match=rf"1 faults in 11 artifacts(.|\n)*{URI}/{name}: truncated, altered"):
        run("verify", "--storage", URI)


def test_a_dry_run_frees_nothing_and_tells_what_would_go(shelf: Shelf, objects: dict[str, Any]) -> None:
    before = set(objects)
    planned = data("prune", "--storage", URI, "--unreferenced", "--dry-run")
    assert set(objects) == before
    said = run("prune", "--storage", URI, "--unreferenced").stdout
    assert f"freed {planned['bytes_freed'] / 1024:.1f} KiB of" in said
    assert {row["fingerprint"] for row in planned["freed"]} == {"c2", "k3", "p1", "p2", "r2", "r3"}
    assert all(row["path"].startswith(f"{URI}/artifacts/") for row in planned["freed"])
    left = stored_shelf.names(Bucket(URI))
    assert "checkpoint/c2" not in left
    assert "checkpoint/c1" in left
    assert data("prune", "--storage", URI, "--unreferenced")["freed"] == []
    assert data("verify", "--storage", URI)["faults"] == []
    printed = run("prune", "--storage", URI, "--max-gib", "0", "--keep-days", "100").stdout
    assert f"cddpm cache ls --storage {URI} shows by whom" in printed


def test_nothing_is_guessed_without_the_registry(shelf: Shelf, desk: Path, objects: dict[str, Any]) -> None:
    before = set(objects)
    (desk / "outputs" / "mlflow.db").unlink()
    assert "Registered models are not shown" in run("ls", "--storage", URI).stderr
    with pytest.raises(TrackingError, match="nothing is freed; run this where the lab book is"):
        run("prune", "--storage", URI, "--keep-days", "0")
    assert set(objects) == before


def test_a_folder_and_an_empty_place_are_refused(objects: dict[str, Any]) -> None:
    for words in (("ls",), ("verify",), ("prune", "--unreferenced")):
        with pytest.raises(ConfigError, match=r"--storage outputs: a folder; .*--output-dir names folders"):
            run(*words, "--storage", "outputs")
        with pytest.raises(ConfigError, match=r"memory://bucket/none: no artifacts lie there"):
            run(*words, "--storage", "memory://bucket/none")


def test_a_cache_says_whose_it_is(desk: Path, objects: dict[str, Any], shelf: Shelf) -> None:
    cache = node_shelf.Shelf.of(URI).artifacts
    shutil.copytree(shelf.artifacts, cache)
    (desk / "outputs" / "artifacts").symlink_to(cache)
    assert f"cddpm cache ls --storage {URI} shows what lies there" in run("ls").stdout


@pytest.mark.timeout(300)
def test_over_http_too(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server: its clock, its listings, its deletions."""
    kept, uri = full(desk / "elsewhere"), "s3://tests/kept"
    with s3_server.moto(tmp_path) as port:
        for name, value in s3_server.environment(port).items():
            monkeypatch.setenv(name, value)
        storage.opened.cache_clear()
        bucket = stored_shelf.stored(kept, uri)
        bucket.write("artifacts/checkpoint/broken/parts/00ff", b"half")
        rows = data("ls", "--storage", uri)["artifacts"]
        assert {row["fingerprint"] for row in rows if row["kind"] != "leftover"} == {
            name.split("/")[1] for name in kept.names() if name.count("/") == 1
        }
        assert all(row["modified"] > kept.artifacts.stat().st_mtime - 600 for row in rows)
        assert data("verify", "--storage", uri)["faults"] == []
        assert data("prune", "--storage", uri, "--keep-days", "1")["freed"] == []  # all of it was written just now
        freed = {row["fingerprint"] for row in data("prune", "--storage", uri, "--unreferenced")["freed"]}
        assert freed == {"c2", "k3", "p1", "p2", "r2", "r3"}
        assert "checkpoint/c2" not in stored_shelf.names(bucket)
        assert "checkpoint/broken" in stored_shelf.names(bucket)
        assert data("verify", "--storage", uri)["faults"] == []
        bucket.delete_all("")
        storage.opened.cache_clear()
