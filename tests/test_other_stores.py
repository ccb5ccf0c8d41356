"""Google's and Azure's stores keep the laws that S3's do, and what they refuse is told as well."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import other_stores
import pytest
import s3_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from other_stores import Store
from test_storage import NAMES, check_large, check_small

from cddpm import artifact, storage
from cddpm.errors import StorageError
from cddpm.shelf import Shelf
from cddpm.storage import Bucket

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[other_stores.google, other_stores.azure])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with request.param(tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.fixture
def bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in store.variables.items():
        monkeypatch.setenv(name, value)
    storage.opened.cache_clear()
    return Bucket(store.uri(f"tests/{uuid.uuid4().hex}"), patience_seconds=20)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(contents=st.dictionaries(NAMES, st.binary(max_size=300), max_size=3), prefix=st.sampled_from(["", "x", "xa"]))
def test_what_is_written_is_read_and_listed(bucket: Bucket, contents: dict[str, bytes], prefix: str) -> None:
    check_small(bucket / uuid.uuid4().hex, contents, prefix)


def test_a_large_file_comes_back_with_its_digest(bucket: Bucket, tmp_path: Path) -> None:
    check_large(bucket, tmp_path)
    with pytest.raises(StorageError, match=r"/absent: missing"):
        bucket.download("absent", tmp_path / "none")


def test_an_artifact_goes_to_another_node(bucket: Bucket, tmp_path: Path) -> None:
    one, two = (Shelf(tmp_path / node, bucket.uri) for node in ("one", "two"))
    path = one.path("checkpoint", "0123")
    artifact.create(path, "checkpoint", "0123", {}, lambda folder: (folder / "weights").write_bytes(b"1" * 10_000))
    one.put(path)
    assert artifact.is_sound(two.need(two.path("checkpoint", "0123")), "checkpoint")
    assert two.get(two.path("checkpoint", "4567")) is None


def test_what_the_store_refuses_is_told_with_its_remedy(
    store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.check()
    with pytest.raises(StorageError, match="there is no such bucket"):
        Bucket(store.uri("absent/x")).check()
    start = time.monotonic()
    with pytest.raises(StorageError, match="nothing answers at the endpoint"):
        Bucket(store.uri("tests/x", s3_server.free_port())).check()
    assert time.monotonic() - start < 20
    if other_stores.AZURE_NAME in store.uri("tests"):
        for value, said in ((os.urandom(64).hex(), "the keys are wrong"), ("", "no key and no role")):
            monkeypatch.setenv(storage.AZURE_KEY, value)
            storage.opened.cache_clear()
            with pytest.raises(StorageError, match=said):
                bucket.check()
