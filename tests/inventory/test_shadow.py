"""An object store is listed, verified and freed as the folder that it was filled from."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_shelf
from shelf import Shelf
from tiny_training import tiny_config

from cddpm import shelf as node_shelf
from cddpm.backup import Backup
from cddpm.campaign import Campaign
from cddpm.errors import ArtifactError, StorageError
from cddpm.inventory import pruning
from cddpm.inventory.entry import Entry, damage, referrers, survey
from cddpm.inventory.pruning import Policy
from cddpm.inventory.shadow import Shadow, shadow
from cddpm.reconstruct.part import parts_of, write_part
from cddpm.storage import Bucket
from cddpm.training.stages import checkpoint_identity

URI = "memory://bucket/place"


@pytest.fixture
def objects() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        yield from stored_shelf.memory(patch)


def facts(entries: list[Entry]) -> list[Any]:
    """All that is told of artifacts but where they lie and the second."""
    return [
        (e.kind, e.fingerprint, e.bytes, round(e.modified / 1e4), e.made_from, e.view, e.parts, e.fault)
        for e in entries
    ]


def plan(entries: list[Entry], kept: dict[str, str], campaigns: Any, policy: Policy) -> list[pruning.Step]:
    return pruning.plan(entries, kept, frozenset(n for one in campaigns for n in one.named), policy)


def stores(entries: list[Entry]) -> list[str]:
    return [one.fingerprint for one in entries if one.kind == "store"]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 12))])
def test_a_store_is_seen_and_freed_as_its_folder(objects: dict[str, Any], tmp_path: Path, seed: int) -> None:
    kept = stored_shelf.drawn(tmp_path / "outputs", seed)
    bucket = stored_shelf.stored(kept, URI)
    stored_shelf.aged(objects, kept)
    draw = random.Random(seed)
    with shadow(URI) as far:
        entries, here = far.survey(), survey(kept.artifacts)
        assert facts(entries) == facts(here)
        assert far.damage(entries) == [damage_ for one in here for damage_ in damage(one)] == []
        assert sum(far.sizes(entries).values()) <= sum(len(objects[name].getvalue()) for name in objects)
        campaigns = far.referrers(stores(entries), tmp_path)
        own = referrers(kept.output_dir, stores(here))
        as_running = [replace(one, state="running") if one.state == "unfinished" else one for one in own]
        assert [replace(one, folder=Path()) for one in campaigns] == [replace(one, folder=Path()) for one in as_running]
        models = {"cddpm version 1": draw.sample([one.fingerprint for one in entries], draw.randint(0, 1))}
        policy = Policy(
            draw.choice([None, 5, 40]),
            draw.choice([None, pruning.total_bytes(entries) // 2]),
            unreferenced=draw.random() < 0.5,
        )
        protected = far.protected(entries, campaigns, models, time.time())
        assert protected == pruning.protected(here, as_running, models)
        before = dict(objects)
        steps = plan(entries, protected, campaigns, policy)
        assert objects == before
        done = list(far.carry_out(steps))
    for _ in pruning.carry_out(plan(here, protected, campaigns, policy), kept.output_dir, []):
        pass
    assert stored_shelf.names(bucket) == kept.names()
    with shadow(URI) as left:
        now = survey(kept.artifacts)
        assert {one.fingerprint: one.made_from for one in left.survey()} == {
            one.fingerprint: one.made_from for one in now
        }
        assert pruning.total_bytes(left.survey()) == pruning.total_bytes(now)
        assert left.damage(left.survey()) == []
        assert pruning.total_bytes(left.survey()) == pruning.total_bytes(entries) - sum(size for _, size in done)


@pytest.fixture
def far(objects: dict[str, Any], shelf: Shelf) -> Callable[[], Any]:
    """The full shelf in a store, and its shadow whenever it is asked for."""
    stored_shelf.stored(shelf, URI)
    stored_shelf.aged(objects, shelf)
    return lambda: shadow(URI)


def gone_by(found: Shadow, **policy: Any) -> set[str]:
    entries = found.survey()
    campaigns = found.referrers(stores(entries), Path())
    steps = plan(entries, found.protected(entries, campaigns, {}, found.now()), campaigns, Policy(**policy))
    return {step.entry.fingerprint for step, _ in found.carry_out(steps) if step.parts is None}


def test_an_unfinished_sweep_keeps_all_that_it_may_use(far: Any, shelf: Shelf) -> None:
    config = tiny_config()
    name = checkpoint_identity(config, "s1")[0]
    shelf.trial(shelf.campaign("sweeps", "half", finished=False), 0, config)
    bucket = stored_shelf.stored(shelf, URI)
    bucket.write(f"artifacts/checkpoint/.work/{name}/images-1.json", b"{}")
    with far() as found:
        assert gone_by(found, keep_days=0) == set()  # it may run, and all was made from its store
    bucket.write("sweeps/half/finished.json", b"{}")
    with far() as found:
        assert {"c1", "c2", "s1"} <= gone_by(found, keep_days=0)


def test_a_sweep_that_begins_or_goes_on_meanwhile_ends_the_freeing(far: Any, shelf: Shelf) -> None:
    bucket = Bucket(URI)
    before = bucket.names("artifacts")
    for name in ("new", "quick"):
        with far() as found:
            bucket.write(f"sweeps/{name}/writer", f"4567-{name}".encode())
            with pytest.raises(ArtifactError, match=rf"sweeps/{name} has begun or gone on meanwhile"):
                gone_by(found, keep_days=0)
        for file in ("identity", "finished"):
            bucket.write(f"sweeps/{name}/{file}.json", b"{}")
    with far() as found:
        Backup(shelf.output_dir / "sweeps" / "quick", URI, "sweeps/quick").withdraw("finished.json")
        with pytest.raises(ArtifactError, match="sweeps/quick has begun or gone on meanwhile"):
            gone_by(found, keep_days=0)
    assert bucket.names("artifacts") == before


def test_a_sweep_that_has_just_begun_may_need_everything(far: Any) -> None:
    bucket = Bucket(URI)
    before = bucket.names("artifacts")
    bucket.write("sweeps/new/writer", b"4567")
    with far() as found, pytest.raises(ArtifactError, match="sweeps/new has just begun"):
        gone_by(found, keep_days=0)
    assert bucket.names("artifacts") == before


def test_a_sweep_that_starts_on_this_machine_ends_the_freeing(far: Any, tmp_path: Path) -> None:
    """It checks scans for minutes before the store hears of it."""
    bucket = Bucket(URI)
    before = bucket.names("artifacts")
    here = tmp_path / "here"
    with far() as found:
        entries = found.survey()
        steps = plan(entries, {}, [], Policy(keep_days=0))
        with Campaign("sweep", "next", here / "sweeps" / "next", {}).held(False, lambda: None):
            with pytest.raises(ArtifactError, match="sweep next has begun or gone on meanwhile"):
                list(found.carry_out(steps, here, []))
            assert bucket.names("artifacts") == before
            assert list(found.carry_out(steps, here, ["sweep next"]))


def test_what_was_made_again_meanwhile_stays_whole(far: Any, shelf: Shelf) -> None:
    """A part that was sent anew after the look is one of somebody else's artifact."""
    bucket = Bucket(URI)
    with far() as found:
        steps = plan(found.survey(), {}, [], Policy(keep_days=0))
        again = {name: bucket.read(name) for name in bucket.names("artifacts/checkpoint/c2")}
        for name, data in again.items():
            bucket.write(name, data or b"")
        list(found.carry_out(steps))
    assert bucket.names("artifacts/checkpoint/c2").keys() == again.keys()


