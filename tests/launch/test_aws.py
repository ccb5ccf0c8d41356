"""What Ray asks of AWS for ``ray_cluster.yaml``, and the rights that the shipped policies give it, against a simulated AWS."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

boto3 = pytest.importorskip("boto3", reason="the AWS SDK is missing: pip install boto3")
moto = pytest.importorskip("moto", reason="the simulated AWS is missing: pip install moto")

PROJECT = Path(__file__).resolve().parents[2]
FILE = PROJECT / "ray_cluster.yaml"
POLICIES = PROJECT / "launch" / "clusters" / "aws"
REGION = "eu-central-1"
ROLES = ("cddpm-head", "cddpm-worker")
Config = dict[str, Any]
pytestmark = pytest.mark.timeout(300)
"""The simulated AWS reads large tables at its first request."""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home, and keys of an account."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {"HOME": str(home), "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
            patch.setenv(name, value)
        yield


def make_roles() -> None:
    """The machines' roles, which AWS looks up when one starts."""
    iam = boto3.client("iam", region_name=REGION)
    for role in ROLES:
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=(POLICIES / "trust.json").read_text())
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)


@dataclass(frozen=True)
class Asked:
    """What a simulated AWS was asked for by Ray, with one machine of each type."""

    config: Config
    machines: dict[str, dict[str, Any]]
    disks: list[dict[str, Any]]
    rules: list[dict[str, Any]]
    narrowed: list[dict[str, Any]]
    """Rules of the security group after somebody narrowed the one for ssh, and called ``ray up`` again."""
    calls: set[str]
    """Requests of the head, as policies name them."""


NARROW = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}


