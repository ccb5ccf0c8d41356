"""DATA_DIR below ``s3://``: a node's copy of it, which follows the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server

from cddpm import shelf, storage
from cddpm.config import DataConfig
from cddpm.data.layout import read_layout, root_of
from cddpm.errors import StorageError
from cddpm.storage import Bucket


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server.moto(tmp_path_factory.mktemp("s3")) as found:
        yield found


def test_scans_are_read_through_a_copy_that_follows_the_store(
    port: int, ten_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(shelf.CACHE, str(tmp_path / "cache"))
    with s3_server.Proxy(port).running() as proxy:
        for name, value in s3_server.environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        storage._opened.cache_clear()
        bucket, uri = Bucket("s3://tests/scans"), "s3://tests/scans"
        with pytest.raises(StorageError, match=r"s3://tests/scans: nothing lies below it"):
            root_of(DataConfig(data_dir=uri))
        files = [path for path in ten_scans.rglob("*") if path.is_file()]
        bucket.upload_all((path, path.relative_to(ten_scans).as_posix()) for path in files)

        settings = DataConfig(data_dir=uri, unhealthy=("Brats21",))
        root = root_of(settings)
        assert root.is_relative_to(tmp_path / "cache")
        assert {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()} == {
            path.relative_to(ten_scans).as_posix(): path.read_bytes() for path in files
        }
        assert len(read_layout(settings, root).rows) == len(read_layout(settings, ten_scans).rows)

        gets = len([one for one in proxy.methods if one == "GET"])
        first = next(path for path in root.rglob("*.nii.gz"))
        bucket.write(first.relative_to(root).as_posix(), b"another scan")
        gone = next(path for path in root.rglob("*.nii.gz") if path != first)
        bucket.delete(gone.relative_to(root).as_posix())
        storage._opened.cache_clear()
        assert root_of(settings) == root
        assert (first.read_bytes(), gone.exists()) == (b"another scan", False)
        assert len([one for one in proxy.methods if one == "GET"]) - gets < len(files)