def test_a_store_that_is_away_is_no_damage(far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Bucket, name: str, target: Path) -> str:
        raise StorageError(f"{name}: the store is overloaded")

    with far() as found:
        monkeypatch.setattr(Bucket, "download", busy)
        with pytest.raises(StorageError, match="overloaded"):
            found.damage(found.survey())


def test_a_state_of_a_training_stays_for_a_day(far: Any, objects: dict[str, Any]) -> None:
    for name in ("young", "old"):
        Bucket(URI).write(f"artifacts/checkpoint/.work/{name}/parts/00ff", b"state")
    for name, held in objects.items():
        if "/.work/old/" in name:
            held.created -= stored_shelf.datetime.timedelta(days=2)
    with far() as found:
        kinds = {one.fingerprint: one.kind for one in found.survey()}
        assert (kinds["young"], kinds["old"]) == ("unfinished", "unfinished")
        assert "old" in (gone := gone_by(found, unreferenced=True))
        assert "young" not in gone


def test_what_an_upload_left_goes_after_a_day_unless_it_was_ended(far: Any, objects: dict[str, Any]) -> None:
    bucket = Bucket(URI)
    for name in ("young", "old", "ended", "c1"):
        bucket.write(f"artifacts/checkpoint/{name}/parts/00ff", b"half")
    for name, held in objects.items():
        if name.endswith("00ff") and "/young/" not in name:
            held.created -= stored_shelf.datetime.timedelta(days=2)
    with far() as found:
        there = {one.fingerprint for one in found.survey() if one.kind == "leftover"}
        assert there == {f".{name}.upload.partial" for name in ("young", "old", "ended", "c1")}
        bucket.write("artifacts/checkpoint/ended/manifest.json", json.dumps({"files": {"weights": "00ff"}}).encode())
        gone_by(found, maximum_bytes=1, keep_days=1)
    left = {name.split("/")[2] for name in bucket.names("artifacts/checkpoint") if name.endswith("00ff")}
    assert left == {"young", "ended"}


