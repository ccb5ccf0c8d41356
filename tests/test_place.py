"""Places on disks: an address is refused wherever a path is asked for, and never becomes a local folder of its name."""

import inspect
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cddpm import cli
from cddpm.cli import shell
from cddpm.config import BenchmarkConfig, DataConfig, ExperimentConfig, MethodConfig, flat, load, recorded
from cddpm.data import check, split
from cddpm.errors import ConfigError, DataError
from cddpm.place import ON_DISK, address, home, local
from cddpm.predict import scans, source
from cddpm.predict.pyfunc import ScanTable
from launch import bench, benchmark, evaluate, sweep

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = [
    "s3://bucket/x",
    "gs://bucket/x",
    "file:///data/x",
    "abfs://c@a/x",
    "S3://bucket",
    "hdfs://h:9000/x",
    "https://h/x",
]
SCHEMES = st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]{0,8}", fullmatch=True)
NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(SCHEMES, st.lists(NAMES, min_size=1, max_size=3))
def test_every_address_is_told_from_every_path(scheme: str, names: list[str]) -> None:
    written = f"{scheme}://{'/'.join(names)}"
    assume(set(names) != {"."})  # a path leaves it out, and nothing stays behind the slashes
    assert address(written) is not None
    assert address(Path(written)) is not None
    path = "/".join(names)
    for root in ("/", "./", "../"):
        assert address(f"{root}{path}") is None
        assert address(Path("/there") / path) is None


@pytest.mark.parametrize("path", ["outputs", "/data/x", "a:b", "2024-01-01T10:00/x", "~/x", "x/s3:/y", "./s3:/x", ""])
def test_a_path_is_no_address(path: str) -> None:
    assert address(path) is None


@pytest.mark.parametrize("text", [one for one in ADDRESSES if one != "S3://bucket"])
def test_an_address_is_told_as_it_was_written(text: str) -> None:
    assert address(text) == text
    assert address(Path(text)) == text
    with pytest.raises(ConfigError) as refused:
        local(Path(text), "--out")
    assert str(refused.value) == f"--out {text}: an address; allowed is {ON_DISK}"


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    assert home(Path("~/runs/x")) == tmp_path / "me/runs/x"
    assert home(Path("~draft.nii.gz")) == Path("~draft.nii.gz")
    assert home(Path("a/~/b")) == Path("a/~/b")
    (tmp_path / "my.yaml").write_text("name: one\noutput_dir: ~/runs\ndata: {data_dir: ~/scans, table: ~/t.csv}\n")
    config = load(tmp_path / "my.yaml")
    assert (config.output_dir, Path(config.data.data_dir or ""), config.data.table) == tuple(
        tmp_path / "me" / name for name in ("runs", "scans", "t.csv")
    )


# settings


def paths_of(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str]]:
    """Every setting below ``model`` that holds a path, also in lists and optional ones."""
    for name, field in model.model_fields.items():
        for part in parts(field.annotation):
            if part is Path:
                yield model, name
            elif isinstance(part, type) and issubclass(part, BaseModel):
                yield from paths_of(part)


def parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from parts(part)


PATHS = sorted({*paths_of(ExperimentConfig), *paths_of(BenchmarkConfig)}, key=str)


def test_settings_with_paths_are_found() -> None:
    assert {
        (ExperimentConfig, "output_dir"),
        (DataConfig, "table"),
        (MethodConfig, "config"),
    } == set(PATHS)


@pytest.mark.parametrize("text", ADDRESSES)
@pytest.mark.parametrize(("section", "name"), PATHS, ids=[f"{section.__name__}.{name}" for section, name in PATHS])
def test_no_setting_takes_an_address_for_a_path(section: type[BaseModel], name: str, text: str) -> None:
    for value in (text, Path(text)):
        with pytest.raises(ValidationError) as refused:
            section.model_validate({name: value})
        (fault,) = [fault for fault in refused.value.errors() if fault["loc"] == (name,)]
        assert fault["msg"] == f"Input should be {ON_DISK}"


@pytest.mark.parametrize("path", ["output_dir", "data.table"])
def test_one_line_names_file_setting_and_address(path: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: one\n")
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "my.yaml", shell.overrides({}, [f"{path}=s3://bucket/x"]))
    assert str(refused.value) == f"{tmp_path / 'my.yaml'}: {path}: Input should be {ON_DISK} (found 's3://bucket/x')"


