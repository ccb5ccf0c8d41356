"""The job of a sweep on SLURM: what it asks for, what is refused before it is queued, its script around a step that is played."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from launched import ROOT, Here

from cddpm.cluster import slurm
from cddpm.config import ExperimentConfig, load, parse, to_dict
from cddpm.errors import ConfigError, SearchError

QUICK = ROOT / "tune_configs" / "quickstart.yaml"


def asked(folder: Path, **settings: Any) -> ExperimentConfig:
    values = {name.replace("__", "."): value for name, value in settings.items()}
    return load(QUICK, {"output_dir": str(folder), **values})


def written(folder: Path, **settings: Any) -> str:
    return slurm.write(asked(folder, **settings), ROOT / "launch").script.read_text()


def options(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_each_setting_becomes_its_option(tmp_path: Path) -> None:
    script = written(
        tmp_path,
        compute__workers=8,
        slurm__partition="gpu,long",
        slurm__account="lab 7",
        slurm__qos="normal",
        slurm__constraint="a100&nvlink",
        slurm__nodes=2,
        slurm__gpus_per_node=4,
        slurm__gpu_type="a100",
        slurm__memory_gb=1.5,
        slurm__time="2-12",
        slurm__save_seconds=600,
        slurm__interface="ib0",
        slurm__join_seconds=60,
        slurm__extra=["--mail-type=FAIL", "--exclusive"],
        slurm__before="module load cuda\nsource ~/env",
        slurm__srun=["--container-image=a b.sqsh"],
        slurm__python="/opt/python",
    )
    assert options(script) == {
        "job-name": "quickstart",
        "output": str(tmp_path / "slurm/quickstart/%j.log"),
        "partition": "gpu,long",
        "account": '"lab 7"',
        "qos": "normal",
        "constraint": "a100&nvlink",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "4",
        "gpus-per-node": "a100:4",
        "mem": "1536M",
        "time": "2-12",
        "signal": "B:USR1@600",
        "open-mode": "append",
        "requeue": "",
        "mail-type": "FAIL",
        "exclusive": "",
    }
    surroundings, _, body = script.partition("\nset -u\n")
    assert surroundings.endswith("\nmodule load cuda\nsource ~/env\n")  # whose scripts seldom bear it
    step = " ".join(body.partition("srun ")[2].partition("&\n")[0].replace("\\\n", " ").split())
    assert "'--container-image=a b.sqsh' /opt/python" in step
    assert "--join-seconds 60 --save-seconds 600 --interface ib0 -- /opt/python" in step
    for word in ("ray stop", "pkill", "killall"):
        assert word not in script


def test_what_is_not_set_is_left_to_the_site(tmp_path: Path) -> None:
    found = options(written(tmp_path))
    assert found.keys() == {
        "job-name",
        "output",
        "nodes",
        "ntasks-per-node",
        "cpus-per-task",
        "signal",
        "open-mode",
        "requeue",
    }
    assert found["cpus-per-task"] == "2"  # compute.workers of the quickstart


def test_the_written_configuration_is_the_resolved_one(tmp_path: Path) -> None:
    config = asked(tmp_path, training__images=320)
    job = slurm.write(config, ROOT / "launch")
    assert parse(yaml.safe_load(job.config.read_text()), "job") == config
    assert load(job.config) == config
    assert config.output_dir.is_absolute()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compute__device": "cuda"}, "slurm.gpus_per_node: 0, but compute.device is 'cuda'"),
        ({"compute__device": "cpu", "slurm__gpus_per_node": 1}, "slurm.gpus_per_node: 1 would be ignored"),
        ({"slurm__gpu_type": "a100"}, "slurm.gpu_type: 'a100' would be ignored"),
        (
            {"slurm__cpus_per_node": 1},
            "slurm.cpus_per_node: 1 on 1 node(s) hold 1 worker(s) of 1; one training needs 2",
        ),
        (
            {"slurm__gpus_per_node": 1},
            "slurm.gpus_per_node: 1 on 1 node(s) hold 1 worker(s) of 1; one training needs 2",
        ),
        ({"slurm__time": "5"}, "slurm.save_seconds: 300 of a limit of 300 s (slurm.time: 5)"),
    ],
)
def test_a_job_that_cannot_hold_the_trainings_is_refused_with_the_setting(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        slurm.write(asked(tmp_path, **settings), ROOT / "launch")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(said)
    assert not (tmp_path / "slurm").exists()


CONFIG = load(QUICK)


@given(
    workers=st.integers(1, 16),
    nodes=st.integers(1, 8),
    gpus=st.integers(0, 8),
    each=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)
def test_cpus_that_are_not_set_always_hold_the_workers(workers: int, nodes: int, gpus: int, each: float) -> None:
    config = CONFIG.model_copy(
        update={
            "compute": CONFIG.compute.model_copy(update={"workers": workers, "cpus_per_worker": each}),
            "slurm": CONFIG.slurm.model_copy(update={"nodes": nodes, "gpus_per_node": gpus}),
        }
    )
    assert not [fault for fault in slurm.faults(config) if "cpus" in fault]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("5:30", 330), ("24:00:00", 86_400), ("2-12", 216_000), ("1-0:30", 88_200), ("1-0:0:9", 86_409)],
)
def test_time_limits_are_read_as_slurm_reads_them(limit: str, seconds: int) -> None:
    assert slurm.seconds(limit) == seconds


@pytest.mark.parametrize("value", ["24h", "1:2:3:4", "-5", "tomorrow", ""])
def test_what_is_no_time_limit_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.time"):
        asked(tmp_path, slurm__time=value)


@pytest.mark.parametrize("option", ["mail-type=FAIL", "--a\n--b", ""])
def test_what_is_no_option_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.extra"):
        asked(tmp_path, slurm__extra=[option])


# ---- the script itself

STEP = """#!/bin/bash
# srun, played: it says what it was asked, and ends as $folder/ending says when it is told to save
echo "$@" >> "$folder/asked"
env | grep -E '^(DATA_DIR|RAY_A|CDDPM_NODES)' | sort >> "$folder/environment"
meeting="$(sed -n 's/.*--meeting \\(.*\\) --join-seconds.*/\\1/p' "$folder/asked")"
touch "$folder/runs"
for _ in $(seq 300); do
    [ ! -e "$meeting/.stop-12-${SLURM_RESTART_COUNT:-0}" ] || { echo saved; exit "$(cat "$folder/ending")"; }
    [ ! -e "$folder/done" ] || exit "$(cat "$folder/done")"
    sleep 0.1
