"""A sweep on two nodes of a real SLURM that meets its limit in the midst of a training ends as one that was left in peace."""

import time
from pathlib import Path

import pytest
from launched import ROOT
from slurm_here import Slurm, slurm_here
from small_sweep import ONE_PROCESS, Sweep
from test_killed_sweep import outcome

from cddpm.cluster import slurm
from cddpm.config import parse

__all__ = ["slurm_here"]

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]


def test_a_sweep_on_two_nodes_that_is_queued_again_ends_as_one_left_in_peace(
    own_ray: None, slurm_here: Slurm, tmp_path: Path
) -> None:
    calm = tmp_path / "calm"
    calm.mkdir()
    undisturbed = Sweep(calm, config=ONE_PROCESS)
    assert undisturbed.finish(600) == 0, undisturbed.output

    settings = {"nodes": 2, "cpus_per_node": 1, "save_seconds": 600}
    config = parse({**ONE_PROCESS, "output_dir": str(tmp_path / "out"), "slurm": settings}, "test")
    job = slurm.write(config, ROOT / "launch")
    number = slurm_here.ask("sbatch", "--parsable", str(job.script))
    log = job.folder / f"{number}.log"
    while not log.exists() or "images: validation loss" not in log.read_text():  # in the midst of a training
        slurm_here.wait(number, "RUNNING", log=log)
        time.sleep(0.2)
    slurm_here.ask("scancel", "--batch", "--signal=USR1", number)
    slurm_here.wait(number, "COMPLETED", log=log, seconds=900)
    said = log.read_text()
    assert f"queued again: job {number}" in said
    assert "was stopped and its state saved" in " ".join(said.split())
    assert outcome(tmp_path) == outcome(calm)
