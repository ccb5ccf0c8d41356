"""What joining a cluster leaves of the process that joins."""

import subprocess
import sys

import pytest
from launched import ROOT, of_nobody

ASKED = """
import os, signal, time
from cddpm import cluster
heard = []
for one in (signal.SIGINT, signal.SIGTERM):
    signal.signal(one, lambda number, frame: heard.append(number))
cluster.connect("local")
for one in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), one)
    time.sleep(0.1)
assert heard == [15, 2, 15], heard
cluster.kill()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_request_to_stop_is_still_heard_when_ray_runs(own_ray: None) -> None:
    """Ray puts an abort in the place of whoever listened to SIGTERM before."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=ROOT, env=of_nobody(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
