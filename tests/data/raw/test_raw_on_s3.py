"""Preparing from and to servers of S3 over HTTP: what a folder would hold, nothing done twice, and gone on after a stop."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import raw_trees
import s3_server
from prepared_runs import IXI
from raw_trees import EXTRACT, REORIENT, STEPS
from typer.testing import CliRunner

from cddpm import shelf, storage
from cddpm.cli import app
from cddpm.config import DataConfig
from cddpm.data.afar import outlined
from cddpm.data.check import check
from cddpm.data.layout import root_of
from cddpm.data.raw import manifest, states, tables
from cddpm.data.raw.depot import STATES, Depot
from cddpm.data.raw.head import Figures, Head, Step
from cddpm.data.raw.names import Names
from cddpm.data.raw.run import Outcome, Work, jobs_of, prepare
from cddpm.data.raw.survey import survey
from cddpm.storage import Bucket

pytestmark = pytest.mark.slow
SITES = {"Utrecht": (0, 1)}
SUBJECTS = ("Utrecht_0", "Utrecht_1")
HEALTHY: list[tables.Place] = [("train", 0), ("val", 0), ("test", None)]
UNHEALTHY: list[tables.Place] = [("val", None), ("test", None)]


@dataclass(frozen=True)
class There:
    """A server with raw scans of WMH, a place for what is prepared, and what a folder holds then."""

    raw: Bucket
    data: Bucket
    names: Path
    here: dict[str, bytes]

    def run(self, *steps: Step) -> list[Outcome]:
        return prepared("WMH", self.raw.uri, self.data.uri, self.names, *steps)

    def files(self) -> dict[str, bytes]:
        """All but manifests, which tell seconds."""
        found = {name: self.data.read(name) for name in self.data.names()}
        return {name: data for name, data in found.items() if data is not None and not name.startswith("manifests/")}


@pytest.fixture(scope="module", params=[s3_server.moto, pytest.param(s3_server.juicefs, marks=pytest.mark.nightly)])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with request.param(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``raw``, and ``DATA`` as it becomes in a folder."""
    folder = tmp_path_factory.mktemp("local")
    raw_trees.wmh(folder / "raw", SITES)
    prepared("WMH", str(folder / "raw"), str(folder / "DATA"), folder / "names.json")
    return folder


