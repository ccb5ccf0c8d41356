"""Stages are made once and found afterwards, whatever interrupted them; two processes train as one does."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
import tmpfs
import torch
import torch.distributed as dist
from tiny_training import tiny_config, train
from torch import Tensor
from two_ranks import join, launch

from cddpm import artifact
from cddpm.data.store import SliceStore
from cddpm.errors import ArtifactError, StorageError
from cddpm.training import checkpoint, diffusion, prediction, stages
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.preview import Preview
from cddpm.training.ranks import Ranks

QUICK = {
    "pretraining__images": 8,
    "training__images": 16,
    "training__evaluations": 2,
    "training__validation_volumes": 1,
}
PLAIN = {**QUICK, "model__conditioned": False, "diffusion__condition_dropout": 0.0}


def weights(path: Path) -> dict[str, Tensor]:
    artifact.verify(path, path.parent.name)
    return checkpoint.load_weights(path / checkpoint.WEIGHTS)


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def history(path: Path) -> list[dict[str, float]]:
    rows = checkpoint.read_history(path / checkpoint.HISTORY)
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


@pytest.mark.slow
def test_both_stages_are_made_then_found(finished: Any, store_path: Path) -> None:
    assert finished.made.made == ("encoder", "checkpoint")
    reports: list[dict[str, float]] = []
    again = train(finished.config, store_path, finished.place.artifacts, Hooks(report=reports.append))
    assert again == stages.Made(finished.made.checkpoint, finished.made.encoder, ())
    assert reports == []
    assert not list(finished.place.artifacts.glob("*/.work/*/*"))  # nothing is left to resume


@pytest.mark.slow
def test_reports_are_the_history_of_the_model_alone(finished: Any) -> None:
    assert finished.reports == checkpoint.read_history(finished.made.checkpoint / checkpoint.HISTORY)
    assert [r["images"] for r in finished.reports] == [16, 32, 48]


@pytest.mark.slow
def test_the_checkpoint_loads_as_the_model_that_was_trained(finished: Any) -> None:
    model, config = stages.load_model(finished.made.checkpoint, torch.device("cpu"))
    assert config == finished.config
    assert not model.training
    kept = weights(finished.made.checkpoint)
    assert all(torch.equal(kept[n], w) for n, w in model.state_dict().items())


IRRELEVANT = {
    "scoring__median_kernel": 5,
    "scoring__guidance_scale": 2.0,
    "scoring__operating_point": "healthy-fpr",
    "reconstruction__noise_levels": [5],
    "search__objective": "auprc",
    "search__datasets": ["B"],
    "data__unhealthy": ["A"],
    "name": "other",
    "output_dir": "/elsewhere",
    "compute__maximum_failures": 7,
    "tracking__experiment": "other",
}
RELEVANT_TO_BOTH = {"seed": 9, "data__fold": 1, "compute__workers": 2, "encoder__width": 16, "pretraining__images": 12}
RELEVANT_TO_MODEL = {
    "model__dropout": 0.1,
    "diffusion__loss": "l2",
    "diffusion__noise__octaves": 3,
    "training__learning_rate": 1e-4,
    "training__augmentation__enabled": False,
    "training__images": 64,
    "pretraining__enabled": False,
}


@pytest.mark.parametrize("path", IRRELEVANT)
def test_settings_of_later_stages_keep_the_fingerprints(path: str) -> None:
    changed = tiny_config(**{path: IRRELEVANT[path]})
    assert stages.checkpoint_identity(changed, "s") == stages.checkpoint_identity(tiny_config(), "s")
    assert stages.encoder_identity(changed, "s") == stages.encoder_identity(tiny_config(), "s")


@pytest.mark.parametrize("path", [*RELEVANT_TO_BOTH, *RELEVANT_TO_MODEL])
def test_settings_of_the_training_change_the_fingerprints(path: str) -> None:
    changed = tiny_config(**{path: {**RELEVANT_TO_BOTH, **RELEVANT_TO_MODEL}[path]})
    assert stages.checkpoint_identity(changed, "s")[0] != stages.checkpoint_identity(tiny_config(), "s")[0]
    if path in RELEVANT_TO_BOTH:
        assert stages.encoder_identity(changed, "s")[0] != stages.encoder_identity(tiny_config(), "s")[0]
    elif path != "pretraining__enabled":
        assert stages.encoder_identity(changed, "s") == stages.encoder_identity(tiny_config(), "s")


def test_another_store_changes_the_fingerprints() -> None:
    for identity in (stages.encoder_identity, stages.checkpoint_identity):
        assert identity(tiny_config(), "s")[0] != identity(tiny_config(), "t")[0]


def test_a_plain_model_does_not_depend_on_an_encoder_it_has_not() -> None:
    plain = [tiny_config(**{**PLAIN, "encoder__width": width}) for width in (8, 16)]
    assert stages.checkpoint_identity(plain[0], "s") == stages.checkpoint_identity(plain[1], "s")


@pytest.mark.slow
def test_a_second_model_finds_the_encoder(finished: Any, store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").symlink_to(finished.place.artifacts / "encoder")
    values = {k: v for k, v in QUICK.items() if k != "pretraining__images"}
    made = train(tiny_config(**values), store_path, tmp_path)
    assert made.made == ("checkpoint",)
    assert made.encoder.name == finished.made.encoder.name


@pytest.mark.slow
def test_the_pretrained_encoder_starts_the_model(finished: Any, store: SliceStore) -> None:
    rows = store.slice_ids(store.cohort("IXI", "val", 0))
    made = diffusion.DiffusionObjective(
        finished.config, store, rows, Preview(finished.config, store), torch.device("cpu")
    )
    fc = made.model.encoder.fc.weight.clone()
    stages._load_encoder(made.model, finished.made.encoder)
    state = made.model.encoder.state_dict()
    assert all(torch.equal(state[n], w) for n, w in weights(finished.made.encoder).items())
    assert torch.equal(state["fc.weight"], fc)
    assert all(p.requires_grad for p in made.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], marks=pytest.mark.nightly),
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
    ids=["cut", "altered"],
)
def test_what_is_damaged_is_made_again_and_said_once(
    finished: Any, store_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    for made in (finished.made.encoder, finished.made.checkpoint):
        shutil.copytree(made, tmp_path / made.parent.name / made.name)
    file = tmp_path / "checkpoint" / finished.made.checkpoint.name / checkpoint.WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    again = train(finished.config, store_path, tmp_path)
    assert again.made == ("checkpoint",)
    assert train(finished.config, store_path, tmp_path).made == ()
    assert same(again.checkpoint, finished.made.checkpoint)
    said = [record.message for record in caplog.records if "altered or damaged" in record.message]
    assert len(said) == 1
    assert said[0].startswith(f"{file}: ")
    (aside,) = (tmp_path / "checkpoint").glob(f".{again.checkpoint.name}.damaged-*")
    assert said[0].endswith(f"this checkpoint is made again, the damaged one lies in {aside}")


@pytest.mark.slow
def test_a_damaged_encoder_that_the_configuration_names_is_refused(
    finished: Any, store_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.made.encoder, tmp_path / "encoder" / finished.made.encoder.name)
    (tmp_path / "encoder" / finished.made.encoder.name / checkpoint.WEIGHTS).write_bytes(b"x")
    named = tiny_config(**QUICK, pretraining__artifact=finished.made.encoder.name)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: altered or damaged"):
        train(named, store_path, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_refused(finished: Any, tmp_path: Path) -> None:
    folder = tmp_path / "other"

    def fill(target: Path) -> None:
        checkpoint.save_weights(target / checkpoint.WEIGHTS, weights(finished.made.encoder))
        (target / checkpoint.CONFIG).write_bytes((finished.made.checkpoint / checkpoint.CONFIG).read_bytes())

    artifact.create(folder, stages.CHECKPOINT, "other", {}, fill)
    with pytest.raises(
        ArtifactError,
        match=r"other: weights of another architecture: missing null_condition, unet\..* and \d+ more; unknown",
    ):
        stages.load_model(folder, torch.device("cpu"))


@pytest.mark.slow
def test_a_stop_saves_and_the_next_start_ends_bit_equal(finished: Any, store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="train: stopped after 40 images"):
        train(finished.config, store_path, tmp_path, Hooks(stop=lambda: True))
    made = train(finished.config, store_path, tmp_path)
    assert made.made == ("checkpoint",)
    assert same(made.checkpoint, finished.made.checkpoint)
    assert history(made.checkpoint) == history(finished.made.checkpoint)


@pytest.mark.slow
def test_a_trial_waits_for_the_one_that_is_making_its_model(store_path: Path, tmp_path: Path) -> None:
    config, made = tiny_config(**PLAIN), []
    name = stages.checkpoint_identity(config, SliceStore.open(store_path).fingerprint)[0]
    lock = tmp_path / "checkpoint" / ".work" / f"{name}.lock"
    with artifact.lock(lock):
        waiting = threading.Thread(target=lambda: made.append(train(config, store_path, tmp_path)), daemon=True)
        waiting.start()
        time.sleep(0.5)
        assert not list((tmp_path / "checkpoint").glob("*/manifest.json"))
        with pytest.raises(Interrupted, match="stopped while another trial makes this checkpoint"):
            train(config, store_path, tmp_path, Hooks(stop=lambda: True))
    waiting.join(60)
    assert made[0].made == ("checkpoint",)
    assert train(config, store_path, tmp_path).made == ()


@pytest.mark.slow
def test_reconstructions_are_made_once(finished: Any, store: SliceStore) -> None:
    volumes = store.cohort("A", "test")
    seen: list[tuple[Any, ...]] = []
    hooks = Hooks(progress=lambda *a: seen.append(a[:3]))
    arguments = (finished.config, finished.place, finished.made.checkpoint, volumes, Ranks(), hooks)
    first = prediction.reconstruct(*arguments)
    assert seen == [("reconstruction", 1, 1)]
    assert prediction.reconstruct(*arguments) == first
    assert len(seen) == 1


# Killing a real process


def start(store: Path, artifacts: Path, values: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, tiny_training.__file__, str(store), str(artifacts), json.dumps(values)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_two_sweeps_at_once_make_each_stage_once(store_path: Path, tmp_path: Path) -> None:
    """A trial of each has the same settings."""
    both = [start(store_path, tmp_path, QUICK) for _ in range(2)]
    made = [json.loads(process.communicate(timeout=280)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(itertools.chain(*made)) == ["checkpoint", "encoder"]
    found = [path for kind in ("checkpoint", "encoder") for path in (tmp_path / kind).glob("[0-9a-f]*")]
    assert len(found) == 2
    for path in found:
        artifact.verify(path, path.parent.name)
    assert train(tiny_config(**QUICK), store_path, tmp_path).made == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is too small for what a training keeps."""
    with tmpfs.small_disk(tmp_path / "disk", "1m") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_ends_a_training_by_name_and_a_larger_one_goes_on(
    finished: Any, store_path: Path, small_disk: Path
) -> None:
    with pytest.raises(StorageError, match=rf"{small_disk}/.*: no space left while writing; free space"):
        train(finished.config, store_path, small_disk)
    for path in small_disk.glob("*/[0-9a-f]*"):
        artifact.verify(path, path.parent.name)  # what is there is whole
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    made = train(finished.config, store_path, small_disk)
    assert same(made.checkpoint, finished.made.checkpoint)
    assert same(made.encoder, finished.made.encoder)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "starts"), [(0, 1), *(pytest.param(n, 2, marks=pytest.mark.nightly) for n in (1, 2))])
