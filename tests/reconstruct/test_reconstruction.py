"""Reconstructions: a view of parts that are all there, or arrays in memory, and guidance is arithmetic on them."""

import logging
import pickle
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cddpm import artifact
from cddpm.config import NoiseConfig, PatchConfig, ReconstructionConfig
from cddpm.errors import ArtifactError
from cddpm.reconstruct.part import parts_of, rounded, write_part
from cddpm.reconstruct.reconstruction import (
    KIND,
    Reconstruction,
    View,
    cache_path,
    finish,
    found_prediction,
    parts_directory,
    prediction_identity,
    prediction_path,
)

SHAPE = (3, 5, 4)


def predictions(seed: int, guided: bool = True) -> dict:
    random = np.random.default_rng(seed)
    arrays = {}
    for level in (250, 500):
        arrays["c", level, 0] = random.uniform(0, 1, SHAPE).astype(np.float32)
        if guided:
            arrays["u", level, 0] = random.uniform(0, 1, SHAPE).astype(np.float32)
    return arrays


def make(path: Path, volumes: dict[str, dict]) -> Reconstruction:
    for volume, arrays in volumes.items():
        write_part(parts_directory(path), volume, arrays)
    finish(path, list(volumes), "name", {"volumes": list(volumes)})
    return Reconstruction.open(path)


def x0(cache: Reconstruction, volume: str, level: int, scale: float) -> np.ndarray:
    return cache.c(volume, level, 0).astype(np.float32) + np.float32(scale - 1) * cache.d(volume, level, 0)


def test_every_guidance_scale_up_to_4_is_within_a_thousandth(tmp_path):
    arrays = predictions(0)
    cache = make(tmp_path / "cache", {"A/1": arrays})
    assert (cache.levels, cache.seeds, cache.guided) == ((250, 500), (0,), True)
    for scale in (0.0, 0.5, 1.0, 1.3, 2.0, 4.0):
        for level in cache.levels:
            c, u = arrays["c", level, 0], arrays["u", level, 0]
            found = x0(cache, "A/1", level, scale)
            assert np.abs(found - (u + scale * (c - u))).max() <= 1e-3


def test_without_guidance_c_comes_back_as_float16(tmp_path):
    arrays = predictions(1, guided=False)
    cache = make(tmp_path / "cache", {"a": arrays})
    assert not cache.guided
    assert np.array_equal(cache.c("a", 500, 0), arrays["c", 500, 0].astype(np.float16))
    with pytest.raises(ArtifactError, match="only guidance scale 1"):
        cache.d("a", 500, 0)


def test_reads_are_views_of_the_mapped_file(tmp_path):
    cache = make(tmp_path / "cache", {"a": predictions(2)})
    view = cache.c("a", 250, 0)
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.shares_memory(view, cache.c("a", 250, 0))


def test_all_parts_must_be_there(tmp_path):
    path, volumes = tmp_path / "cache", ["a", "b", "c d/é"]
    for volume in volumes:
        write_part(parts_directory(path), volume, predictions(len(volume)))
    with pytest.raises(ArtifactError, match="missing for 1 volumes: z"):
        finish(path, ["a", "b", "z"], "name", {})
    with pytest.raises(ArtifactError, match="missing for 1 volumes: z"):
        finish(path, ["z"], "name", {})
    assert not artifact.is_complete(path)
    finish(path, volumes, "name", {"volumes": volumes})
    artifact.verify(path, KIND)
    assert finish(path, volumes, "name", {"volumes": volumes}) == path  # a second call finds it done
    assert Reconstruction.open(path).c("c d/é", 250, 0).shape == SHAPE


def test_two_views_share_their_parts(tmp_path):
    parts = prediction_path(tmp_path, "p")
    for volume in ("a", "b"):
        write_part(parts, volume, predictions(len(volume)))
    views = {
        "one": View.of(["a"], ReconstructionConfig(noise_levels=(250,))),
        "two": View.of(["b", "a"], ReconstructionConfig(noise_levels=(500, 250, 500))),
    }
    caches = {}
    for name, view in views.items():
        finish(cache_path(tmp_path, name), view.volumes, name, {}, parts, view)
        caches[name] = Reconstruction.open(cache_path(tmp_path, name))
    assert (caches["one"].volumes, caches["one"].levels) == (("a",), (250,))
    assert (caches["two"].volumes, caches["two"].levels) == (("a", "b"), (250, 500))
    assert np.array_equal(caches["one"].c("a", 250, 0), caches["two"].c("a", 250, 0))
    with pytest.raises(ArtifactError, match=r"noise level 500 with seed 0 .* there are levels \[250\]"):
        caches["one"].c("a", 500, 0)


def test_the_folder_can_be_moved(tmp_path):
    parts = prediction_path(tmp_path / "here", "p")
    write_part(parts, "a", predictions(0))
    view = View.of(["a"], ReconstructionConfig(noise_levels=(250,)))
    finish(cache_path(tmp_path / "here", "v"), ["a"], "v", {}, parts, view)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert Reconstruction.open(cache_path(tmp_path / "there", "v")).c("a", 250, 0).shape == SHAPE


