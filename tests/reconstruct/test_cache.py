"""The reconstruction cache: what is written is read back, complete or not at all, and guidance is arithmetic on it."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from cddpm import artifact
from cddpm.config import NoiseConfig, ReconstructionConfig
from cddpm.errors import ArtifactError, CddpmError
from cddpm.reconstruct.cache import (
    KIND,
    ReconstructionCache,
    cache_identity,
    cache_path,
    finish,
    has_part,
    parts_directory,
    write_part,
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


def make(path: Path, volumes: dict[str, dict]) -> ReconstructionCache:
    for volume, arrays in volumes.items():
        write_part(parts_directory(path), volume, arrays)
    finish(path, list(volumes), "name", {"volumes": list(volumes)})
    return ReconstructionCache.open(path)


def test_every_guidance_scale_up_to_2_is_within_a_thousandth(tmp_path):
    arrays = predictions(0)
    cache = make(tmp_path / "cache", {"A/1": arrays})
    assert (cache.levels, cache.seeds, cache.guided) == ((250, 500), (0,), True)
    for scale in (0.0, 0.5, 1.0, 1.3, 2.0):
        for level in cache.levels:
            c, u = arrays["c", level, 0], arrays["u", level, 0]
            found = cache.x0("A/1", level, 0, scale)
            assert found.dtype == np.float32
            assert np.abs(found - (u + scale * (c - u))).max() <= 1e-3


def test_without_guidance_c_comes_back_as_float16(tmp_path):
    arrays = predictions(1, guided=False)
    cache = make(tmp_path / "cache", {"a": arrays})
    assert not cache.guided
    assert np.array_equal(cache.c("a", 500, 0), arrays["c", 500, 0].astype(np.float16))
    assert np.array_equal(cache.x0("a", 500, 0), cache.c("a", 500, 0))
    with pytest.raises(ArtifactError, match="only guidance scale 1"):
        cache.x0("a", 500, 0, 1.5)


def test_reads_are_views_of_the_mapped_file(tmp_path):
    cache = make(tmp_path / "cache", {"a": predictions(2)})
    view = cache.c("a", 250, 0)
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.shares_memory(view, cache.c("a", 250, 0))


def test_several_writers_one_seal(tmp_path):
    path = tmp_path / "cache"
    for volume in ("a", "b", "c d/é"):
        write_part(parts_directory(path), volume, predictions(len(volume)))
    assert not artifact.is_complete(path)
    assert has_part(parts_directory(path), "c d/é")
    (parts_directory(path) / ".b.arrow.1234").write_bytes(b"left by a killed process")
    with pytest.raises(ArtifactError, match="missing for 1 volumes: z"):
        finish(path, ["a", "b", "z"], "name", {"volumes": []})
    volumes = ["a", "b", "c d/é"]
    finish(path, volumes, "name", {"volumes": volumes})
    manifest = artifact.verify(path, KIND)
    assert len(manifest.files) == 3
    assert not parts_directory(path).exists()
    assert finish(path, volumes, "name", {"volumes": volumes}) == path  # a second call finds it done
    assert ReconstructionCache.open(path).c("c d/é", 250, 0).shape == SHAPE


def test_a_seal_that_was_interrupted_is_done_again(tmp_path):
    path = tmp_path / "cache"
    write_part(parts_directory(path), "a", predictions(0))
    artifact.seal(parts_directory(path), KIND, "name", {"volumes": ["a"]})
    finish(path, ["a"], "name", {"volumes": ["a"]})
    artifact.verify(path, KIND)


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
        ReconstructionCache.open(tmp_path / "nowhere")
    file = tmp_path / "cache" / "a.arrow"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"a\.arrow: not a readable part"):
        ReconstructionCache.open(tmp_path / "cache")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_diverged_model_is_told(tmp_path, bad):
    arrays = predictions(5)
    arrays["c", 500, 0][0, 0, 0] = bad
    with pytest.raises(CddpmError, match=r"volume 'a'.*noise level 500.*diverged"):
        write_part(tmp_path, "a", arrays)
    assert not list(tmp_path.iterdir())


def test_incomplete_branches_are_refused(tmp_path):
    arrays = predictions(6)
    del arrays["u", 500, 0]
    with pytest.raises(ValueError, match="'u' for all or none"):
        write_part(tmp_path, "a", arrays)


def test_identity_follows_all_that_matters_and_nothing_else():
    def name(checkpoint="c", store="s", volumes=("a", "b"), seed=0, noise=None, **settings):
        config = ReconstructionConfig(**settings)
        return cache_identity(checkpoint, store, volumes, config, noise or NoiseConfig(), seed)[0]

    same = {name(), name(batch_size=7), name(volumes=("b", "a"))}
    assert len(same) == 1
    others = {
        name(checkpoint="d"),
        name(store="t"),
        name(volumes=("a",)),
        name(seed=1),
        name(noise=NoiseConfig(octaves=5)),
        name(noise_levels=(250,)),
        name(noise_seeds=(1,)),
        name(precision="bfloat16"),
    }
    assert len(others | same) == 9
    assert cache_path(Path("x"), "n") == Path("x/reconstruction/n")
