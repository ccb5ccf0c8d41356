"""The shipped cluster file holds, by Ray's own validation and by ours, which sees what Ray's does not."""

import copy
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cddpm.cluster.file import faults

PROJECT = Path(__file__).resolve().parents[2]
FILE = PROJECT / "ray_cluster.yaml"
Config = dict[str, Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a token, as the file's first lines ask for."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def cluster() -> Config:
    config: Config = yaml.safe_load(FILE.read_text().replace("<your-bucket>", "scans"))
    return config


def test_shipped_file_passes_rays_validation(cluster: Config) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    # Ray fills what is not set from defaults that open the dashboard; nothing of them may be left.
    assert prepared["head_start_ray_commands"] == cluster["head_start_ray_commands"]
    assert prepared["available_node_types"].keys() == cluster["available_node_types"].keys()


def test_workers_come_and_go_with_the_work(cluster: Config) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert head["resources"]["head"] > cluster["max_workers"]
    assert "GPU" not in head["resources"]
    assert all(node["min_workers"] == 0 for node in types.values())
    assert 0 < cluster["idle_timeout_minutes"] <= 15


def test_spot_comes_first_and_equal_resources_leave_the_choice_to_priority(cluster: Config) -> None:
    types = {name: node for name, node in cluster["available_node_types"].items() if name != "head"}
    ranked = sorted(types, key=lambda name: -types[name]["priority"])
    assert ["InstanceMarketOptions" in types[name]["node_config"] for name in ranked] == [True, True, False]
    assert len({str(node["resources"]) for node in types.values()}) == 1


def test_images_are_the_installed_ray_and_python(cluster: Config) -> None:
    version = importlib.metadata.version("ray")
    assert cluster["docker"]["head_image"] == f"rayproject/ray:{version}-py311"
    assert cluster["docker"]["worker_image"] == f"rayproject/ray:{version}-py311-gpu"


def test_token_is_mounted_where_processes_look_for_it(cluster: Config) -> None:
    options = " ".join(cluster["docker"]["run_options"])
    (place,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert cluster["file_mounts"][place] == "~/.ray/auth_token"


def test_local_results_and_environments_are_not_copied(cluster: Config) -> None:
    assert {".venv", "outputs", ".git"} <= set(cluster["rsync_exclude"])


def test_environment_comes_from_the_lock_file(cluster: Config) -> None:
    (install,) = cluster["setup_commands"]
    assert "-r requirements.lock" in install
    assert re.search(r"^boto3==", (PROJECT / "requirements.lock").read_text(), re.MULTILINE), "the autoscaler needs it"


def set_in(*path: str, value: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


def delete(*path: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for key in path[:-1]:
            config = config[key]
        del config[path[-1]]

    return change


NODES = "available_node_types"
WRONG: list[tuple[Callable[[Config], None], str]] = [
    (delete("cluster_name"), "cluster_name: missing"),
    (delete("provider", "region"), "provider.region: missing"),
    (delete("provider"), "provider.type: missing"),
    (delete(NODES, "spot_l4", "node_config", "ImageId"), "spot_l4.node_config.ImageId: missing"),
    (set_in(NODES, "head", "node_config", "InstanceTyp", value="m"), "InstanceTyp: unknown setting; did you mean"),
    (delete(NODES, "on_demand_a10g"), "every worker type is spot"),
    (set_in(NODES, "on_demand_a10g", "max_workers", value=0), "every worker type is spot"),
    (
        set_in(NODES, "head", "node_config", "InstanceMarketOptions", value={"MarketType": "spot"}),
        "head: the head is a spot instance",
    ),
    (set_in("head_node_type", value="haed"), "'haed' is not among available_node_types"),
    (
        set_in(
            "docker",
            "run_options",
            value=["--env CDDPM_STORAGE=s3://a/b", "--env RAY_AUTH_TOKEN_PATH=/home/ray/secrets/auth_token"],
        ),
        "no '--env RAY_AUTH_MODE=token'",
    ),
    (delete("file_mounts", "/home/ray/secrets/auth_token"), "file_mounts: no auth_token"),
    (set_in("file_mounts", "/data", value="no/such/folder"), "no/such/folder does not exist"),
    (
        set_in("head_start_ray_commands", value=["ray start --head --disable-usage-stats --dashboard-host=0.0.0.0"]),
        "opens what listens there",
    ),
    (set_in("head_start_ray_commands", value=["ray start --head"]), "no --disable-usage-stats"),
    (delete("head_start_ray_commands"), "Ray's default opens the dashboard"),
    (set_in("docker", "worker_run_options", value=["-p 8265:8265"]), "opens a port"),
    (
        set_in("provider", "security_group", value={"IpPermissions": [{"FromPort": 8265, "ToPort": 8265}]}),
        "opens a port; allowed is 22 alone",
    ),
    (set_in("provider", "region", value="<your region>"), "placeholder '<your region>'"),
    (set_in(NODES, "head", "node_config", "KeyName", value="YOUR_KEY"), "placeholder 'YOUR_KEY'"),
    (set_in("docker", "head_image", value="rayproject/ray:2.9.0-py311"), "Ray 2.9.0, but this computer has"),
]


@pytest.mark.parametrize(("break_it", "message"), WRONG, ids=[message for _, message in WRONG])
def test_each_fault_is_found_alone(cluster: Config, break_it: Callable[[Config], None], message: str) -> None:
    separate = yaml.safe_load(yaml.dump(cluster, Dumper=NoAlias))
    break_it(separate)
    (fault,) = faults(separate, PROJECT)
    assert message in str(fault)


class NoAlias(yaml.SafeDumper):
    """Writes shared parts out, so that a test changes one place alone."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_own_machines_need_no_region_but_a_token(tmp_path: Path) -> None:
    start = "RAY_AUTH_MODE=token ray start"
    config = {
        "cluster_name": "lab",
        "provider": {"type": "local", "head_ip": "10.0.0.2", "worker_ips": ["10.0.0.3"]},
        "auth": {"ssh_user": "me"},
        "setup_commands": ["echo 'export CDDPM_STORAGE=/srv/cddpm' >~/.cddpm"],
        "head_start_ray_commands": [f"{start} --head --disable-usage-stats"],
        "worker_start_ray_commands": [f"{start} --address=$RAY_HEAD_IP:6379"],
    }
    assert list(faults(config, tmp_path)) == []
    config["worker_start_ray_commands"] = ["ray start --address=$RAY_HEAD_IP:6379"]
    assert ["RAY_AUTH_MODE" in fault.what for fault in faults(config, tmp_path)] == [True]
