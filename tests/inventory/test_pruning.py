"""Laws of freeing: what is needed stays, nothing dangles, the cheap and old goes first, and no more than must."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shelf import Shelf
from tiny_training import tiny_config

from cddpm import artifact
from cddpm.errors import ArtifactError, StorageError
from cddpm.inventory.entry import Entry, damage, referrers, survey
from cddpm.inventory.pruning import DAY_SECONDS, Policy, alone, carry_out, plan, protected, total_bytes, with_ancestors
from cddpm.reconstruct.part import claim, write_part
from cddpm.reconstruct.reconstruction import View
from cddpm.training.stages import checkpoint_identity


def prune(shelf: Shelf, models: Any = None, **policy: Any) -> set[str]:
    """Free by the policy; returns what is gone."""
    before, entries = shelf.names(), survey(shelf.artifacts)
    campaigns = referrers(shelf.output_dir, [e.fingerprint for e in entries if e.kind == "store"])
    kept = protected(entries, campaigns, models or {})
    steps = plan(entries, kept, frozenset(n for c in campaigns for n in c.named), Policy(**policy))
    done = list(carry_out(steps, shelf.output_dir, []))
    assert total_bytes(survey(shelf.artifacts)) == total_bytes(entries) - sum(size for _, size in done)
    assert [fault for entry in survey(shelf.artifacts) for fault in damage(entry)] == []
    assert not list(shelf.artifacts.rglob("*.partial"))
    return before - shelf.names()


OF_NOBODY = {
    "checkpoint/c2",
    "prediction/p2",
    "prediction/p2/a/250",
    "prediction/p2/b/250",
    "reconstruction/r3",
    "score/k3",
}
UNNAMED_VIEW = {"reconstruction/r2", "prediction/p1/a/500", "prediction/p1/b/500"}
"""r2, and the parts that only it needs or nobody does."""


def test_unreferenced_frees_what_no_sweep_names(shelf: Shelf) -> None:
    assert prune(shelf, unreferenced=True) == OF_NOBODY | UNNAMED_VIEW


def test_without_conditions_everything_of_finished_sweeps_goes(shelf: Shelf) -> None:
    before = shelf.names()
    assert prune(shelf, keep_days=0) == before


def test_what_is_young_stays_with_its_parents(shelf: Shelf) -> None:
    gone = prune(shelf, keep_days=12)
    assert gone == OF_NOBODY
    assert prune(shelf, keep_days=12) == set()


def test_what_a_registered_model_was_made_from_stays(shelf: Shelf) -> None:
    models = {"cddpm version 1": ["s1", "c2", "r3"]}
    gone = prune(shelf, models, keep_days=0)
    assert not gone & {"store/s1", "checkpoint/c2", "prediction/p2", "prediction/p2/a/250", "reconstruction/r3"}
    assert {"checkpoint/c1", "encoder/e1", "score/k3", "prediction/p1"} <= gone


def test_a_needed_prediction_keeps_the_needed_parts_alone(shelf: Shelf) -> None:
    gone = prune(shelf, {"cddpm version 1": ["r1"]}, keep_days=0)
    assert {name for name in gone if "/p1" in name} == {"prediction/p1/a/500", "prediction/p1/b/500"}


def test_space_is_freed_cheapest_and_oldest_first_and_no_more_than_needed(shelf: Shelf) -> None:
    total = total_bytes(survey(shelf.artifacts))
    order: list[str] = []
    while True:
        gone = prune(shelf, maximum_bytes=total_bytes(survey(shelf.artifacts)) - 1)
        if not gone:
            break
        order += sorted(gone)
    firsts = [name for name in order if name.count("/") == 1]
    assert firsts.index("score/k3") < firsts.index("score/k1") < firsts.index("reconstruction/r3")
    assert firsts.index("reconstruction/r3") < firsts.index("reconstruction/r1") < firsts.index("prediction/p2")
    assert firsts[-4:] == ["checkpoint/c2", "checkpoint/c1", "encoder/e1", "store/s1"]  # an encoder after its children
    assert total_bytes(survey(shelf.artifacts)) == 0 < total


def test_a_limit_that_holds_frees_nothing(shelf: Shelf) -> None:
    assert prune(shelf, maximum_bytes=total_bytes(survey(shelf.artifacts))) == set()


def test_rules_narrow_each_other(shelf: Shelf) -> None:
    assert prune(shelf, unreferenced=True, keep_days=14.5) == set()  # the score is younger, and all stands on it
    assert prune(shelf, unreferenced=True, keep_days=12.5) == OF_NOBODY


def test_an_unfinished_sweep_keeps_what_it_needs(shelf: Shelf) -> None:
    config = tiny_config()
    name = checkpoint_identity(config, "s1")[0]
    shelf.sealed("checkpoint", name, 100, days=50, store="s1")
    shelf.prediction("p5", name, "a", (250,), days=50)
    shelf.trial(shelf.campaign("sweeps", "half", finished=False), 0, config)
    gone = prune(shelf, keep_days=0)
    assert not gone & {f"checkpoint/{name}", "prediction/p5", "prediction/p5/a/250", "store/s1"}
    assert {"checkpoint/c1", "checkpoint/c2", "encoder/e1"} <= gone


def test_a_running_sweep_keeps_all_that_was_made_from_its_store(shelf: Shelf) -> None:
    shelf.sealed("store", "s2", 100, days=50)
    shelf.sealed("checkpoint", "c5", 100, days=50, store="s2")
    with artifact.lock(shelf.output_dir / "sweeps" / "quick" / ".lock"):
        entries = survey(shelf.artifacts)
        kept = protected(entries, referrers(shelf.output_dir, ["s1", "s2"]), {})
        gone = {step.entry.fingerprint for step in plan(entries, kept, frozenset(), Policy(keep_days=0))}
    assert gone == {"s2", "c5"}


def test_a_sweep_that_starts_meanwhile_ends_the_freeing(shelf: Shelf) -> None:
    entries, before = survey(shelf.artifacts), shelf.names()
    steps = plan(entries, {}, frozenset(), Policy(keep_days=0))
    with (
        artifact.lock(shelf.output_dir / "sweeps" / "quick" / ".lock"),
        pytest.raises(ArtifactError, match="sweep quick has started meanwhile"),
    ):
        list(carry_out(steps, shelf.output_dir, []))
    assert shelf.names() == before


def test_a_volume_that_is_being_predicted_is_left_alone(shelf: Shelf, caplog: Any) -> None:
    entries = survey(shelf.artifacts)
    steps = [s for s in plan(entries, {}, frozenset(), Policy(keep_days=0)) if s.entry.kind == "prediction"]
    with claim(shelf.artifacts / "prediction" / "p2", "a"):
        list(carry_out(steps, shelf.output_dir, []))
    assert "volume 'a' is being predicted" in caplog.text
    assert {name for name in shelf.names() if "prediction" in name} == {"prediction/p2", "prediction/p2/a/250"}


def test_a_training_under_way_stays_and_an_abandoned_one_goes(shelf: Shelf) -> None:
    work = shelf.artifacts / "checkpoint" / ".work"
    for name in ("c8", "c9"):
        (work / name).mkdir(parents=True)
        (work / name / "images-0001").write_bytes(bytes(100))
        shelf.aged(work / name, 30)
    with artifact.lock(work / "c8.lock"):
        prune(shelf, unreferenced=True)
    assert sorted(path.name for path in work.iterdir() if path.is_dir()) == ["c8"]


def test_leftovers_go_after_a_day(shelf: Shelf) -> None:
    young, old = (shelf.artifacts / "checkpoint" / f".{name}.12ab.partial" for name in ("young", "old"))
    for path in (young, old):
        path.mkdir()
    shelf.aged(old, 2)
    entries = survey(shelf.artifacts)
    steps = plan(entries, {}, frozenset(), Policy(unreferenced=True))
    found = {step.entry.path for step in steps if step.entry.kind == "leftover"}
    assert found == {old}


def test_what_was_imported_and_its_package_stay(shelf: Shelf) -> None:
    shelf.sealed("checkpoint", "c7", 100, days=99, imported={"file": "last.ckpt"})
    shelf.sealed("checkpoint", "c6", 100, days=99, store="s1")
    shelf.sealed("model", "m1", 100, days=99, checkpoint="c6")
    gone = prune(shelf, keep_days=0)
    assert not gone & {"checkpoint/c7", "checkpoint/c6", "model/m1", "store/s1"}


def test_one_at_a_time(shelf: Shelf) -> None:
    with alone(shelf.artifacts), pytest.raises(StorageError, match="another process"), alone(shelf.artifacts):
        pass


# Any graph, any policy


def drawn(seed: int) -> tuple[list[Entry], dict[str, str], frozenset[str]]:
    """Artifacts without files."""
    draw, now = random.Random(seed), time.time()
    entries: list[Entry] = []

    def add(kind: Any, origins: dict[str, str], **more: Any) -> str:
        name = f"{kind}-{len(entries)}"
        size = draw.randrange(1, 1000) + sum(more.get("parts", {}).values())
        age = draw.uniform(0, 50) * DAY_SECONDS
        entries.append(Entry(kind, name, Path(name), size, now - age, origins, **more))
        return name

    stores = [add("store", {}) for _ in range(draw.randint(1, 2))]
    encoders = [add("encoder", {"store": draw.choice(stores)}) for _ in range(2)]
    models = [
        add("checkpoint", {"store": draw.choice(stores), "encoder": draw.choice(encoders)})
        for _ in range(draw.randint(1, 4))
    ]
    for model in models:
        for _ in range(draw.randint(0, 2)):
            levels = draw.sample(range(1, 9), 4)
            parts = {(v, (level, 0)): draw.randrange(1, 500) for v in "abc" for level in levels}
            prediction = add("prediction", {"checkpoint": model, "guide": draw.choice(models)}, parts=parts)
            for _ in range(draw.randint(0, 3)):
                view = View(tuple(draw.sample("abc", 2)), tuple(draw.sample(levels, 2)), (0,))
                name = add("reconstruction", {"prediction": prediction, "checkpoint": model}, view=view)
                for _ in range(draw.randint(0, 2)):
                    add("score", {"reconstruction": name})
    names = [entry.fingerprint for entry in entries]
    kept = dict.fromkeys(draw.sample(names, draw.randint(0, 3)), "needed")
    return entries, kept, frozenset(draw.sample(names, draw.randint(0, 4)))


@pytest.mark.parametrize("seed", range(60))
def test_laws_on_any_graph(seed: int) -> None:
    draw, (entries, kept, named) = random.Random(seed), drawn(seed)
    total = total_bytes(entries)
    policy = Policy(
        keep_days=draw.choice([None, 5, 25]),
        maximum_bytes=draw.choice([None, 0, total // 2, total * 9 // 10]),
        unreferenced=draw.random() < 0.4,
    )
    steps = plan(entries, kept, named, policy)
    whole = {step.entry.fingerprint for step in steps if step.parts is None}
    parts = {(step.entry.fingerprint, key) for step in steps for key in step.parts or ()}
    left = [entry for entry in entries if entry.fingerprint not in whole]
    needed = with_ancestors(entries, {**kept, **(dict.fromkeys(named, "") if policy.unreferenced else {})})
    assert not whole & needed.keys()
    for entry in left:
        assert not entry.parents & whole
        for prediction in entry.parents:
            assert not {(prediction, key) for key in entry.needs} & parts
    assert not any(name in kept for name, _ in parts)
    if policy.keep_days is not None:
        young = {e.fingerprint for e in entries if time.time() - e.modified < (policy.keep_days - 0.01) * DAY_SECONDS}
        assert not whole & young
    freed = total - left_bytes(entries, whole, parts)
    if policy.maximum_bytes is not None and steps:
        without_last = freed - last_bytes(steps, parts)
        assert total - without_last > policy.maximum_bytes
    everything = plan(entries, kept, named, Policy(policy.keep_days, None, policy.unreferenced))
    if policy.maximum_bytes is not None and total - freed > policy.maximum_bytes:
        assert [s.entry.fingerprint for s in everything] == [s.entry.fingerprint for s in steps]


def left_bytes(entries: list[Entry], whole: set[str], parts: set[Any]) -> int:
    kept = [entry for entry in entries if entry.fingerprint not in whole]
    gone = {name: [key for other, key in parts if other == name] for name, _ in parts}
    return sum(entry.bytes - sum(entry.parts[key] for key in gone.get(entry.fingerprint, ())) for entry in kept)


def last_bytes(steps: list[Any], parts: set[Any]) -> int:
    """What the last artifact freed, with the parts that went with it."""
    last = [steps[-1]]
    while last[0].parts is not None and len(last) < len(steps) and steps[-len(last)].parts is not None:
        last.insert(0, steps[-len(last) - 1])
    return sum(step.bytes for step in last)


def test_parts_that_came_after_the_survey_stay(shelf: Shelf) -> None:
    entries = survey(shelf.artifacts)
    steps = plan(entries, {"r1": ""}, frozenset(), Policy(keep_days=0))
    write_part(shelf.artifacts / "prediction" / "p1", "b", {("c", 750, 0): np.ones((2, 8, 8), np.float32)})
    list(carry_out(steps, shelf.output_dir, []))
    assert "prediction/p1/b/750" in shelf.names()
