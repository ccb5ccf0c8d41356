"""Jobs on a real SLURM of two nodes (both on this machine) with a real Ray: limits, requeues, neighbours, a node that is missing.

Most jobs run a sweep that is played: what it sees of Ray is told, when it is asked to save it ends.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from launched import ROOT
from slurm_here import NODES, Slurm, slurm_here

from cddpm.cluster import node, slurm
from cddpm.config import load

__all__ = ["slurm_here"]

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]

PLAYED = """
import json, logging, os, pathlib, signal, sys, time
import ray
folder = pathlib.Path(sys.argv[sys.argv.index("--config") + 1]).parent
name = sys.argv[sys.argv.index("--name") + 1] if "--name" in sys.argv else "plain"
ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(130)))
seen = {
    "resources": ray.cluster_resources(),
    "nodes": [n["NodeName"] for n in ray.nodes()],
    "ports": [n["NodeManagerPort"] for n in ray.nodes()] + [int(ray.get_runtime_context().gcs_address.split(":")[1])],
    "cache": os.environ["CDDPM_CACHE"],
    "folders": os.environ["SLURM_JOB_ID"],
    "arguments": sys.argv[1:],
}
(folder / f"seen-{name}-{os.environ.get('SLURM_RESTART_COUNT', 0)}.json").write_text(json.dumps(seen))
while not (folder / "done").exists() and "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(0.2)
print("works still:", ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
"""


def submit(here: Slurm, folder: Path, **settings: Any) -> tuple[str, slurm.Job]:
    """A job whose sweep is played."""
    launch = folder / "launch"
    launch.mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "ray_on_slurm.py", launch)
    (launch / "sweep.py").write_text(PLAYED)
    values = {"output_dir": str(folder), "compute.workers": 1, "slurm.cpus_per_node": 1, "slurm.memory_gb": 2}
    asked = load(ROOT / "tune_configs" / "quickstart.yaml", values | {f"slurm.{k}": v for k, v in settings.items()})
    job = slurm.write(asked, launch)
    number = here.ask("sbatch", "--parsable", str(job.script))
    return number, job


def log_of(job: slurm.Job, number: str) -> Path:
    return Path(str(job.log).replace("%j", number).replace("%A", number).replace("%a", "1"))


def seen(job: slurm.Job, which: str = "plain-0") -> dict[str, Any]:
    return dict(json.loads((job.folder / f"seen-{which}.json").read_text()))


def left(number: str) -> list[Path]:
    return list(Path("/tmp").glob(f"ray-{os.getuid()}-{number}*"))


def test_the_time_limit_saves_and_queues_again(own_ray: None, slurm_here: Slurm, tmp_path: Path) -> None:
    """The signal is SLURM's own, a minute before a limit of three."""
    number, job = submit(slurm_here, tmp_path / "a folder", nodes=2, time="3", save_seconds=60)
    log = log_of(job, number)
    slurm_here.wait(number, "COMPLETED", log=log)
    said = log.read_text()
    assert said.index("trainings save their state") < said.index("saved") < said.index(f"queued again: job {number}")
    assert said.rstrip().endswith("works still: 42")
    first, second = seen(job), seen(job, "plain-1")
    for one in (first, second):
        assert sorted(one["nodes"]) == list(NODES)
        assert one["resources"]["CPU"] == 2
        assert one["resources"]["memory"] == 2 * (2 * 2**30 - 200 * 2**20)
        assert "GPU" not in one["resources"]
        assert one["resources"]["head"] == 1000
        assert all(node.FIRST_PORT < port < node.FIRST_PORT + node.BLOCK * node.BLOCKS for port in one["ports"])
        assert one["arguments"][-1] == "--requeued"
    assert left(number) == []
    assert not list(job.folder.glob(".head-*"))


def test_an_element_of_an_array_is_queued_again_alone(own_ray: None, slurm_here: Slurm, tmp_path: Path) -> None:
    number, job = submit(slurm_here, tmp_path, extra=["--array=1"])
    log = log_of(job, number)
    slurm_here.wait(f"{number}_1", "RUNNING", log=log)
    while not list(job.folder.glob("seen-*")):
        slurm_here.wait(f"{number}_1", "RUNNING", log=log)
        time.sleep(0.5)
    slurm_here.ask("scancel", "--batch", "--signal=USR1", f"{number}_1")
    slurm_here.wait(f"{number}_1", "COMPLETED", log=log)
    assert f"queued again: job {number}_1" in log.read_text()
    assert seen(job, "quickstart-1-1")["arguments"][-5:] == ["--requeued", "--name", "quickstart-1", "--set", "seed=1"]


def test_of_two_jobs_on_a_host_one_ends_and_the_other_goes_on(own_ray: None, slurm_here: Slurm, tmp_path: Path) -> None:
    jobs = [submit(slurm_here, tmp_path / name) for name in "ab"]
    for number, job in jobs:
        while not (job.folder / "seen-plain-0.json").exists():
            slurm_here.wait(number, "RUNNING", log=log_of(job, number))
            time.sleep(0.5)
    for number, job in jobs:
        assert seen(job)["resources"]["CPU"] == 1
        (job.folder / "done").touch()
        slurm_here.wait(number, "COMPLETED", log=log_of(job, number))
        assert "works still: 42" in log_of(job, number).read_text()
    ports = [set(seen(job)["ports"]) for _, job in jobs]
    assert not ports[0] & ports[1]


def test_a_node_that_never_comes_is_named(own_ray: None, slurm_here: Slurm, tmp_path: Path) -> None:
    number, job = submit(slurm_here, tmp_path, nodes=2, join_seconds=30, srun=["--nodes=1", "--ntasks=1"])
    log = log_of(job, number)
    slurm_here.wait(number, "FAILED", log=log)
    assert "Ray waited 30 s for n2: not joined" in " ".join(log.read_text().split())
    assert "ExitCode=6:0" in slurm_here.ask("scontrol", "show", "job", number)
