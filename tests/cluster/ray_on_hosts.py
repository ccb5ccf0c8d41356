"""Ray on test hosts, set up as on machines of one's own: ``ray up`` of a cluster file with a local provider, over ssh."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hosts import ROOT, Hosts

RAY = f"{sys.prefix}/bin/ray"
HEAD = 2
START = (
    "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_enable_worker_prestart=0 "
    "RAY_raylet_start_wait_time_s=180 RAY_grpc_client_keepalive_timeout_ms=10000 "
    "ray start --disable-usage-stats --num-cpus=1 --object-store-memory=100000000 --node-manager-port=8077 "
    "--object-manager-port=8076"
)
"""Patient, for all hosts share one machine's cores; with Ray's ports fixed, as firewalls want them."""
FIRST_AUTOSCALER = "RAY_enable_autoscaler_v2=0"
"""The second one, which ``ray up`` asks for, never starts the workers of a provider "local" (Ray 2.60)."""
PATIENT = "AUTOSCALER_HEARTBEAT_TIMEOUT_S=600"
"""A lost host's successor is joined by the test: the autoscaler would start Ray there too, after 30 s."""
AS_HEAD = "--head --port=6379 --dashboard-host=127.0.0.1 --resources='{\"head\": 1000}'"

COUNT = """
import sys, time
import ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
end = time.monotonic() + float(sys.argv[2])
while (alive := sum(node["Alive"] for node in ray.nodes())) != int(sys.argv[1]):
    if time.monotonic() > end:
        sys.exit(f"{alive} nodes")
    time.sleep(0.2)
print(time.time())
"""


class Cluster:
    """Ray on hosts 2 (the head), 3, ...; each has one CPU, so that a training of two workers lies on two hosts."""

    def __init__(
        self, hosts: Hosts, workers: tuple[int, ...] = (3,), environment: Mapping[str, str] | None = None
    ) -> None:
        """``environment``: variables of Ray and of commands on all hosts, as a cluster file would set them."""
        self.hosts, self._workers = hosts, workers
        self.variables = " ".join(f"{name}={value}" for name, value in (environment or {}).items())
        self._token = hosts.folder / "token"
        self._token.write_text(secrets.token_hex(32))

    def start(self) -> None:
        """Start the hosts and Ray on all of them, by hand, and without a dashboard, whose ten processes these cores can spare."""
        self.hosts.start(HEAD, *self._workers)
        self._give_token(HEAD)
        self.hosts.run(HEAD, f"{self.variables} {START} {AS_HEAD} --include-dashboard=false", seconds=300)
        for number in self._workers:
            self.join(number)
        self.await_nodes(1 + len(self._workers))

    def up(self, seconds: float = 400) -> None:
        """The same by ``ray up``: the head starts Ray on the others over ssh, and as shipped the MLflow server beside itself."""
        self.hosts.start(HEAD, *self._workers)
        shutil.rmtree(self.hosts.folder / "desk", ignore_errors=True)  # `ray up` would leave a head alone that it knows
        file = self.hosts.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(self._file()))
        self._ray("up", seconds)
        self.await_nodes(1 + len(self._workers), seconds)

    def down(self, seconds: float = 200) -> None:
        """``ray down`` of the same file."""
        self._ray("down", seconds)

    def _ray(self, verb: str, seconds: float) -> None:
        place, more = self.hosts.folder / "desk", ["--no-config-cache"] if verb == "up" else []
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            [RAY, verb, "-y", *more, str(self.hosts.folder / "cluster.yaml")],
            env={**os.environ, "HOME": str(place), "RAY_TMPDIR": str(place), "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"ray {verb}:\n{done.stdout}{done.stderr}"

    def _file(self) -> dict[str, Any]:
        head, *workers = (self.hosts.address(number) for number in (HEAD, *self._workers))
        return {
            "cluster_name": self.hosts.name,
            "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
            "auth": {"ssh_user": "root", "ssh_private_key": str(self.hosts.key)},
            "min_workers": len(workers),
            "max_workers": len(workers),
            "file_mounts": {"~/.ray/auth_token": str(self._token)},
            "setup_commands": [f"mkdir -p ~/.cddpm && echo 'export {self.variables}' >~/.cddpm/environment"],
            "head_start_ray_commands": [
                *([_as_shipped("mlflow_server.sh", "head")] if self.variables else []),  # its files go to the storage
                f"{self.variables} {FIRST_AUTOSCALER} {PATIENT} {START} {AS_HEAD} "
                "--autoscaling-config=~/ray_bootstrap_config.yaml",
            ],
            "worker_start_ray_commands": [
                f"{self.variables} {FIRST_AUTOSCALER} {START} --address=$RAY_HEAD_IP:6379",
                _as_shipped("end_with_head.sh"),
            ],
        }

    def await_nodes(self, count: int, seconds: float = 200) -> float:
        """Wait until so many nodes are alive; returns when that was, in seconds since 1970."""
        words = f"RAY_AUTH_MODE=token python - {count} {seconds}"
        return float(self.hosts.run(HEAD, words, stdin=COUNT, seconds=2 * seconds).stdout.split()[-1])

    def _give_token(self, number: int) -> None:
        self.hosts.run(number, "mkdir -p -m 700 ~/.ray && cat >~/.ray/auth_token", stdin=self._token.read_text())

    def join(self, number: int) -> None:
        """Have a host join, for the first time or started again."""
        self._give_token(number)
        self.hosts.run(number, f"{self.variables} {START} --address={self.hosts.address(HEAD)}:6379", seconds=300)

    def launch(self, command: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start a command of the project on the head, in the project's folder."""
        environment = f"{self.variables} RAY_AUTH_MODE=token OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 COLUMNS=200"
        return self.hosts.launch(HEAD, f"cd {ROOT} && {environment} {command}", log)


def _as_shipped(script: str, kind: str = "worker") -> str:
    """The command of ``onprem.yaml`` that runs ``script``, for hosts that find the project and Ray's folder elsewhere."""
    shipped = yaml.safe_load((ROOT / "launch/clusters/onprem.yaml").read_text())
    (command,) = (line for line in shipped[f"{kind}_start_ray_commands"] if script in line)
    changed = str(command).replace("~/cddpm", str(ROOT)).replace("/tmp/ray-cddpm-$(id -un)", "/tmp/ray")
    assert "cddpm-" not in changed
    return changed
