"""What the shipped cluster files ask to be filled in, and that whatever is broken in them is named with its path."""

import functools
import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.cluster import manifest
from cddpm.cluster.fault import Fault, images, secrets
from cddpm.cluster.file import check, faults
from cddpm.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
VALUES = {
    "ray_cluster.yaml": {"<your-bucket>": "scans"},
    "launch/clusters/onprem.yaml": {
        "<your-head>": "10.0.0.2",
        "<your-first-worker>": "10.0.0.3",
        "<your-second-worker>": "10.0.0.4",
        "<your-user>": "ray",
        "<your-shared-folder>": "srv",
    },
    "launch/clusters/gcp.yaml": {"<your-bucket>": "scans", "<your-project>": "radiology"},
    "launch/clusters/kuberay.yaml": {
        "<your-bucket>": "scans",
        "<your-registry>": "registry.example.org/group",
        "<your-label>": "cloud.google.com/gke-spot",
        "<your-value>": '"true"',
    },
}
"""What each shipped file wants to be told, and something to tell it."""
LAUNCHED = [name for name in VALUES if "kuberay" not in name]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a token, as the files' first lines ask for, and the project's folder, where `ray up` is called."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("0" * 64)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(PROJECT)


def without_comments(text: str) -> str:
    return re.sub(r"^ *#.*$", "", text, flags=re.MULTILINE)


def filled(name: str) -> str:
    text = (PROJECT / name).read_text()
    for placeholder, value in VALUES[name].items():
        text = text.replace(placeholder, value)
    return text


def broken(tmp_path: Path, documents: list[Any]) -> list[Fault]:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return check(path)


def found_in(documents: list[Any]) -> list[Fault]:
    """The same without the way through a file."""
    if any("kind" in document for document in documents):
        return [*manifest.faults(documents, importlib.metadata.version("ray"))]
    (document,) = documents
    return [*faults(document, PROJECT)]


@pytest.mark.parametrize("name", VALUES)
def test_a_shipped_file_asks_for_its_placeholders_and_nothing_else(name: str) -> None:
    found = check(PROJECT / name)
    assert found
    assert all("placeholder" in fault.what for fault in found)
    assert set(re.findall(r"<[^<>\n]*>", without_comments((PROJECT / name).read_text()))) == set(VALUES[name])


@pytest.mark.parametrize("name", VALUES)
def test_a_shipped_file_that_is_filled_in_has_no_fault(name: str, tmp_path: Path) -> None:
    assert broken(tmp_path, list(yaml.safe_load_all(filled(name)))) == []


def test_on_aws_the_storage_is_the_one_place_to_fill_in() -> None:
    (fault,) = check(PROJECT / "ray_cluster.yaml")
    assert fault.where == "docker.run_options[0]"
    assert without_comments((PROJECT / "ray_cluster.yaml").read_text()).count("<your-bucket>") == 1


