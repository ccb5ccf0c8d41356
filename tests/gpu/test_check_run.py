"""The whole GPU check as a rehearsal on the CPU, and its own proof: planted faults are named."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check import (
    __main__,
    assignment,
    experiments,
    networks,
    nursery,
    part,
    plant,
    requirements,
    run,
    table,
    train,
)
from gpu_check.assignment import PARTS, Assignment
from gpu_check.record import Record
from gpu_check.run import Options

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden!r}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
MINUTES = "20"
"""Of a rehearsal that takes one on an idle machine: others may work here too."""


def check(folder: Path, *arguments: str, path: str = "", device: str = "cpu") -> subprocess.CompletedProcess[str]:
    """Run the script as a user does; its records go to ``folder``."""
    environment = {**os.environ, "OUT": str(folder), "PYTHON": sys.executable, "PYTHONPATH": path, "COLUMNS": "80"}
    command = ["bash", str(HERE / "check.sh"), "--device", device, "--tiny", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, Any]:
    """Records by part."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def asked_for() -> set[str]:
    """Distributions that ``--requirements`` names, with all that they need."""
    found, waiting = set[str](), list(requirements.NEEDED)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [re.split(r"[^A-Za-z0-9._-]", text)[0] for text in needed if "extra ==" not in text]
    return found


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """All parts, where whatever is installed beside what is asked for is not to be found."""
    guard, allowed = tmp_path_factory.mktemp("guard"), asked_for()
    owners = packages_distributions()
    hidden = {
        module
        for module, names in owners.items()
        if not {re.sub(r"[-_.]+", "-", name).lower() for name in names} & allowed and module != "cddpm"
    }
    assert {
        "ray",
        "mlflow",
        "nibabel",
        "optuna",
        "typer",
        "monai",
        "torchio",
        "pandas",
        "sklearn",
        "SimpleITK",
    } <= hidden
    (guard / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    out = tmp_path_factory.mktemp("out")
    return check(out, "--minutes", MINUTES, path=str(guard)), out


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_script_passes_with_nothing_but_what_it_asks_for(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = rehearsal
    assert done.returncode == 0, done.stdout + done.stderr
    files = list(out.iterdir())
    assert {path.name for path in files} == {f"{part}.json" for part in PARTS}
    assert max(path.stat().st_size for path in files) < 2**20
    for name, content in contents(out).items():
        assert content["status"] == "passed", (name, table.all_told(content, "faults"))
        assert content["facts"]["torch"] == torch.__version__


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_measures_and_compares_what_it_promises(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    found = contents(rehearsal[1])
    figures = {part: {(f["at"], f["name"]) for f in content["figures"]} for part, content in found.items()}
    assert {name for _, name in figures["ceilings"]} >= {"product, bf16", "product, tf32", "product, float32"}
    columns = {"loop", "bare", "data", "idle", "memory", "rate", "share"}
    assert {name for at, name in figures["train"] if at == "batch 2"} == columns
    ways = {at for at, _ in figures["train"] if "contiguous" in at or "channels-last" in at}
    assert any("compiled" in way for way in ways)
    assert any("compiled" not in way for way in ways)
    assert {at for at, _ in figures["reconstruct"]} >= {"c alone", "c and u", "1 at once", "2 at once"}
    compared = {row["name"].partition(",")[0].partition(":")[0] for row in found["correct"]["comparisons"]}
    assert compared >= {"U-Net", "encoder", "SparK", "diffusion", "loss l1", "augmentation", "noise fields", "median"}
    assert "lower training.batch_size" in found["correct"]["facts"]["out_of_memory"]
    assert set(found["learn"]["curves"]) == {
        "bfloat16, seed 0",
        "float32, seed 0",
        "full model, training loss",
    }
    assert len(found["profile"]["tables"]["longest kernels, per step"]) == 30
    for figure in (figure for content in found.values() for figure in content["figures"]):
        assert figure["value"] is not None
        assert figure["value"] >= 0, figure


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_table_fits_a_terminal_and_nothing_moved_since_itself(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = rehearsal
    assert [line for line in done.stdout.splitlines() if len(line) > 80 and str(out) not in line] == []
    shown = check(out, "--show", "--baseline", str(out))
    assert shown.returncode == 0
    moved = shown.stdout.partition("Moved since the former run\n")[2].splitlines()[0]
    figures = sum(len(content["figures"]) for content in contents(out).values())
    assert moved == f"  {figures} figures moved by at most 5 %"


@pytest.mark.slow
def test_a_broken_gradient_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FORMS", {"U-Net": networks.FORMS["U-Net"]})
    made = Record(tmp_path, "correct")
    networks.unets(networks.Scale.of(tiny=True), made, CPU, planted=True)
    faults = table.all_told(made.content, "faults")
    assert faults
    assert all(plant.BROKEN in text and "gradient" in text for text in faults)
    assert any(text.startswith("U-Net, float32: gradients: error") for text in faults)


@pytest.mark.slow
def test_a_slow_loader_is_named(tmp_path: Path) -> None:
    given = Assignment("train", "cpu", True, 600.0, str(tmp_path), str(tmp_path))
    config, made = experiments.full(True, "float32"), Record(tmp_path, "train")
    store = experiments.store_of(config, given)
    bench = experiments.diffusion_bench(config, store, CPU, "slow-loader")
    train.measure(bench, 1, train.Rates(made, None, 1e9), given)
    (finding,) = made.content["findings"]
    assert finding.startswith("batch 1: data and noise take")
    assert finding.endswith("the loader holds the device up")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_broken_gradient_fails_the_script(tmp_path: Path) -> None:
    done = check(tmp_path, "--only", "correct", "--plant", "broken-gradient", "--minutes", MINUTES)
    assert done.returncode == 1
    wrong = table.all_told(contents(tmp_path)["correct"], "faults")
    assert len(wrong) == 2
    assert all("U-Net, float32" in text and plant.BROKEN in text for text in wrong)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_slow_loader_is_found_by_the_script(tmp_path: Path) -> None:
    done = check(tmp_path, "--only", "train", "--plant", "slow-loader", "--minutes", MINUTES)
    assert "the loader holds the device up" in re.sub(r"\s+", " ", done.stdout)
    named = [text for text in contents(tmp_path)["train"]["findings"] if "loader" in text]
    assert [text.partition(":")[0] for text in named] == ["batch 1", "batch 2"]


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts begin without a fork server: what they do not need, they do not import."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(HERE.parents[1]))))
    monkeypatch.setattr(run, "STARTS", ("spawn",))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("afresh")
def test_a_part_that_hangs_is_ended_and_named_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(assignment.SHARES, "profile", 0.01)
    run.run_parts(Options("cpu", True, ("profile", "ceilings"), 8.0, tmp_path, "hang"))
    found = contents(tmp_path)
    assert found["profile"]["status"] == "out of time"
    (fault,) = found["profile"]["faults"]
    assert fault.endswith("while: a planted hang")
    assert "in run" in found["profile"]["errors"]  # where it stood, line by line
    assert found["ceilings"]["status"] == "passed"
    assert "out of time" in "\n".join(table.lines([found["profile"]]))


@pytest.mark.slow
def test_a_run_that_is_cut_off_keeps_and_shows_what_it_has(tmp_path: Path) -> None:
    program = "import sys; from gpu_check import __main__, run; run.STARTS = ('spawn',); sys.exit(__main__.main(sys.argv[1:]))"
    paths = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", program, "--device", "cpu", "--tiny", "--plant", "hang"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as going:
        assert going.stdout is not None
        for line in going.stdout:
            if "a planted hang" in line:
                break
        going.terminate()
        shown, errors = going.communicate()
    assert going.returncode == 1
    assert "cut off; this is what there is" in errors
    assert re.search("^ceilings +running", shown, re.MULTILINE)
    assert contents(tmp_path)["ceilings"]["step"] == "a planted hang"


def test_a_part_that_cannot_open_its_device_is_started_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def ran(given: Assignment, start: str) -> tuple[int, str]:
        starts.append(start)
        made = Record(given.out_folder, given.part)
        if start == "forkserver":
            made.fault("start: RuntimeError: CUDA error: initialization error")
        return (part.PASSED, "") if made.finish() else (part.NOT_OPENED, "")

    monkeypatch.setattr(run, "_ran", ran)
    run.run_parts(Options("cuda", True, ("ceilings",), 8.0, tmp_path))
    assert starts == ["forkserver", "spawn"]
    assert contents(tmp_path)["ceilings"]["status"] == "passed"


def test_a_nursery_works_in_a_process_of_its_own_and_tells_what_failed() -> None:
    assert nursery.ask(os.getpid) == os.getpid()
    with nursery.opened():
        other = nursery.ask(os.getpid)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            nursery.ask(divmod, 1, 0)
        assert nursery.ask(os.getpid) == other != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_without_the_device_nothing_is_run_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(run, "_ran", lambda given, start: (part.NO_DEVICE, ""))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert __main__.main(["--device", "cuda", "--tiny"]) == 2
    assert "no cuda device is here; --device cpu --tiny rehearses" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.slow
def test_a_device_that_is_not_there_is_told_by_the_script(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    done = check(tmp_path, device="cuda")
    assert done.returncode == 2
    assert "no cuda device is here; --device cpu --tiny rehearses" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "allowed is a number above 0"),
        (["--only", "tain"], "invalid choice: 'tain'"),
        (["--baseline", "nowhere"], "'nowhere' is no folder"),
        (["--baseline", "."], "holds no record of ceilings, correct"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = check(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_requirements_name_what_is_here(tmp_path: Path) -> None:
    lines = check(tmp_path, "--requirements").stdout.splitlines()
    assert lines[0].split() == ["torch", "#", torch.__version__]
    assert [line.split()[0] for line in lines if not line.startswith("#")][:3] == ["torch", "numpy", "numba"]
    assert any(line.startswith("# optional: monai") for line in lines)


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_the_whole_script_passes_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    done = check(tmp_path, "--minutes", "8", device="cuda")
    assert done.returncode == 0, done.stdout + done.stderr
