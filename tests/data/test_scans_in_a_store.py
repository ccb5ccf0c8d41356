"""DATA_DIR below ``s3://``: names are there at once, scans where and when they are read, and both follow the store."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server
from hypothesis import given, settings
from hypothesis import strategies as st

from cddpm import shelf, storage
from cddpm.config import DataConfig
from cddpm.data.afar import FOLDER, present, told
from cddpm.data.check import check
from cddpm.data.layout import read_layout, root_of
from cddpm.data.many import in_threads
from cddpm.data.store import build_store, store_fingerprint
from cddpm.errors import DataError, StorageError
from cddpm.storage import Bucket

URI = "s3://tests/some/scans"
SETTINGS = DataConfig(data_dir=URI, unhealthy=("Brats21",))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Proxy]:
    with s3_server.moto(tmp_path_factory.mktemp("s3")) as port, s3_server.Proxy(port).running() as found:
        yield found


@pytest.fixture
def bucket(
    proxy: s3_server.Proxy, ten_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    monkeypatch.setenv(shelf.CACHE, str(tmp_path / "cache"))
    for name, value in s3_server.environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    storage.opened.cache_clear()
    found = Bucket(URI)
    files = [path for path in ten_scans.rglob("*") if path.is_file()]
    found.upload_all((path, path.relative_to(ten_scans).as_posix()) for path in files)
    yield found
    found.delete_all("")
    storage.opened.cache_clear()


def test_a_bucket_without_scans_is_refused(bucket: Bucket) -> None:
    with pytest.raises(StorageError, match=r"s3://tests/none: nothing lies below it"):
        root_of(DataConfig(data_dir="s3://tests/none"))


def test_names_are_there_at_once_and_scans_when_they_are_read(
    bucket: Bucket, ten_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = root_of(SETTINGS)
    assert root.is_relative_to(tmp_path / "cache")
    inside = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    local = {p.relative_to(ten_scans).as_posix(): p for p in ten_scans.rglob("*") if p.is_file()}
    assert {name: p.stat().st_size for name, p in inside.items()} == {n: p.stat().st_size for n, p in local.items()}
    assert len(read_layout(SETTINGS, root).rows) == len(read_layout(SETTINGS, ten_scans).rows)
    scans = sorted(name for name in inside if name.endswith(".nii.gz"))
    assert scans
    assert not any(any(inside[name].read_bytes()) for name in scans)

    assert present(inside[scans[0]]).read_bytes() == local[scans[0]].read_bytes()
    assert not any(inside[scans[1]].read_bytes())
    monkeypatch.setenv(shelf.CACHE, str(tmp_path / "another node"))
    here = present(inside[scans[1]])
    assert here.is_relative_to(tmp_path / "another node")
    assert here.read_bytes() == local[scans[1]].read_bytes()
    assert [p for p in (tmp_path / "another node").rglob("*") if p.is_file()] == [here]
    assert told(f"'{inside[scans[0]]}': bad") == f"'{URI}/{scans[0]}': bad"


@given(
    st.text("abc é-", min_size=1, max_size=8).map(str.strip).filter(bool),
    st.sampled_from(["s3", "gs"]),
    st.sampled_from(["a", "b/c d", "x.y"]),
)
@settings(max_examples=30, deadline=None)
def test_a_path_is_told_as_its_uri_whatever_the_cache_is_called(folder: str, scheme: str, inside: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(shelf.CACHE, f"/home/{folder}/cache")
        path = shelf.cache_root() / FOLDER / scheme / "bucket" / inside
        assert told(f"{path}: no such file") == f"{scheme}://bucket/{inside}: no such file"


def test_a_store_that_tells_no_times_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shelf.CACHE, str(tmp_path))
    facts = {"a.nii": (4, 0)}
    monkeypatch.setattr(Bucket, "objects", lambda self, prefix="": facts)
    monkeypatch.setattr(Bucket, "facts", lambda self, name: facts["a.nii"])
    monkeypatch.setattr(Bucket, "download", lambda self, name, file: file.write_bytes(b"scan"))
    root = root_of(DataConfig(data_dir="s3://tests/x", table=tmp_path / "t.csv"))
    assert present(root / "a.nii").read_bytes() == b"scan"


def test_what_is_made_of_them_is_what_is_made_of_a_folder(bucket: Bucket, ten_scans: Path, tmp_path: Path) -> None:
    root, local = root_of(SETTINGS), SETTINGS.model_copy(update={"data_dir": str(ten_scans)})
    expected = json.dumps(check(local, ten_scans).to_dict())
    found = json.dumps(check(SETTINGS, root).to_dict())
    assert found == expected.replace(str(ten_scans), URI)
    rows, spread = read_layout(SETTINGS, root).rows, in_threads(2)
    made = build_store(SETTINGS, root, rows, tmp_path / "artifacts", spread)
    assert made.name == store_fingerprint(local, read_layout(local, ten_scans).rows, spread)


def test_a_scan_that_changes_is_fetched_anew_and_a_fault_names_its_uri(bucket: Bucket) -> None:
    root = root_of(SETTINGS)
    row, other = read_layout(SETTINGS, root).volumes()[:2]
    for path in (row.image, row.mask, other.image):
        present(path)
    name = row.image.relative_to(root).as_posix()
    bucket.write(name, b"another scan")
    bucket.delete(other.image.relative_to(root).as_posix())
    assert root_of(SETTINGS) == root
    assert present(row.image).read_bytes() == b"another scan"
    assert not other.image.exists()
    (wrong,) = [f for f in check(SETTINGS, root).errors if f.file.endswith(name)]
    assert wrong.file == f"{URI}/{name}"
    with pytest.raises(DataError, match=rf"{URI}/{name}: ") as caught:
        build_store(SETTINGS, root, [row], root.parent / "artifacts", in_threads(1))
    assert str(root) not in str(caught.value)
