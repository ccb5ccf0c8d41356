"""Artifacts before a store in memory: what was freed there, and a cache that is deleted under who uses it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import stored_shelf

from cddpm import artifact, shelf
from cddpm.config import ReconstructionConfig
from cddpm.reconstruct.part import write_part
from cddpm.reconstruct.reconstruction import View, found_prediction
from cddpm.shelf import Shelf
from cddpm.storage import Bucket
from cddpm.training.prediction import Wanted
from cddpm.training.stages import Place

URI = "memory://bucket/place"
KIND = "slice store"
Node = Callable[[str], Shelf]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """The shelf of one store as a node of that name sees it."""

    def on(name: str) -> Shelf:
        monkeypatch.setenv(shelf.CACHE, str(tmp_path / name))
        return Shelf.of(URI)

    with pytest.MonkeyPatch.context() as patch:
        for _ in stored_shelf.memory(patch):
            yield on
            shelf.release()


def fill(folder: Path) -> None:
    (folder / "content").write_bytes(b"slices")


def test_what_was_freed_and_is_still_in_a_cache_is_put_there_again(node: Node) -> None:
    one = node("one")
    path, made = one.ensure(one.path("store", "s"), KIND, {}, fill)
    assert made
    one.delete(path)
    assert one.ensure(path, KIND, {}, fill) == (path, False)
    two = node("two")
    assert artifact.is_sound(two.need(two.path("store", "s")), KIND)


def test_parts_that_were_freed_and_are_still_in_a_cache_are_put_there_again(node: Node, tmp_path: Path) -> None:
    one = node("one")
    view = View.of(["a"], ReconstructionConfig(noise_levels=(250,)))
    place = Place(one.artifacts, tmp_path, URI)
    networks = cast(Any, None)  # nothing is predicted
    wanted = Wanted(networks, (0,), view, "p", {"checkpoint": "c"}, place, networks)
    found_prediction(wanted.parts, wanted.made_from)
    write_part(wanted.parts, "a", {("c", level, 0): np.ones((2, 8, 8), np.float32) for level in (250, 500)})
    wanted.keep()
    bucket, folder = Bucket(URI), "artifacts/prediction/p"
    there = bucket.names(folder)
    assert {name.removeprefix(f"{folder}/").partition(".")[0] for name in there} == {"made_from", "a/250-0"}
    bucket.delete_all(folder)
    wanted.keep()
    assert bucket.names(folder) == there


def test_a_cache_that_is_deleted_while_it_is_used_is_filled_and_held_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node("one")
    one.ensure(one.path("store", "s"), KIND, {}, fill)
    two = node("two")
    path = two.need(two.path("store", "s"))
    with (path / "content").open("rb") as stream:
        shutil.rmtree(two.artifacts)
        assert stream.read() == b"slices"
    assert artifact.is_sound(two.need(path), KIND)
    monkeypatch.setenv(shelf.CACHE_GB, "0")
    shelf.make_room(two.artifacts, 1)
    assert artifact.is_complete(path)
    shelf.release()
    shelf.make_room(two.artifacts, 1)
    assert not artifact.is_complete(path)
