"""Artifacts before an object store: two nodes are two cache folders."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server
from launched import ROOT
from tmpfs import small_disk

from cddpm import artifact, shelf, storage
from cddpm.cli import cache
from cddpm.errors import ArtifactError, ConfigError, StorageError
from cddpm.shelf import Kept, Shelf

KIND = "checkpoint"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server.moto(tmp_path_factory.mktemp("s3")) as found:
        yield found


Node = Callable[[str], Shelf]


@pytest.fixture
def node(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The shelf of one store as a node of that name sees it."""
    for name, value in s3_server.environment(port).items():
        monkeypatch.setenv(name, value)
    storage.opened.cache_clear()

    def on(name: str) -> Shelf:
        monkeypatch.setenv(shelf.CACHE, str(tmp_path / name))
        return Shelf.of(f"s3://tests/{tmp_path.name}")

    return on


def make(kept: Shelf, name: str = "0123", text: bytes = b"weights", size: int = 0) -> Path:
    path = kept.path(KIND, name)

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(text + os.urandom(size))
        (folder / "more").mkdir()
        (folder / "more" / "config.json").write_text("{}")

    return artifact.create(path, KIND, name, {}, fill)


def test_a_folder_is_the_place_itself(tmp_path: Path) -> None:
    kept = Shelf.of(str(tmp_path))
    path = kept.path(KIND, "0123")
    assert (path, kept.get(path)) == (tmp_path / "artifacts" / KIND / "0123", None)
    make(kept)
    assert kept.get(path) == kept.put(path) == path
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert Kept.of(path).here() == path


def test_what_one_node_puts_another_gets(node: Node) -> None:
    one, path = node("one"), node("one").path(KIND, "0123")
    one.put(make(one))
    two = node("two")
    assert two.artifacts != one.artifacts
    assert not two.path(KIND, "0123").exists()
    assert two.has(two.path(KIND, "0123"))
    found = two.need(two.path(KIND, "0123"))
    assert artifact.verify(found, KIND) == artifact.verify(path, KIND)
    assert (found / "more" / "config.json").read_text() == "{}"
    assert Kept.of(path).here() == found  # as it travels to the second node
    with pytest.raises(
        ArtifactError, match=r"s3://tests/\S+/artifacts/checkpoint/none: this checkpoint does not exist"
    ):
        two.need(two.path(KIND, "none"))


