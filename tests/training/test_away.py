"""A training whose states are kept in an object store: nodes are cache folders, and die."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3_server
from tiny_training import tiny_config

from cddpm import artifact, shelf, storage
from cddpm.errors import ArtifactError, StorageError
from cddpm.shelf import Shelf
from cddpm.training import away, checkpoint, stages
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.ranks import Ranks

CONFIG = tiny_config(
    pretraining__enabled=False, training__images=160, training__evaluations=4, training__keep="best-loss"
)
Node = Callable[[str], stages.Place]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server.moto(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def node(port: int, tmp_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    for name, value in s3_server.environment(port).items():
        monkeypatch.setenv(name, value)
    storage.opened.cache_clear()

    def on(name: str) -> stages.Place:
        monkeypatch.setenv(shelf.CACHE, str(tmp_path / name))
        kept = Shelf.of(f"s3://tests/{tmp_path.name}")
        return stages.Place(kept.artifacts, store_path, kept.storage)

    return on


def train(place: stages.Place, stop_after: int = 10**9) -> Path:
    """Train, asked to stop once so many images were seen."""
    seen = [0]

    def progress(stage: str, images: int, budget: int, loss: float) -> None:
        seen[0] = images

    hooks = Hooks(progress=progress, stop=lambda: seen[0] >= stop_after)
    return stages.train(CONFIG, place, Ranks(), hooks).checkpoint


def weights(path: Path) -> dict[str, list[float]]:
    return {
        name: tensor.flatten().tolist() for name, tensor in checkpoint.load_weights(path / checkpoint.WEIGHTS).items()
    }


def history(path: Path) -> list[dict[str, float]]:
    rows = checkpoint.read_history(path / checkpoint.HISTORY)
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def work_of(place: stages.Place) -> Path:
    name = stages.checkpoint_identity(CONFIG, stages.SliceStore.open(place.store).fingerprint)[0]
    return place.artifacts / stages.CHECKPOINT / ".work" / name


def test_a_training_goes_on_where_every_machine_was_lost(node: Node, store_path: Path, tmp_path: Path) -> None:
    undisturbed = train(stages.Place(tmp_path / "alone", store_path))
    first = node("first")
    with pytest.raises(Interrupted):
        train(first, stop_after=80)
    shutil.rmtree(first.artifacts)
    second = node("second")
    there = second.shelf.names(work_of(second))
    assert [name for name in there if "/" not in name]
    found = train(second)
    assert weights(found) == weights(undisturbed)
    assert history(found) == history(undisturbed)
    assert second.shelf.names(work_of(second)) == []  # what was kept to resume from has gone
    third = node("third")
    assert train(third, stop_after=0).name == found.name  # found, not trained
    assert weights(third.shelf.need(third.shelf.path(stages.CHECKPOINT, found.name))) == weights(undisturbed)


def test_the_newest_sound_state_wins_and_none_at_all_is_an_error(node: Node) -> None:
    first = node("first")
    with pytest.raises(Interrupted):
        train(first, stop_after=120)
    work, kept = work_of(first), first.shelf
    states = sorted(name for name in kept.names(work) if "/" not in name)
    assert len(states) == 2
    files = artifact.json.loads(kept.read(work / states[1]) or b"")
    newest = next(digest for name, digest in files.items() if name.endswith(checkpoint.TENSORS))
    kept.write(work / "parts" / newest, b"damaged")
    second = node("second")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cddpm.training.away.logger.warning", lambda text, *rest: said.append(text % rest))
        with pytest.raises(Interrupted):
            train(second, stop_after=0)
    assert "passing over a damaged state" in said[0]
    assert "s3://tests/" in said[0]
    for name in kept.names(work):
        if "/" in name:
            kept.write(work / name, b"damaged")
    with pytest.raises(ArtifactError, match=r"s3://\S+: none of its \d saved states is intact"):
        train(node("third"))


def test_states_that_cannot_be_sent_end_a_training_only_when_that_lasts(node: Node) -> None:
    place = node("first")
    sender, answers = away._Sender(place.shelf, work_of(place)), list[bool]()
    send = sender._send

    def refused(path: Path) -> None:
        answers.append(True)
        raise StorageError("s3://tests: the store is overloaded")

    def saved(images: int) -> None:
        state = checkpoint.State(images, {}, None, {"state": {}, "param_groups": []})
        sender.saved(checkpoint.save_state(work_of(place), state, "name"))
        assert sender._running is not None
        sender._running.exception(timeout=60)

    sender._send = refused  # type: ignore[method-assign]
    for images in range(1, away.MOST_FAILURES + 1):
        saved(images)
    with pytest.raises(StorageError, match=f"overloaded.*{away.MOST_FAILURES} states in a row could not be kept"):
        saved(images + 1)
    assert len(answers) >= away.MOST_FAILURES
    sender._send = send  # type: ignore[method-assign]
    sender.saved(checkpoint.states(work_of(place))[0])
    sender.finish()
    sender.close()
    assert place.shelf.names(work_of(place))


@pytest.mark.nightly
def test_training_goes_on_while_the_store_is_away_and_ends_when_that_lasts(
    node: Node, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.Bucket.__init__, "__defaults__", (1.0,))
    place = node("first")
    with s3_server.Proxy(port, busy=10**6).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        storage.opened.cache_clear()
        sender = away._Sender(place.shelf, work_of(place))

        def saved(images: int) -> None:
            state = checkpoint.State(images, {}, None, {"state": {}, "param_groups": []})
            sender.saved(checkpoint.save_state(work_of(place), state, "name"))
            assert sender._running is not None
            sender._running.exception(timeout=60)

        for images in range(1, away.MOST_FAILURES + 1):
            saved(images)
        with pytest.raises(
            StorageError, match=r"s3://\S+: the store is overloaded .*3 states in a row could not be kept"
        ):
            saved(images + 1)
        proxy.busy = 0
        storage.opened.cache_clear()
        sender.saved(checkpoint.states(work_of(place))[0])
        sender.finish()
        sender.close()
        assert place.shelf.names(work_of(place))


def test_ranks_on_other_nodes_start_from_the_same_state(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank's node has a newer state than the store: it is sent before any rank begins."""
    first = node("first")
    with pytest.raises(Interrupted):
        train(first, stop_after=80)
    kept, work = first.shelf, work_of(first)
    newest = max(name for name in kept.names(work) if "/" not in name)
    kept.delete(work / newest)
    assert checkpoint.states(work)[0].name == newest.removesuffix(".json")
    with pytest.raises(Interrupted):
        train(first, stop_after=0)
    assert newest in kept.names(work)


def test_a_folder_for_storage_keeps_its_states_as_ever(store_path: Path, tmp_path: Path) -> None:
    place = stages.Place(tmp_path / "alone", store_path)
    with pytest.raises(Interrupted):
        train(place, stop_after=80)
    assert {path.name.split("-")[0] for path in work_of(place).iterdir()} <= {"images", "best", "history.jsonl"}