@pytest.fixture
def there(port: int, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    at(monkeypatch, port, tmp_path / "cache")
    place = f"s3://tests/{tmp_path.name}"
    sent(local / "raw", Bucket(f"{place}/raw"))
    files = {name.relative_to(local / "DATA").as_posix(): name for name in (local / "DATA").rglob("*")}
    here = {n: p.read_bytes() for n, p in files.items() if p.is_file() and not n.startswith("manifests/")}
    yield There(Bucket(f"{place}/raw"), Bucket(f"{place}/data"), local / "names.json", here)
    storage.opened.cache_clear()


def at(monkeypatch: pytest.MonkeyPatch, port: int, cache: Path) -> None:
    monkeypatch.setenv(shelf.CACHE, str(cache))
    for name, value in s3_server.environment(port).items():
        monkeypatch.setenv(name, value)
    storage.opened.cache_clear()


def sent(folder: Path, bucket: Bucket) -> None:
    bucket.upload_all((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())


def prepared(dataset: str, raw: str, out: str, names: Path, *steps: Step) -> list[Outcome]:
    """As ``cddpm data prepare`` does, with steps of no cost."""
    root = outlined(raw)
    (found,) = survey(dataset, root)
    known = Names.open(names, None)
    known.write()
    work = Work(Depot(out), steps or STEPS)
    outcomes = list(prepare(work, jobs_of(found, root, known), map))
    done = [one.row for one in outcomes if one.state != "failed"]
    places = HEALTHY if found.healthy else UNHEALTHY
    shares = {one.subject: [places[number % len(places)]] for number, one in enumerate(done)}
    assert not tables.write(work.depot, dataset, found.healthy, done, shares)
    return outcomes


def stop(_: Head) -> tuple[Head, Figures]:
    raise KeyboardInterrupt


def test_the_same_files_a_manifest_that_is_true_and_a_second_run_that_does_nothing(there: There) -> None:
    assert [one.state for one in there.run()] == ["made"] * 2
    assert there.files() == there.here
    for subject in SUBJECTS:
        told = json.loads(there.data.read(manifest.name_of("WMH", subject)) or b"")
        for name, one in told["outputs"].items():
            data = there.data.read(name) or b""
            assert (sha256(data).hexdigest(), len(data)) == (one["sha256"], one["bytes"])
        for one in told["sources"].values():
            assert sha256(there.raw.read(one["path"]) or b"").hexdigest() == one["sha256"]
    before = there.data.objects()
    assert [one.state for one in there.run()] == ["there"] * 2
    assert there.data.objects() == before
    storage.opened.cache_clear()
    there.data.delete("Test/WMH/t1/Utrecht_0_t1.nii.gz")
    assert [one.state for one in there.run()] == ["made", "there"]
    assert there.files() == there.here


@pytest.mark.nightly
def test_what_was_stopped_between_two_steps_goes_on_behind_the_first(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "EXPENSIVE_SECONDS", 0.0)
    calls: list[str] = []

    def counted(head: Head) -> tuple[Head, Figures]:
        calls.append("reorient")
        return REORIENT.run(head)

    first = dataclasses.replace(REORIENT, run=counted)
    with pytest.raises(KeyboardInterrupt):
        there.run(first, dataclasses.replace(EXTRACT, run=stop))
    assert there.data.names() == {}  # states are on the node's own disk
    assert [one.state for one in there.run(first, EXTRACT)] == ["made"] * 2
    assert calls == ["reorient"] * 2
    assert there.files() == there.here
    assert not list(Depot(there.data.uri).workplace.rglob("*.npz"))


@pytest.mark.nightly
@pytest.mark.parametrize(("step", "files", "first"), [(1, 0, "made"), (3, 1, "made"), (5, 3, "made"), (6, 3, "there")])
def test_what_was_stopped_between_two_writes_is_written_by_the_next_run(
    there: There, step: int, files: int, first: str
) -> None:
    """The old manifest goes, files are claimed, sent, told in the manifest, and the claim goes: so none is another's."""
    with pytest.MonkeyPatch.context() as patch:
        stopping_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            there.run()
    assert len(there.data.names("Test")) == files
    assert (there.data.read(manifest.name_of("WMH", SUBJECTS[0])) is not None) == (first == "there")
    assert [one.state for one in there.run()] == [first, "made"]
    assert {name: data for name, data in there.files().items() if not name.startswith(STATES)} == there.here


def stopping_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Before that deed of ``Depot``, counted from 0, the process ends."""
    left = list(range(step))

    def counted(name: str) -> Callable[..., None]:
        deed = getattr(Depot, name)

        def do(depot: Depot, *words: Any) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            deed(depot, *words)

        return do

    for name in ("put", "write", "delete"):
        patch.setattr(Depot, name, counted(name))


@pytest.mark.nightly
def test_a_store_that_is_busy_or_breaks_connections_gets_the_same_files(
    port: int, there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server.Proxy(port).running() as proxy:
        at(monkeypatch, proxy.port, tmp_path / "another cache")
        proxy.busy = 12  # more than Arrow's own tries
        assert [one.state for one in there.run()] == ["made"] * 2
        assert proxy.busy == 0
        there.data.delete(manifest.name_of("WMH", SUBJECTS[1]))
        for name in there.data.names("Test"):
            if SUBJECTS[1] in name:
                there.data.delete(name)
        storage.opened.cache_clear()
        proxy.cut_after, proxy.cuts = 3000, 8
        assert [one.state for one in there.run()] == ["there", "made"]
    at(monkeypatch, port, tmp_path / "cache")
    assert there.files() == there.here


def test_the_command_prepares_from_a_bucket_to_a_bucket(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, port, tmp_path / "cache")
    place = f"s3://tests/{tmp_path.name}"
    sent(raw_trees.mslub(tmp_path / "raw", (1, 2)), Bucket(f"{place}/raw"))
    (tmp_path / "steps.yaml").write_text("voxel_size_mm: 5\nsteps: [reorient, extract, resample, strip]\n")
    words = ["MSLUB", f"{place}/raw", f"{place}/data", "--config", str(tmp_path / "steps.yaml"), "--at-once", "1"]
    for state in ("2 prepared, 0 were there", "0 prepared, 2 were there"):
        done = CliRunner().invoke(
            app, ["data", "prepare", *words, "--names", str(tmp_path / "names.json")], env={"COLUMNS": None}
        )
        assert done.exit_code == 0, done.output
        assert state in done.stdout
        assert str(tmp_path / "cache") not in done.stdout
    assert "Test/MSLUB/seg/patient01_seg.nii.gz" in Bucket(f"{place}/data").names()


@pytest.mark.nightly
def test_what_is_there_then_is_checked_as_a_folder_is(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, port, tmp_path / "cache")
    raw_trees.ixi(tmp_path / "raw" / "IXI", dict(list(IXI.items())[:3]))
    raw_trees.brats(tmp_path / "raw" / "Brats21", (1, 2))
    place = f"s3://tests/{tmp_path.name}"
    sent(tmp_path / "raw", Bucket(f"{place}/raw"))
    for dataset in ("IXI", "Brats21"):
        prepared(dataset, f"{place}/raw/{dataset}", f"{place}/data", tmp_path / "names.json")
        prepared(dataset, str(tmp_path / "raw" / dataset), str(tmp_path / "DATA"), tmp_path / "names.json")
    afar, near = (
        DataConfig(data_dir=one, unhealthy=("Brats21",), modality="t2", voxel_size_mm=5, volume_shape=(34, 38, 34))
        for one in (f"{place}/data", str(tmp_path / "DATA"))
    )
    found, expected = check(afar, root_of(afar)), check(near, root_of(near))
    assert not found.errors, found.lines()
    assert found.volumes == 5
    assert json.dumps(found.to_dict()).replace(f"{place}/data", str(tmp_path / "DATA")) == json.dumps(
        expected.to_dict()
    )