def test_a_prediction_whose_origin_only_its_views_tell_is_known(far: Any) -> None:
    bucket = Bucket(URI)
    for name in ("p1", "p2"):
        bucket.delete(f"artifacts/prediction/{name}/made_from.json")
    bucket.delete("artifacts/reconstruction/r3/manifest.json")
    with far() as found:
        entries = {one.fingerprint: one for one in found.survey()}
        assert entries["p1"].parents == {"c1"}
        assert entries["p2"].fault is not None
        running = [replace(one, state="running") for one in found.referrers(["s1"], Path())]
        kept = found.protected(list(entries.values()), running, {}, time.time())
        assert "its origin is unknown" in kept["p2"]
        assert "p2" not in found.protected(list(entries.values()), found.referrers(["s1"], Path()), {}, time.time())


def test_a_store_that_tells_no_times_frees_nothing_for_its_age(far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Bucket.objects
    monkeypatch.setattr(
        Bucket, "objects", lambda self, prefix="": {name: (size, 0) for name, (size, _) in timed(self, prefix).items()}
    )
    with far() as found:
        assert gone_by(found, keep_days=1) == set()
        assert "c2" in gone_by(found, unreferenced=True)


HARMS: dict[str, Callable[[str, bytes], bytes | None]] = {
    "artifacts/checkpoint/c1/parts": lambda name, data: b"x" + data[1:],
    "artifacts/encoder/e1/parts": lambda name, data: None,
    "artifacts/prediction/p1/a": lambda name, data: data[:-1],
    "artifacts/score/k1": lambda name, data: data.replace(b"dice", b"dicf"),
    "artifacts/store/s1/manifest.json": lambda name, data: b"{",
}


@pytest.mark.slow
@pytest.mark.parametrize("place", HARMS)
def test_a_damaged_object_is_named_by_its_address(far: Any, place: str) -> None:
    bucket = Bucket(URI)
    for name in bucket.names("artifacts"):
        if name.startswith(place) and not name.endswith("made_from.json"):
            data = HARMS[place](name, bucket.read(name) or b"")
            bucket.delete(name) if data is None else bucket.write(name, data)
    with far() as found:
        faults = found.damage(found.survey())
        assert faults
        folder = place.rpartition("/")[0] if place.endswith(("parts", "a", "json")) else place
        assert all(fault.startswith(f"{URI}/{folder}") for fault in faults), faults
        assert str(found.folder) not in "".join(faults)


@pytest.mark.parametrize("listed", ["../../../outside", "/tmp/cddpm-outside"])
def test_a_manifest_that_climbs_lays_nothing_elsewhere(objects: dict[str, Any], listed: str) -> None:
    bucket = Bucket(URI)
    manifest = {"kind": "training checkpoint", "fingerprint": "c", "made_from": {}, "files": {listed: "00ff"}}
    bucket.write("artifacts/checkpoint/c/manifest.json", json.dumps(manifest).encode())
    bucket.write("artifacts/checkpoint/c/parts/00ff", b"x")
    with shadow(URI) as found:
        assert all(path.is_relative_to(found.artifacts) for path in found.objects)
        assert not (found.folder / "outside").exists()
        assert not Path("/tmp/cddpm-outside").exists()


def test_parts_that_came_after_the_look_stay(far: Any, shelf: Shelf) -> None:
    with far() as found:
        steps = [
            step
            for step in pruning.plan(found.survey(), {"r1": ""}, frozenset(), Policy(keep_days=0))
            if step.entry.fingerprint == "p1"
        ]
        assert all(step.parts is not None for step in steps)
        folder = shelf.artifacts / "prediction" / "p1"
        new = write_part(folder, "b", {("c", 750, 0): np.ones((2, 8, 8), np.float32)})
        node_shelf.Shelf(shelf.artifacts, URI).share(new)
        list(found.carry_out(steps))
    left = stored_shelf.names(Bucket(URI))
    assert {name for name in left if name.startswith("prediction/p1/")} == {
        "prediction/p1/a/250",
        "prediction/p1/b/250",
        "prediction/p1/b/750",
    }
    assert parts_of(folder, "b").keys() == {(250, 0), (500, 0), (750, 0)}
