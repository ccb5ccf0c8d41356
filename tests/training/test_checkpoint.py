"""What training leaves on disk survives damage by being recognised, and runs no code when it is read."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cddpm.errors import ArtifactError
from cddpm.training import checkpoint
from cddpm.training.checkpoint import State

NAME = "training"


def a_state(images: int) -> State:
    torch.manual_seed(images)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.rand(4, 3)).sum().backward()
        optimizer.step()
    average = {name: w + 1 for name, w in model.state_dict().items()}
    return State(images, model.state_dict(), average, optimizer.state_dict(), 0.1 + images, 2)


@pytest.fixture
def states(tmp_path: Path) -> Path:
    for images in (8, 16, 24):
        checkpoint.save_state(tmp_path, a_state(images), NAME)
    return tmp_path


def equal(a: State, b: State) -> bool:
    return (
        (a.images, a.loss_sum, a.loss_steps) == (b.images, b.loss_sum, b.loss_steps)
        and all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights | b.weights)
        and all(torch.equal(a.average[n], b.average[n]) for n in a.average | b.average)
        and all(
            torch.equal(a.optimizer["state"][i][k], b.optimizer["state"][i][k])
            for i, slot in (a.optimizer["state"] | b.optimizer["state"]).items()
            for k in slot
        )
        and _plain(a) == _plain(b)
    )


def _plain(state: State) -> str:
    return json.dumps(state.optimizer["param_groups"], sort_keys=True)


def test_a_state_comes_back_bit_for_bit_and_two_are_kept(states: Path) -> None:
    assert sorted(p.name for p in states.iterdir()) == ["images-000000000016", "images-000000000024"]
    assert equal(checkpoint.newest_state(states, NAME), a_state(24))


def test_never_saved_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest_state(tmp_path / "nothing", NAME) is None


def newest(states: Path) -> Path:
    return states / "images-000000000024"


def truncate(states: Path) -> None:
    path = newest(states) / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])


def flip(name: str, at: int) -> Callable[[Path], None]:
    def damage(states: Path) -> None:
        data = bytearray((newest(states) / name).read_bytes())
        data[at % len(data)] ^= 1
        (newest(states) / name).write_bytes(data)

    return damage


def cut_manifest(states: Path) -> None:
    path = newest(states) / "manifest.json"
    path.write_text(path.read_text()[:40])


DAMAGES = {
    "truncated": truncate,
    "bit of the weights": flip(checkpoint.WEIGHTS, -3),
    "bit of the weights' header": flip(checkpoint.WEIGHTS, 12),
    "bit of the average": flip("average.safetensors", -1),
    "bit of the optimizer": flip(checkpoint.TENSORS, -2),
    "bit of the position": flip(checkpoint.PROGRESS, 20),
    "manifest cut": cut_manifest,
    "manifest empty": lambda s: (newest(s) / "manifest.json").write_text(""),
    "manifest missing": lambda s: (newest(s) / "manifest.json").unlink(),
    "file missing": lambda s: (newest(s) / checkpoint.TENSORS).unlink(),
    "all files missing": lambda s: [p.unlink() for p in newest(s).iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_previous_state_takes_the_place_of_a_damaged_one(
    states: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](states)
    with caplog.at_level(logging.WARNING):
        assert equal(checkpoint.newest_state(states, NAME), a_state(16))
    assert str(newest(states)) in caplog.text


def test_a_deleted_state_leaves_the_previous_one(states: Path) -> None:
    shutil.rmtree(newest(states))
    assert equal(checkpoint.newest_state(states, NAME), a_state(16))


def test_a_damaged_state_is_replaced_when_its_place_is_reached_again(states: Path) -> None:
    truncate(states)
    checkpoint.save_state(states, a_state(24), NAME)
    assert equal(checkpoint.newest_state(states, NAME), a_state(24))


def test_no_intact_state_is_an_error_not_a_new_start(states: Path) -> None:
    for path in states.iterdir():
        (path / checkpoint.PROGRESS).write_text("{}")
    with pytest.raises(ArtifactError, match="none of its 2 saved states is intact; delete this folder"):
        checkpoint.newest_state(states, NAME)


def test_a_state_of_another_training_is_refused(states: Path) -> None:
    with pytest.raises(ArtifactError, match="none of its 2"):
        checkpoint.newest_state(states, "another")


def test_an_unfinished_write_is_no_state(states: Path) -> None:
    shutil.copytree(newest(states), states / ".images-000000000032.1234abcd.partial")
    assert checkpoint.newest_state(states, NAME).images == 24


def test_history_keeps_the_first_of_repeated_points(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for row in ({"images": 8.0, "a": 1.0}, {"images": 16.0, "a": 2.0}, {"images": 16.0, "a": 3.0}, {"images": 8.0}):
        checkpoint.append_history(path, row)
    assert checkpoint.read_history(path) == [{"images": 8.0, "a": 1.0}, {"images": 16.0, "a": 2.0}]


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_cut_line_is_dropped_and_does_not_swallow_the_next(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "history.jsonl"
    for images in (8.0, 16.0):
        checkpoint.append_history(path, {"images": images, "a": 1.5})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:cut])
    kept = 16.0 if cut >= len(lines[1]) - 1 else 8.0
    assert checkpoint.read_history(path)[-1]["images"] == kept
    checkpoint.append_history(path, {"images": 24.0, "a": 1.5})
    assert [r["images"] for r in checkpoint.read_history(path)] == [8.0, *([16.0] if kept == 16.0 else []), 24.0]


def test_a_history_without_file_is_empty(tmp_path: Path) -> None:
    assert checkpoint.read_history(tmp_path / "none.jsonl") == []


def test_weights_of_another_architecture_are_listed() -> None:
    wanted = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    weights = {
        "0.weight": torch.zeros(2, 4),
        "0.bias": torch.zeros(2),
        "1.weight": torch.zeros(2, 2),
        "x": torch.zeros(1),
    }
    before = [p.clone() for p in wanted.parameters()]
    with pytest.raises(ArtifactError) as caught:
        checkpoint.fill_module(wanted, weights, "here")
    assert str(caught.value) == (
        "here: weights of another architecture: missing 1.bias; unknown x; 0.weight is (2, 4), needed (2, 3)"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, wanted.parameters(), strict=True))


def test_long_lists_of_faults_are_shortened() -> None:
    with pytest.raises(ArtifactError, match=r"missing 0\.weight, 0\.bias, 1\.weight, 1\.bias, 2\.weight and 3 more$"):
        checkpoint.fill_module(nn.Sequential(*(nn.Linear(1, 1) for _ in range(4))), {}, "here")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [lambda o, f: f.write_bytes(pickle.dumps(o)), torch.save], ids=["pickle", "torch.save"]
)
def test_a_pickle_in_disguise_is_refused_and_never_run(tmp_path: Path, save: Callable[..., None]) -> None:
    trap, path = tmp_path / "trap", tmp_path / checkpoint.WEIGHTS
    save(Payload(trap), path)
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        checkpoint.load_weights(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))  # the trap works
    assert trap.exists()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        checkpoint.load_weights(tmp_path / checkpoint.WEIGHTS)