@pytest.fixture(scope="module")
def asked(account: None) -> Asked:
    """The laptop's part of ``ray up`` (key, network, group), then the head's: start, look, tag, end."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    def rules(group: str) -> list[dict[str, Any]]:
        (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        permissions: list[dict[str, Any]] = found["IpPermissions"]
        return permissions

    calls: set[str] = set()
    with moto.mock_aws():
        make_roles()
        ec2 = boto3.client("ec2", region_name=REGION)
        prepared = prepare_config(yaml.safe_load(FILE.read_text()))
        config = AWSNodeProvider.bootstrap_config(prepared)
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for resource in (provider.ec2, provider.ec2_fail_fast):
            resource.meta.client.meta.events.register(
                "before-call.*.*", lambda model, **_: calls.add(f"ec2:{model.name}")
            )
        for name, node in config["available_node_types"].items():
            kind = "head" if name == config["head_node_type"] else "worker"
            provider.create_node(node["node_config"], {"ray-node-kind": kind, "ray-user-node-type": name}, 1)
        found, disks = machines(), [disk for disk in ec2.describe_volumes()["Volumes"] if disk["Attachments"]]
        (group,) = {group["GroupId"] for machine in found.values() for group in machine["SecurityGroups"]}
        first = rules(group)

        nodes = provider.non_terminated_nodes({})
        for node in nodes:
            for look in (provider.is_running, provider.internal_ip, provider.external_ip, provider.node_tags):
                look(node)
        provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
        provider.terminate_nodes(nodes)

        outside = [rule for rule in first if rule["IpRanges"]]
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=outside)
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[NARROW])
        AWSNodeProvider.bootstrap_config(prepared)
        return Asked(config, found, disks, first, rules(group), calls)


def machines() -> dict[str, dict[str, Any]]:
    """Running ones, by node type."""
    groups = boto3.client("ec2", region_name=REGION).describe_instances()["Reservations"]
    found = [machine for group in groups for machine in group["Instances"]]
    return {tag["Value"]: machine for machine in found for tag in machine["Tags"] if tag["Key"] == "ray-user-node-type"}


def statements(policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((POLICIES / policy).read_text())["Statement"]
    return found


def actions(policy: str) -> set[str]:
    named = [statement["Action"] for statement in statements(policy)]
    return {action for one in named for action in ([one] if isinstance(one, str) else one)}


@pytest.mark.slow
def test_machines_are_asked_for_as_the_file_says(asked: Asked) -> None:
    assert {name: machine["InstanceType"] for name, machine in asked.machines.items()} == {
        "head": "m6i.2xlarge",
        "spot_l4": "g6.2xlarge",
        "spot_a10g": "g5.2xlarge",
        "on_demand_a10g": "g5.2xlarge",
    }
    spot = {name for name, machine in asked.machines.items() if machine.get("InstanceLifecycle") == "spot"}
    assert spot == {"spot_l4", "spot_a10g"}
    for name, machine in asked.machines.items():
        role = "cddpm-head" if name == "head" else "cddpm-worker"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert machine["ImageId"] == asked.config["available_node_types"]["head"]["node_config"]["ImageId"]
    assert [(disk["Size"], disk["Encrypted"]) for disk in asked.disks] == [(200, True)] * len(asked.machines)


@pytest.mark.slow
def test_nothing_but_ssh_is_open_to_the_outside(asked: Asked) -> None:
    (group,) = {group["GroupId"] for machine in asked.machines.values() for group in machine["SecurityGroups"]}
    inside = [rule for rule in asked.rules if rule["UserIdGroupPairs"]]
    outside = [rule for rule in asked.rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [[pair["GroupId"] for pair in rule["UserIdGroupPairs"]] for rule in inside] == [[group]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside] == [("tcp", 22, 22)]


@pytest.mark.slow
def test_a_group_that_was_narrowed_stays_narrow(asked: Asked) -> None:
    assert [rule["IpRanges"] for rule in asked.narrowed if rule["IpRanges"]] == [NARROW["IpRanges"]]


@pytest.mark.slow
def test_the_heads_role_may_do_what_the_autoscaler_does_and_no_more(asked: Asked) -> None:
    assert asked.calls == {action for action in actions("head.json") if action.startswith("ec2:")}
    assert actions("head.json") - asked.calls == {"iam:PassRole", "ssm:GetParameter", "ssm:GetParameters"}


def test_rights_are_of_this_region_these_machines_and_one_bucket() -> None:
    config = yaml.safe_load(FILE.read_text())
    head = {statement["Sid"]: statement for statement in statements("head.json")}
    types = [
        node["node_config"]["InstanceType"] for name, node in config["available_node_types"].items() if name != "head"
    ]
    conditions = head["StartWorkersOfThisCluster"]["Condition"]["StringEquals"]
    assert set(conditions["ec2:InstanceType"]) == set(types)
    assert conditions["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    ended = head["KeepTheirStateAndEndThem"]["Condition"]["StringEquals"]
    assert ended["aws:ResourceTag/ray-cluster-name"] == config["cluster_name"]
    assert head["GiveThemTheWorkersRoleAlone"]["Resource"] == "arn:aws:iam::*:role/cddpm-worker"
    image = config["available_node_types"]["head"]["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    (parameters,) = re.findall(r"parameter(/.*)\*$", head["FindTheImage"]["Resource"])
    assert image.startswith(parameters)
    for statement in statements("head.json"):
        assert "<your-region>" in json.dumps(statement) or statement["Sid"] == "GiveThemTheWorkersRoleAlone"
    resources = {str(statement["Resource"]) for statement in statements("bucket.json")}
    assert resources == {"arn:aws:s3:::<your-bucket>", "arn:aws:s3:::<your-bucket>/*"}
    for policy in ("head.json", "bucket.json"):
        assert not [action for action in actions(policy) if "*" in action]


@pytest.fixture
def server(account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same simulated AWS for other processes."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*running.get_host_and_port()))
    yield
    running.stop()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_ray_up_itself_starts_the_head(server: None, tmp_path: Path) -> None:
    """Up to the request for the head; after it ``ray up`` waits for ssh and is ended. It first asks for all of 1,400 types."""
    make_roles()
    config = tmp_path / "cluster.yaml"
    config.write_text(FILE.read_text().replace("<your-bucket>", "scans"))
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", "--no-config-cache", str(config)]
    log = tmp_path / "log"
    with log.open("w") as output:
        ray = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + 800
        while not machines() and ray.poll() is None and time.monotonic() < until:
            time.sleep(2)
    finally:
        os.killpg(ray.pid, signal.SIGKILL)
        ray.wait()
    assert list(machines()) == ["head"], log.read_text()
    assert machines()["head"]["IamInstanceProfile"]["Arn"].endswith("/cddpm-head")


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_what_is_done_once_may_be_done_twice(server: None, tmp_path: Path) -> None:
    if shutil.which("aws") is None:
        pytest.skip("the command aws is missing: pip install awscli, in an environment of its own")
    config = tmp_path / "cluster.yaml"
    config.write_text(FILE.read_text())
    for _ in range(2):
        subprocess.run(["bash", POLICIES / "once.sh", "scans-of-a-test", str(config)], check=True)
    assert "--env CDDPM_STORAGE=s3://scans-of-a-test/cddpm\n" in config.read_text()
    iam, s3 = boto3.client("iam", region_name=REGION), boto3.client("s3", region_name=REGION)
    own = {role: set(iam.list_role_policies(RoleName=role)["PolicyNames"]) for role in ROLES}
    assert own == {"cddpm-head": {"bucket", "workers"}, "cddpm-worker": {"bucket"}}
    for role in ROLES:
        assert not iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        for policy in own[role]:
            assert "<your" not in json.dumps(iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"])
    assert s3.get_bucket_location(Bucket="scans-of-a-test")["LocationConstraint"] == REGION
    assert all(s3.get_public_access_block(Bucket="scans-of-a-test")["PublicAccessBlockConfiguration"].values())