def test_kills_at_random_moments_change_no_bit(
    finished: Any, store_path: Path, tmp_path: Path, seed: int, starts: int
) -> None:
    longer = {"training__images": 96, "training__evaluations": 12, "pretraining__evaluations": 6}
    values = {} if starts == 1 else longer
    moments, artifacts = random.Random(seed), tmp_path / "killed"
    kills = 0
    for _ in range(starts):
        process = start(store_path, artifacts, values)
        while not list(artifacts.rglob("images-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, starts**2))
        process.send_signal(signal.SIGKILL)
        kills += process.wait(30) == -signal.SIGKILL
    assert kills
    made = train(tiny_config(**values), store_path, artifacts)
    plain = train(tiny_config(**values), store_path, tmp_path / "plain") if values else finished.made
    assert same(made.checkpoint, plain.checkpoint)
    assert same(made.encoder, plain.encoder)
    assert history(made.checkpoint) == history(plain.checkpoint)
    assert history(made.encoder) == history(plain.encoder)


# Two real processes


def train_stages(rank: int, folder: Path, store: Path, values: dict[str, Any]) -> None:
    ranks, reports = join(rank, folder), []
    place = stages.Place(folder / "artifacts", store)
    made = stages.train(tiny_config(**values), place, ranks, Hooks(report=reports.append))
    volumes = SliceStore.open(store).cohort("A", "val")
    cache = prediction.reconstruct(tiny_config(**values), place, made.checkpoint, volumes, ranks, Hooks())
    rows = [{k: v for k, v in row.items() if "per_second" not in k} for row in reports]
    (folder / f"rank{rank}.json").write_text(json.dumps([made.checkpoint.name, made.made, cache.name, rows]))
    dist.destroy_process_group()


def gradients(rank: int, folder: Path, store_path: Path) -> None:
    ranks = join(rank, folder)
    parallel, batch = first_batch(store_path, ranks)
    parallel(*batch).backward()
    checkpoint.save_weights(folder / f"rank{rank}", {n: p.grad for n, p in parallel.module.named_parameters()})
    dist.destroy_process_group()


def first_batch(store_path: Path, ranks: Ranks) -> tuple[Any, tuple[Any, ...]]:
    """The model of ``PLAIN``, with weights that are nowhere zero, and this rank's part of its first batch."""
    store, config = SliceStore.open(store_path), tiny_config(**PLAIN)
    rows = store.slice_ids(store.cohort("IXI", "train", 0))
    made = diffusion.DiffusionObjective(config, store, rows, Preview(config, store), ranks.device)
    torch.manual_seed(5)
    for parameter in made.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    made.module.eval()  # no dropout: its masks are drawn per rank
    positions = np.arange(8)[ranks.rank :: ranks.world]
    return ranks.wrap(made.module), made.batch(rows[positions], positions)


@pytest.mark.nightly
@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_the_whole_batch(store_path: Path, tmp_path: Path) -> None:
    module, batch = first_batch(store_path, Ranks())
    module(*batch).backward()
    assert launch(gradients, tmp_path, store_path) == [0, 0]
    for rank in range(2):
        found = checkpoint.load_weights(tmp_path / f"rank{rank}")
        for name, parameter in module.named_parameters():
            assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.nightly
@pytest.mark.slow
def test_two_ranks_without_batch_norm_train_as_one(store_path: Path, tmp_path: Path) -> None:
    values = {**PLAIN, "model__dropout": 0.0}
    one = train(tiny_config(**values), store_path, tmp_path / "one")
    values["compute__workers"] = 2
    assert launch(train_stages, tmp_path, store_path, values) == [0, 0]
    (artifacts,) = (tmp_path / "artifacts" / "checkpoint").glob("[0-9a-f]*")
    for a, b in zip(history(one.checkpoint), history(artifacts), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)
        assert a["val/loss"] == pytest.approx(b["val/loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.nightly
def test_two_ranks_leave_one_checkpoint_and_agree(store_path: Path, tmp_path: Path) -> None:
    values = {**QUICK, "compute__workers": 2, "training__validation_volumes": 3}
    assert launch(train_stages, tmp_path, store_path, values) == [0, 0]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[1] == ["encoder", "checkpoint"]
    assert len(list((tmp_path / "artifacts").glob("checkpoint/[0-9a-f]*"))) == 1
    assert history(tmp_path / "artifacts" / "checkpoint" / first[0]) == first[3]


def fail_on_first(rank: int, folder: Path, store: Path) -> None:
    ranks = join(rank, folder)

    def progress(stage: str, images: int, budget: int, loss: float) -> None:
        if images == 8:
            raise OSError("the disk is gone")

    stages.train(tiny_config(**PLAIN), stages.Place(folder / "artifacts", store), ranks, Hooks(progress=progress))


@pytest.mark.slow
def test_when_the_first_rank_dies_the_other_ends_too(store_path: Path, tmp_path: Path) -> None:
    """Its next collective fails, because gloo sees the closed connection; Ray Train then starts the group again."""
    start_time = time.monotonic()
    assert launch(fail_on_first, tmp_path, store_path) == [1, 1]
    assert time.monotonic() - start_time < 60