def test_the_second_get_of_a_node_fetches_nothing(port: int, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    one = node("one")
    one.put(make(one))
    with s3_server.Proxy(port).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        storage.opened.cache_clear()
        two = node("two")
        two.need(two.path(KIND, "0123"))
        seen = len(proxy.methods)
        assert seen > 0
        storage.opened.cache_clear()
        two.need(two.path(KIND, "0123"))
        assert len(proxy.methods) == seen


@pytest.mark.slow
def test_of_several_processes_of_a_node_one_fetches(port: int, node: Node) -> None:
    one = node("one")
    one.put(make(one, size=2_000_000))
    two = node("two")
    code = (
        "import sys\nfrom cddpm import shelf\nfrom cddpm.shelf import Shelf\n"
        "fetch = Shelf._fetch\n"
        "Shelf._fetch = lambda self, path: (print('fetches'), fetch(self, path))[1]\n"
        f"kept = Shelf.of({two.storage!r})\nkept.need(kept.path({KIND!r}, '0123'))\n"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [one.communicate(timeout=100)[0] for one in several]
    assert [one.returncode for one in several] == [0, 0, 0]
    assert "".join(said) == "fetches\n"


@pytest.mark.parametrize("fault", ["altered", "cut", "missing", "manifest"])
def test_damage_in_the_store_is_told_and_nothing_is_kept(node: Node, fault: str) -> None:
    one = node("one")
    path = make(one)
    one.put(path)
    parts = one.names(path / "parts")
    first = path / "parts" / artifact.file_digest(path / "model.safetensors")
    assert first.name in parts
    if fault == "missing":
        one.delete(first)
    elif fault == "manifest":
        one.write(path / artifact.MANIFEST, b"{")
    else:
        one.write(first, b"weight" if fault == "cut" else b"Weights")
    two = node("two")
    with pytest.raises(ArtifactError, match=r"s3://tests/\S+"):
        two.need(two.path(KIND, "0123"))
    assert not two.path(KIND, "0123").exists()
    assert not list(two.artifacts.rglob("*.partial"))
    two.discard(two.path(KIND, "0123"))
    two.put(make(two))
    three = node("three")
    assert artifact.is_sound(three.need(three.path(KIND, "0123")), KIND)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_maker_killed_at_any_moment_leaves_nothing_that_is_taken_for_an_artifact(node: Node, tmp_path: Path) -> None:
    """At every tenth of an upload: a reader sees no artifact, or a whole one."""
    one = node("one")
    path = make(one, size=20_000_000)
    code = (
        "import sys\nfrom pathlib import Path\nfrom cddpm.shelf import Shelf\n"
        f"kept = Shelf.of({one.storage!r})\nprint('begins', flush=True)\n"
        f"kept.put(Path({str(path)!r}))\n"
    )

    def started() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        return process

    start = time.monotonic()
    assert started().wait(100) == 0
    whole = time.monotonic() - start
    seen = []
    for tenth in range(10):
        one.delete(path)
        process = started()
        time.sleep(whole * tenth / 10)
        process.kill()
        process.wait()
        two = node(f"two-{tenth}")
        found = two.get(two.path(KIND, "0123"))
        assert found is None or artifact.is_sound(found, KIND)
        seen.append(found is not None)
    assert not seen[0]


def test_two_that_make_one_artifact_leave_one_sound_one(node: Node) -> None:
    one, two = node("one"), node("two")
    first, second = make(node("one"), text=b"first"), make(node("two"), text=b"second")
    assert first != second
    node("one")
    manifest = (second / artifact.MANIFEST).read_bytes()
    two.send(second, json.loads(manifest)["files"], second / "parts")  # both looked, and saw none
    one.put(first)
    two.write(second / artifact.MANIFEST, manifest)
    three = node("three")
    found = three.need(three.path(KIND, "0123"))
    assert artifact.is_sound(found, KIND)
    assert (found / "model.safetensors").read_bytes() == b"second"


def test_the_cache_is_kept_below_its_limit_but_what_is_used_stays(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    one = node("one")
    for name in ("a", "b", "c", "d"):
        one.put(make(one, name, size=100_000))
    monkeypatch.setenv(shelf.CACHE_GB, str(250_000 / 2**30))
    two = node("two")
    for number, name in enumerate(("a", "b", "c")):
        two.need(two.path(KIND, name))
        if name == "b":
            shelf.release()  # whoever used them has ended
            two.need(two.path(KIND, "a"))  # and somebody takes "a" again
        os.utime(two.path(KIND, name).with_name(f".{name}.used"), (number, number))
    there = sorted(p.name for p in (two.artifacts / KIND).iterdir() if not p.name.startswith("."))
    assert there == ["a", "c"]
    (two.path(KIND, "a") / "model.safetensors").unlink()
    (two.path(KIND, "a") / artifact.MANIFEST).unlink()  # somebody deletes the cache under us
    assert artifact.is_sound(two.need(two.path(KIND, "a")), KIND)


def test_a_full_cache_disk_is_told(node: Node, tmp_path: Path) -> None:
    one = node("one")
    one.put(make(one, size=3_000_000))
    with small_disk(tmp_path / "small", "1m") as small:
        two = node(str(small))
        with pytest.raises(StorageError, match="no space left"):
            two.need(two.path(KIND, "0123"))
        assert not two.path(KIND, "0123").exists()


def test_what_an_upload_that_never_ended_left_is_found_and_freed(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    one = node("one")
    whole, broken = one.put(make(one, "whole")), make(one, "broken", b"other")
    files = json.loads((broken / artifact.MANIFEST).read_bytes())["files"]
    one.send(broken, files, broken / "parts")
    one.write(whole / "parts" / "00ff", b"of one that was made at the same time")
    one.write(one.path(KIND, ".work") / "0123" / "parts" / "00ff", b"a state of a training")
    one.write(one.path("prediction", "0123") / "volume" / "10-0.00ff.arrow", b"a prediction")
    left = {f"{KIND}/broken/parts/{digest}" for digest in files.values()} | {f"{KIND}/whole/parts/00ff"}
    assert set(one.interrupted(older_seconds=-1.0)) == left
    assert one.interrupted() == {}  # all of it is young: an upload may go on
    cache.prune(storage=one.storage, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"dry_run": False, "bytes_freed": 0, "freed": []}
    assert artifact.is_sound(node("two").need(node("two").path(KIND, "whole")), KIND)
    with pytest.raises(ConfigError, match="--storage outputs: a folder; allowed is an object store"):
        cache.prune(storage="outputs")
