"""Our own reference arrays: their results are the published code's, and no test knows the size of any array."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_reference import volumes
from own_reference.__main__ import freeze
from own_reference.folder import (
    DICTIONARIES,
    FROZEN_RESULTS,
    Results,
    Table,
    computations,
    computed,
    inputs,
    lay_out,
    load_results,
    write,
)
from own_reference.sizes import FROZEN, OTHERS
from reference_settings import load_arrays, timesteps

ROOT = Path(__file__).parents[2]
FILES = sorted(computations(1, 1, 1))
LONG = {"diffusion_io", "simplex", "spark_small_io"}
LIMITS = (
    ("spark_small_io/grad_l2", 1e-4),  # batch statistics over few visible pixels
    ("spark_small_io/train", 5e-5),
    ("spark_small_io/after_train", 5e-5),
    ("predict_", 2e-5),  # a division by the little noise of a low level
    ("unet", 5e-6),
    ("encoder", 5e-6),
    ("spark", 5e-6),
    ("diffusion", 5e-6),
)
"""How far the published code's float32 may be from our float64, of an array's largest value; the first that fits, else 1e-6."""


def limit(place: str) -> float:
    """Of the array that is named ``file/key``."""
    return next((allowed for part, allowed in LIMITS if part in place), 1e-6)


def by_name(table: Table) -> Table:
    """With gradients in the order of their names, which every implementation chooses for itself."""
    if "grad_names" not in table:
        return table
    order = np.argsort(table["grad_names"])
    return table | {key: table[key][order] for key in ("grad_names", "grad_l2")}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if name in LONG else ()) for name in FILES]
)
def test_float64_gives_the_published_results(name: str, published_reference: Path, near: Callable[..., None]) -> None:
    """What was frozen was made by functions that turn the published code's inputs into its outputs."""
    published = load_arrays(published_reference, name)
    single = sum(key.startswith("noise2_") for key in published) - 2  # and its grid
    length = timesteps(load_arrays(published_reference, "diffusion_io"))
    batch = len(load_arrays(published_reference, "simplex")["gen_noise_f16"])
    found = by_name(computations(length, single, batch)[name](published, published_reference))
    published = by_name(published)
    # These come from another pass than the rest in the published file; see tests/models/test_unet.py.
    inner = ("emb", "mid_out") if name.startswith("unet") else ()
    for key, array in found.items():
        if array.dtype.kind == "U":
            assert array.tolist() == published[key].tolist()
        elif key not in inner and array.dtype != bool and not np.isnan(array).any():
            near(f"float64: {name}", array, published[key], limit(f"{name}/{key}"), floor=1e-6)
        elif key not in inner:
            np.testing.assert_array_equal(array, published[key])


@pytest.mark.parametrize("name", FILES)
def test_own_arrays_have_the_published_form(name: str, published_reference: Path, own_reference_dir: Path) -> None:
    published, own = load_arrays(published_reference, name), load_arrays(own_reference_dir, name)
    for key, array in own.items():
        if not re.search(r"(_\d$|layer\d|perm_|octaves_|after_train/)", key):  # as many as there are seeds and layers
            assert (array.dtype.kind, array.ndim) == (published[key].dtype.kind, published[key].ndim), key


@pytest.fixture(scope="module")
def frozen() -> Results:
    return load_results(FROZEN_RESULTS)


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("again")
    lay_out(FROZEN, folder)
    return computed(FROZEN, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, DICTIONARIES])
def test_freezing_again_gives_the_same(name: str, frozen: Results, again: Results) -> None:
    assert again[name].keys() == frozen[name].keys()
    for key, array in again[name].items():
        expected = frozen[name][key]
        assert array.dtype.kind == expected.dtype.kind
        assert array.shape == expected.shape
        if array.dtype.kind != "f":
            assert np.array_equal(array, expected), key
        else:
            scale = max(float(np.abs(np.nan_to_num(expected)).max(initial=0)), 1e-3)
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6 * scale, err_msg=key)


def test_frozen_results_are_small_and_have_something_to_tell(frozen: Results) -> None:
    assert FROZEN_RESULTS.stat().st_size < 450_000
    for name, table in frozen.items():
        for key, array in table.items():
            telling = array.dtype.kind not in "fiub" or array.any() or key.startswith("edge_")
            assert telling, f"{name}/{key}"
    masks = (frozen["postprocess"][key] for key in ("a_raw_thresholded", "a_raw_cc", "a_cc"))
    raw, filtered, final = (int(mask.sum()) for mask in masks)
    assert 0 < filtered < raw
    assert final > 0


def test_evaluated_volumes_have_the_hard_cases() -> None:
    """A ten-step search that misses the optimum, and lesions that are found and missed: else a test could not fail."""
    given = inputs(FROZEN)["postprocess"]
    dictionary = volumes.evaluation_dictionaries(given)["val_brats21_A_then_B"]
    for name in ("DiceScorePerVol", "BestDicePerVol", "AUPRCPerVol"):
        assert all(0.1 < value < 0.98 for value in dictionary[name]), name


def test_frozen_results_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "results.npz"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="--overwrite replaces"):
        freeze(path, overwrite=False)
    assert path.read_bytes() == b"precious"


@pytest.mark.slow
def test_seeds_and_sizes_are_none_of_the_published(published_reference: Path, own_reference_dir: Path) -> None:
    for name in FILES:
        own, published = load_arrays(own_reference_dir, name), load_arrays(published_reference, name)
        for key in {"x", "q_x0", "a_orig", "final_vol", "octaves_0"} & own.keys():
            assert own[key].shape != published[key].shape, f"{name}/{key}"


def parity_suite(folder: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run every test that compares with reference arrays, with those in ``folder``."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=600"]
    environment = os.environ | {"CDDPM_REFERENCE": str(folder), "PYTHONPATH": str(ROOT)}
    selection = ["-m", "parity", "-k", "not own_arrays and not frozen"]
    return subprocess.run(
        [*command, *selection, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.nightly
@pytest.mark.parametrize("name", OTHERS)
def test_arrays_of_other_sizes_and_seeds_can_take_their_place(name: str, tmp_path: Path) -> None:
    folder = write(OTHERS[name], tmp_path / "reference")
    done = parity_suite(folder, "tests")
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", summary)
    assert passed
    assert int(passed[1]) > 60, summary
    assert "skipped" not in summary, done.stdout[-6000:]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_arrays_that_are_wrong_are_noticed(tmp_path: Path) -> None:
    """One number of a result, changed by a thousandth."""
    folder = write(FROZEN, tmp_path / "reference", load_results(FROZEN_RESULTS))
    arrays = load_arrays(folder, "unet_small_io")
    arrays["out"].flat[np.abs(arrays["out"]).argmax()] *= 1.001
    np.savez(folder / "unet_small_io.npz", **arrays)
    done = parity_suite(folder, "tests/models/test_unet.py")
    assert done.returncode == 1
    assert "unet_small: output: relative error 1.0e" in done.stdout


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_named_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = parity_suite(tmp_path / "absent", "tests/models/test_diffusion.py")
    assert done.returncode == 1
    assert "no such folder; leave it empty for" in done.stdout