def leaves(value: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Container, key and dotted path of every text in a document."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for key, part in pairs:
        place = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".removeprefix(".")
        if isinstance(part, str):
            yield value, key, place
        yield from leaves(part, place)


def unshared(name: str) -> list[Any]:
    """The documents of a shipped file, filled in, with nothing in common between their parts."""
    return list(json.loads(parts_of(name)))


@functools.cache
def parts_of(name: str) -> str:
    return json.dumps(list(yaml.safe_load_all(filled(name))))


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_placeholder_anywhere_is_named_with_its_path(name: str, data: st.DataObject) -> None:
    documents = unshared(name)
    document = data.draw(st.sampled_from(documents))
    parent, key, path = data.draw(st.sampled_from([*leaves(document)]))
    if isinstance(parent, dict) and key in ("kind", "type") and path in ("kind", "provider.type"):
        return
    parent[key] = data.draw(st.sampled_from(["<your bucket>", "CHANGE_ME", "TODO", "s3://<name>/x", "your-thing"]))
    found = found_in(documents)
    assert any(fault.where.endswith(path) and "placeholder" in fault.what for fault in found), (path, found)


REQUIRED = {
    "ray_cluster.yaml": [
        "cluster_name",
        "provider",
        "provider.type",
        "provider.region",
        "max_workers",
        "docker",
        "docker.run_options",
        "head_node_type",
        "available_node_types",
        "available_node_types.head",
        "available_node_types.on_demand_a10g",
        "file_mounts",
        "head_start_ray_commands",
        *(
            f"available_node_types.{node}.node_config.{setting}"
            for node in ("head", "spot_l4", "spot_a10g", "on_demand_a10g")
            for setting in ("InstanceType", "ImageId", "IamInstanceProfile")
        ),
    ],
    "launch/clusters/onprem.yaml": [
        "cluster_name",
        "provider",
        "provider.type",
        "provider.head_ip",
        "provider.worker_ips",
        "setup_commands",
        "head_start_ray_commands",
    ],
    "launch/clusters/gcp.yaml": [
        "provider.region",
        "provider.availability_zone",
        "provider.project_id",
        "max_workers",
        "docker",
        "file_mounts",
        "available_node_types.head.node_config.machineType",
        "available_node_types.spot_l4.node_config.disks",
        "available_node_types.on_demand_l4",
    ],
}


def parent_of(document: Any, path: str) -> tuple[Any, str]:
    *above, key = path.split(".")
    for part in above:
        document = document[part]
    return document, key


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in REQUIRED.items() for path in paths])
def test_what_is_required_is_missed_under_its_path(name: str, path: str) -> None:
    (document,) = unshared(name)
    parent, key = parent_of(document, path)
    del parent[key]
    found = found_in([document])
    family = {path.split(".")[0], "docker.run_options", "head_node_type"}
    assert found
    assert any(fault.where.startswith(path) or fault.where.split("[")[0] in family for fault in found), found


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("ray_cluster.yaml", "docker.run_options", ["-p 8265:8265"]),
        ("ray_cluster.yaml", "docker.head_run_options", ["--publish 5000:5000"]),
        ("ray_cluster.yaml", "docker.worker_run_options", ["-p 80:80"]),
        ("ray_cluster.yaml", "provider.security_group.IpPermissions", [{"FromPort": 0, "ToPort": 65535}]),
        ("ray_cluster.yaml", "provider.security_group.IpPermissions", [{"IpProtocol": "-1"}]),
        ("ray_cluster.yaml", "head_start_ray_commands", ["ray start --head --dashboard-host 10.0.0.2"]),
        ("ray_cluster.yaml", "head_start_ray_commands", ["bash launch/mlflow_server.sh --host=0.0.0.0 --open"]),
        ("launch/clusters/onprem.yaml", "head_start_ray_commands", ["ray start --head --dashboard-host=::"]),
        ("launch/clusters/gcp.yaml", "head_start_ray_commands", ["ray start --head --dashboard-host=0.0.0.0"]),
    ],
)
def test_a_port_that_is_opened_anywhere_is_found_there(name: str, path: str, value: list[Any], tmp_path: Path) -> None:
    (document,) = unshared(name)
    parent, key = parent_of(document, path)
    parent[key] = [*parent.get(key, []), *value]
    found = broken(tmp_path, [document])
    assert [fault.where for fault in found if "opens" in fault.what] == [f"{path}[{len(parent[key]) - 1}]"]


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize("place", ["", "outputs", "file:///data", "s3:///x", "~/x"])
def test_a_storage_that_not_all_machines_see_is_refused(name: str, place: str, tmp_path: Path) -> None:
    text = re.sub(r"CDDPM_STORAGE=\S*?(?='|\n| >)", f"CDDPM_STORAGE={place}", without_comments(filled(name)))
    (fault,) = broken(tmp_path, list(yaml.safe_load_all(text)))
    assert "CDDPM_STORAGE" in fault.what


def test_a_folder_is_a_storage_for_own_hosts_alone(tmp_path: Path) -> None:
    text = filled("ray_cluster.yaml").replace("s3://scans/cddpm", "/srv/cddpm")
    assert [fault.where for fault in broken(tmp_path, [yaml.safe_load(text)])] == ["docker.run_options"]


def test_a_storage_is_told_in_one_place(tmp_path: Path) -> None:
    document = yaml.safe_load(filled("ray_cluster.yaml"))
    document["head_setup_commands"] = ["export CDDPM_STORAGE=s3://other/x"]
    (fault,) = broken(tmp_path, [document])
    assert "several places" in fault.what
    assert "head_setup_commands[0]" in fault.what


def test_ray_stop_belongs_into_containers(tmp_path: Path) -> None:
    document = yaml.safe_load(filled("launch/clusters/onprem.yaml"))
    document["worker_start_ray_commands"][0] = "ray stop"
    (fault,) = broken(tmp_path, [document])
    assert fault.where == "worker_start_ray_commands[0]"
    assert "neighbour" in fault.what