done
"""
SCONTROL = """#!/bin/bash
case "$1" in hostnames) ;; show) printf 'n1\\nn2\\n' ;; requeue) echo "$2" >> "$folder/requeued" ;; esac
"""


class Played:
    """A job's script as slurmd would start it, with srun and scontrol played by shell scripts."""

    def __init__(self, folder: Path, ending: int, script: Path, **environment: str) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name, text in (("srun", STEP), ("scontrol", SCONTROL)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        (folder / "ending").write_text(str(ending))
        self.process = subprocess.Popen(
            ["bash", str(script)],
            env={
                **os.environ,
                "PATH": f"{programs}:{os.environ['PATH']}",
                "folder": str(folder),
                "SLURM_JOB_ID": "12",
                "SLURM_JOB_NODELIST": "n[1-2]",
                "DATA_DIR": "/elsewhere",
                "RAY_ADDRESS": "elsewhere:1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.wait_for("runs")

    def wait_for(self, name: str) -> None:
        end = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < end
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str]]:
        """Exit code, and what was queued again."""
        self.output, _ = self.process.communicate(timeout=30)
        assert not list(self.folder.glob("*/slurm/*/.*")), "what nodes met by is left"
        file = self.folder / "requeued"
        return self.process.returncode, file.read_text().split() if file.exists() else []


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return slurm.write(asked(tmp_path / "an out", name="it-s_a.test"), ROOT / "launch").script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("array", "name"), [({}, "12"), ({"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}, "11_3")]
)
def test_before_the_limit_it_saves_waits_and_is_queued_again(
    script: Path, tmp_path: Path, array: dict[str, str], name: str
) -> None:
    job = Played(tmp_path, 130, script, **array)
    job.signal(signal.SIGUSR1)
    assert job.end() == (130, [name])
    assert "saved" in job.output
    step = (tmp_path / "asked").read_text()
    assert ("--name it-s_a.test-3 --set seed=3" in step) == bool(array)
    assert "--requeued" in step
    surroundings = dict(line.split("=") for line in (tmp_path / "environment").read_text().splitlines())
    assert surroundings.keys() == {"CDDPM_NODES", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}  # no DATA_DIR, no RAY_ADDRESS
    assert surroundings["CDDPM_NODES"] == "n1 n2 "
    assert re.fullmatch("[0-9a-f]{64}", surroundings["RAY_AUTH_TOKEN"])
    assert surroundings["RAY_AUTH_TOKEN"] not in step + job.output


@pytest.mark.slow
def test_a_sweep_that_ends_at_that_moment_is_not_queued_again(script: Path, tmp_path: Path) -> None:
    job = Played(tmp_path, 0, script)
    job.signal(signal.SIGUSR1)
    assert job.end() == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(("earlier", "again"), [(0, ["12"]), (49, ["12"]), (50, []), (51, [])])
def test_it_is_not_queued_again_for_ever(script: Path, tmp_path: Path, earlier: int, again: list[str]) -> None:
    job = Played(tmp_path, 130, script, SLURM_RESTART_COUNT=str(earlier))
    job.signal(signal.SIGUSR1)
    assert job.end() == (130, again)
    assert (f"not queued again: this was run {earlier + 1} (slurm.requeues: 50)" in job.output) == (not again)


@pytest.mark.slow
def test_a_cancelled_job_saves_and_is_not_queued_again(script: Path, tmp_path: Path) -> None:
    job = Played(tmp_path, 130, script)
    job.signal(signal.SIGTERM)
    assert job.end() == (130, [])
    assert "saved" in job.output


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 6])
def test_the_code_of_the_step_is_that_of_the_job(script: Path, tmp_path: Path, code: int) -> None:
    job = Played(tmp_path, 130, script)
    (tmp_path / "done").write_text(str(code))
    assert job.end() == (code, [])


def test_the_script_has_no_slip(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        checked = subprocess.run(
            ["shellcheck", "-S", "warning", str(script)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout


# ---- the command line


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.slow
def test_a_dry_run_writes_the_job_and_prints_the_line_that_submits_it(no_slurm: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = Here("sweep.py", "--config", str(QUICK), "--output-dir", str(out), "--slurm", "--dry-run")
    assert run.code == 0, run.output
    script = out / "slurm" / "quickstart" / "job.sh"
    assert run.output.splitlines()[-1].strip() == f"sbatch {shlex.quote(str(script))}"
    assert os.access(script, os.X_OK)
    assert sys.executable in script.read_text()
    run = Here("sweep.py", "--config", str(QUICK), "--output-dir", str(out), "--slurm")
    assert run.code == SearchError.exit_code
    assert run.output.endswith("error sbatch: not found on this machine; submit from a login node of the cluster\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume"], "sweep 'quickstart' does not exist; leave out --resume"),
        (["--extend", "3", "--address", "auto"], "--extend, --address: not with --slurm"),
    ],
)
def test_what_a_job_cannot_do_is_refused(arguments: list[str], said: str, no_slurm: None, tmp_path: Path) -> None:
    run = Here("sweep.py", "--config", str(QUICK), "--output-dir", str(tmp_path), "--slurm", *arguments)
    assert run.code in (ConfigError.exit_code, SearchError.exit_code)
    assert said in run.output


@pytest.mark.slow
def test_a_sweep_that_is_there_is_not_gone_on_with_unasked(no_slurm: None, tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text("{}")
    run = Here("sweep.py", "--config", str(QUICK), "--output-dir", str(tmp_path), "--slurm", "--dry-run")
    assert run.code == SearchError.exit_code
    assert "sweep 'quickstart' exists; --resume goes on with it" in run.output
    run = Here("sweep.py", "--config", str(QUICK), "--output-dir", str(tmp_path), "--slurm", "--dry-run", "--resume")
    assert run.code == 0, run.output


def test_settings_of_the_job_are_no_part_of_a_sweep(tmp_path: Path) -> None:
    from cddpm.search.sweep import _identity

    one, other = asked(tmp_path), asked(tmp_path, slurm__nodes=4, slurm__time="1-0")
    assert _identity(one) == _identity(other)
    assert to_dict(one) != to_dict(other)