def test_what_is_missing_or_damaged_is_known(tmp_path, caplog):
    view = View.of(["a", "b"], ReconstructionConfig(noise_levels=(250, 500)))
    write_part(tmp_path, "a", predictions(0))
    assert view.missing(tmp_path, "a") == ()
    assert view.missing(tmp_path, "b") == ((250, 0), (500, 0))
    file = parts_of(tmp_path, "a")[500, 0]
    file.write_bytes(file.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        view.without_damaged(tmp_path)
        view.without_damaged(tmp_path)
    assert view.missing(tmp_path, "a") == ((500, 0),)
    assert [record.message.count(file.name) for record in caplog.records] == [1]


@pytest.mark.parametrize("guided", [True, False])
def test_in_memory_it_holds_what_the_disk_would(tmp_path, guided):
    arrays = {volume: predictions(seed, guided) for seed, volume in enumerate(("A/1", "B/2"))}
    disk = make(tmp_path / "cache", arrays)
    view = View.of([], ReconstructionConfig(noise_levels=(500, 250)))
    shares = [Reconstruction.of([(volume, rounded(volume, arrays[volume]))], view) for volume in arrays]
    for memory in (Reconstruction.joined(shares), pickle.loads(pickle.dumps(Reconstruction.joined(shares)))):
        assert (memory.volumes, memory.levels, memory.seeds) == (disk.volumes, disk.levels, disk.seeds)
        assert memory.guided == disk.guided == guided
        for place in product(arrays, memory.levels, memory.seeds):
            assert np.array_equal(memory.c(*place), disk.c(*place))
            assert not guided or np.array_equal(memory.d(*place), disk.d(*place))
    with pytest.raises(ArtifactError, match="these predictions: volume 'C/3' is not among its 2 volumes"):
        memory.c("C/3", 250, 0)
    nothing = Reconstruction.of([], view)
    assert (nothing.volumes, nothing.levels, nothing.guided) == ((), (250, 500), False)


def test_opens_again_in_another_process(tmp_path):
    cache = make(tmp_path / "cache", {"a": predictions(3)})
    again = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(again.d("a", 250, 0), cache.d("a", 250, 0))


def test_faults_are_named(tmp_path):
    cache = make(tmp_path / "cache", {"a": predictions(4)})
    with pytest.raises(ArtifactError, match="volume 'b' is not among its 1 volumes"):
        cache.c("b", 250, 0)
    with pytest.raises(ArtifactError, match=r"noise level 250 with seed 3 .* seeds \[0\]"):
        cache.c("a", 250, 3)
    with pytest.raises(ArtifactError, match="does not exist"):
        Reconstruction.open(tmp_path / "nowhere")
    file = parts_of(parts_directory(tmp_path / "cache"), "a")[250, 0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=rf"{file.name}: truncated, altered or damaged"):
        Reconstruction.open(tmp_path / "cache")
    file.unlink()
    with pytest.raises(ArtifactError, match=r"predictions of volume 'a' at level 250, seed 0 are gone from"):
        Reconstruction.open(tmp_path / "cache")
    (tmp_path / "cache" / "view.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"view\.json: not a readable part"):
        Reconstruction.open(tmp_path / "cache")


def test_the_predictions_follow_all_that_matters_and_nothing_else():
    def name(checkpoint="c", store="s", seed=0, noise=None, guide=None, patch=None, **settings):
        config = ReconstructionConfig(**{"precision": "float32", **settings})
        return prediction_identity(checkpoint, store, config, noise or NoiseConfig(), seed, patch, guide)[0]

    same = {name(), name(noise_levels=(250,)), name(noise_seeds=(1, 2)), name(patch=PatchConfig())}
    assert len(same) == 1
    others = {
        name(checkpoint="d"),
        name(store="t"),
        name(seed=1),
        name(noise=NoiseConfig(octaves=5)),
        name(guide="g"),
        name(patch=PatchConfig(enabled=True)),
        name(precision="bfloat16"),
        name(embedding_scale=2.0),
        name(batch_size=7),  # rounds otherwise in the last bit
    }
    assert len(others | same) == 10
    with pytest.raises(ValueError, match="auto is settled before work begins"):
        name(precision="auto")


def test_a_view_is_named_after_what_is_asked_for_and_of_what():
    def name(prediction="p", volumes=("a", "b"), **settings):
        return View.of(volumes, ReconstructionConfig(**settings)).identity(prediction, {"checkpoint": "c"})[0]

    same = {name(), name(volumes=("b", "a", "a")), name(noise_levels=(750, 500, 250, 250))}
    assert len(same) == 1
    others = {name(prediction="q"), name(volumes=("a",)), name(noise_levels=(250,)), name(noise_seeds=(1,))}
    assert len(others | same) == 5
    made_from = View.of(["a"], ReconstructionConfig()).identity("p", {"checkpoint": "c"})[1]
    assert (made_from["checkpoint"], made_from["prediction"], made_from["volumes"]) == ("c", "p", ["a"])
    assert cache_path(Path("x"), "n") == Path("x/reconstruction/n")


def test_the_predictions_say_what_they_are_made_from(tmp_path):
    found_prediction(tmp_path / "p", {"checkpoint": "c"})
    found_prediction(tmp_path / "p", {"checkpoint": "other"})
    assert (tmp_path / "p" / "made_from.json").read_text().split() == ["{", '"checkpoint":', '"c"', "}"]