@pytest.mark.parametrize("path", ["storage", "data.data_dir"])
def test_storage_and_scans_may_lie_in_an_object_store(path: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: one\n")
    config = load(tmp_path / "my.yaml", shell.overrides({}, [f"{path}=s3://bucket/x/"]))
    assert flat(recorded(config))[path] == "s3://bucket/x"
    with pytest.raises(ConfigError, match=rf"{path}: s4://bucket/x: unknown scheme 's4'; did you mean 's3'"):
        load(tmp_path / "my.yaml", shell.overrides({}, [f"{path}=s4://bucket/x"]))


def test_the_tracking_uri_stays_an_address(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: one\ntracking: {uri: 'sqlite:////x/mlflow.db'}\n")
    assert load(tmp_path / "my.yaml").tracking.uri == "sqlite:////x/mlflow.db"


# options


def commands(app: typer.Typer) -> Iterator[Any]:
    """The functions behind all commands."""
    yield from (command.callback for command in app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance)


FUNCTIONS = [*commands(cli.app), *commands(bench.app), sweep.main, evaluate.main, benchmark.main]
OPTIONS = [
    (function, name, parameter.annotation)
    for function in FUNCTIONS
    for name, parameter in inspect.signature(function).parameters.items()
    if Path in parts(parameter.annotation)
]


def test_options_with_paths_are_found() -> None:
    found = {(function.__name__, name) for function, name, _ in OPTIONS}
    assert {("main", "output_dir"), ("race", "output_dir"), ("predict", "masks"), ("pull", "directory")} <= found
    assert len(OPTIONS) >= 30


@pytest.mark.parametrize(
    ("function", "name", "annotation"), OPTIONS, ids=[f"{f.__module__}.{f.__name__}-{name}" for f, name, _ in OPTIONS]
)
def test_no_option_takes_an_address_for_a_path(function: Any, name: str, annotation: Any) -> None:
    """Refused before the command begins, which would miss its other options."""
    place = Path("gs://bucket/x")
    with pytest.raises(ConfigError, match=r"^(--[a-z-]+|[A-Z_.]+) gs://bucket/x: an address; allowed is "):
        shell.local_paths(function)(**{name: [place] if list[Path] in parts(annotation) else place})


def test_paths_reach_the_command_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"a": Path("x"), "b": [Path("~/y"), Path("/z")], "c": None, "d": "s3://text", "e": 3}
    assert shell.local_paths(lambda **rest: rest)(**given) == {**given, "b": [tmp_path / "y", Path("/z")]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-m", "cddpm", "cache", "ls", "--output-dir", "s3://b/x"], "--output-dir s3://b/x"),
        (["-m", "cddpm", "predict", "a.nii", "--out", "y", "--mask", "file:///b/m.nii"], "--mask file:///b/m.nii"),
        (["-m", "cddpm", "predict", "gs://b/a.nii", "--out", "y"], "SCAN... gs://b/a.nii"),
        ([str(ROOT / "launch" / "sweep.py"), "--dry-run", "--output-dir", "s3://b/x"], "--output-dir s3://b/x"),
        ([str(ROOT / "launch" / "bench.py"), "search", "--output", "s3://b/x"], "--output s3://b/x"),
    ],
)
def test_every_program_refuses_in_one_line_and_makes_no_folder(arguments: list[str], told: str, tmp_path: Path) -> None:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"error {told}: an address; allowed is {ON_DISK}\n")
    assert not list(tmp_path.iterdir())


# tables and references


def test_a_table_of_scans_refuses_addresses(tmp_path: Path) -> None:
    (tmp_path / "scans.csv").write_text("scan,mask\ns3://b/a.nii,\nb.nii,gs://b/m.nii\nc.nii,m.nii\n")
    with pytest.raises(DataError) as refused:
        scans.collect([tmp_path / "scans.csv"], tmp_path)
    assert str(refused.value).splitlines() == [
        f"{tmp_path / 'scans.csv'}:2: scan 's3://b/a.nii': an address; allowed is {ON_DISK}",
        f"{tmp_path / 'scans.csv'}:3: mask 'gs://b/m.nii': an address; allowed is {ON_DISK}",
    ]


CSV = "dataset,subject,split,image,mask,segmentation\nIXI,a,train,s3://b/a.nii,file:///m.nii,gs://b/s.nii\n"
YAML = "datasets:\n  IXI: {image: 's3://b/{subject}.nii', mask: '{subject}_m.nii', split: {train: 1}}\n"


@pytest.mark.parametrize(("name", "text", "count"), [("t.csv", CSV, 3), ("t.yaml", YAML, 1)])
def test_a_table_of_data_sets_refuses_addresses(name: str, text: str, count: int, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    report = check.check(DataConfig(table=tmp_path / name, unhealthy=()), tmp_path)
    told = [line for line in report.lines() if f"allowed is {ON_DISK}" in line]
    assert len(told) == count
    assert all("://" in line for line in told)


def test_a_split_file_refuses_addresses() -> None:
    text = {"img_name": "a", "img_path": "s3://b/a.nii", "mask_path": "/m.nii", "seg_path": ""}
    (fault,) = split._path_faults("IXI.csv:2", text)
    assert (fault.found, fault.allowed) == ("img_path 's3://b/a.nii'", f"allowed is {ON_DISK}")


def test_a_model_is_no_address() -> None:
    with pytest.raises(
        ConfigError, match=r"--model s3://b/model: an address; allowed are a folder on a disk, or a version's number"
    ):
        source.find("s3://b/model")


def test_the_generic_model_writes_to_disks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ScanTable(SimpleNamespace(package=None))  # type: ignore[arg-type]  # refused before it is asked for anything
    with pytest.raises(ConfigError, match="params: out s3://b/x: an address"):
        table.predict(pd.DataFrame({"scan": ["a.nii"]}), {"out": "s3://b/x"})