@pytest.mark.parametrize(
    "text",
    [
        "--env RAY_AUTH_TOKEN=0123456789abcdef",
        "--env AWS_SECRET_ACCESS_KEY=abc",
        "export MLFLOW_AUTH_ADMIN_PASSWORD=hunter22",
        "AKIA0123456789ABCDEF",
        "MLFLOW_BACKEND_STORE_URI=postgresql://me:secret@db/mlflow",
    ],
)
def test_a_secret_is_found_and_not_repeated(text: str) -> None:
    (fault,) = secrets({"a": [text]})
    assert fault.where == "a[0]"
    assert not {"0123456789abcdef", "hunter22", "secret", "abc", "AKIA0123456789ABCDEF"} & set(
        re.split(r"\W", str(fault))
    )


@pytest.mark.parametrize("text", ["RAY_AUTH_TOKEN_PATH=/x", 'A_PASSWORD="$(cat file)"', "PASSWORD=$P", "s3://a/b@c"])
def test_what_only_points_to_a_secret_is_none(text: str) -> None:
    assert not list(secrets(text))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["rayproject/ray:nightly-py311"], "no fixed version"),
        (["rayproject/ray"], "no fixed version"),
        (["me/mine:latest"], "no fixed version"),
        (["rayproject/ray:2.9.0-py311"], "Ray 2.9.0"),
        (["rayproject/ray:2.60.0-py311", "rayproject/ray:2.60.0-py312-gpu"], "several Pythons"),
        (["localhost:5000/mine:3"], None),
    ],
)
def test_images_are_of_one_fixed_version(tags: list[str], message: str | None) -> None:
    found = [fault.what for fault in images({f"image{i}": tag for i, tag in enumerate(tags)}, "2.60.0")]
    assert [message in what for what in found if message] == ([True] if message else found)


def test_a_file_that_ray_refuses_is_refused_under_its_path(tmp_path: Path) -> None:
    document = yaml.safe_load(filled("ray_cluster.yaml"))
    document["idle_timeout_minute"] = 5
    document["available_node_types"]["head"]["resources"] = {"CPU": "many"}
    found = broken(tmp_path, [document])
    assert found
    assert all("Ray refuses it" in fault.what for fault in found)


def test_a_version_of_ray_that_hides_its_validation_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.autoscaler._private import util

    monkeypatch.delattr(util, "validate_config")
    assert broken(tmp_path, [yaml.safe_load(filled("ray_cluster.yaml"))]) == []
    assert "hides its validation" in caplog.text


def test_the_lock_of_the_folder_must_have_this_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.lock").write_text("numpy==1\nray==2.9.0\n")
    (fault,) = broken(tmp_path, [yaml.safe_load(filled("ray_cluster.yaml"))])
    assert str(fault).startswith("requirements.lock: ray==2.9.0, but this computer has")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "a: 1\n---\nb: 2\n", "3"])
def test_what_is_no_cluster_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        check(tmp_path / "c.yaml")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "launch/clusters/kuberay.yaml"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_stands_anywhere_the_check_ends_with_faults_or_without(name: str, data: st.DataObject) -> None:
    documents = unshared(name)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(part, dict | list):
                walk(part)

    walk(documents)
    parent, key = data.draw(st.sampled_from([(p, k) for p, k in places if p is not documents]))
    parent[key] = data.draw(ANY)
    assert all(fault.where and fault.what for fault in found_in(documents))


def test_the_command_lists_faults_with_its_exit_code(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["cluster", "check", "ray_cluster.yaml"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("ray_cluster.yaml: docker.run_options[0]: the placeholder '<your-bucket>'")
    result = runner.invoke(app, ["cluster", "check", "ray_cluster.yaml", "--json"])
    assert result.exit_code == 2
    (fault,) = json.loads(result.stdout)["faults"]
    assert fault["where"] == "docker.run_options[0]"
    good = tmp_path / "good.yaml"
    good.write_text(filled("ray_cluster.yaml"))
    assert runner.invoke(app, ["cluster", "check", str(good), "--json"]).exit_code == 0
    result = runner.invoke(app, ["cluster", "check", str(good)])
    assert result.exit_code == 0
    assert "no fault was found" in result.stdout
