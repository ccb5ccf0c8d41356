"""Object stores: two servers of S3 over HTTP, and a proxy that fails as stores do."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launched import ROOT

from cddpm import storage
from cddpm.data.afar import outlined
from cddpm.errors import ConfigError, StorageError
from cddpm.storage import CHUNK, Bucket, settled

NAMES = st.builds(
    lambda name, ending: f"x{name}".replace("//", "/").rstrip("/") + ending,
    st.text("abc-/_ü ", min_size=1, max_size=12),
    st.sampled_from(["", ".gz", ".nii.gz", ".bz2", ".zst", ".lz4"]),  # which some libraries compress by themselves
)


@pytest.fixture(
    scope="module", params=[pytest.param(one, marks=pytest.mark.slow) for one in (s3_server.moto, s3_server.juicefs)]
)
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with request.param(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(s3_server.moto, marks=pytest.mark.slow),
        pytest.param(s3_server.juicefs, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of the server behind a proxy that makes the faults; who answers the rest hardly matters."""
    with request.param(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def bucket(port: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bucket:
    at(monkeypatch, port)
    return Bucket(f"s3://tests/{abs(hash(request.node.name))}", patience_seconds=20)


def at(monkeypatch: pytest.MonkeyPatch, port: int, **more: str) -> None:
    for name, value in s3_server.environment(port, **more).items():
        monkeypatch.setenv(name, value)
    storage.opened.cache_clear()


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("outputs", "outputs"),
        ("/data/x", "/data/x"),
        ("file:///data/x", "/data/x"),
        ("S3://bucket/a/", "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("abfs://c@account.dfs.core.windows.net/x", "abfs://c@account.dfs.core.windows.net/x"),
        ("memory://x/y", "memory://x/y"),
    ],
)
def test_a_place_is_a_folder_or_a_uri_that_something_opens(place: str, kept: str) -> None:
    assert settled(place) == kept
    assert settled(kept) == kept
    assert storage.is_uri(kept) == ("://" in place and not place.startswith("file"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s4://bucket/x", "did you mean 's3'"),
        ("abf://c@a/x", "did you mean 'abfs'"),
        ("qq://x", "unknown scheme 'qq'"),
        ("s3://", "names no bucket"),
        ("gs:///", "names no bucket"),
    ],
)
def test_a_slip_in_a_uri_is_named(place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settled(place)


def check_small(bucket: Bucket, contents: dict[str, bytes], prefix: str) -> None:
    """What is written below an empty place is read and listed, also by prefix, and can be deleted."""
    names = [n for n in contents if not any(m != n and m.startswith(f"{n}/") for m in contents)]
    contents = {n: contents[n] for n in names if all(part.strip() for part in n.split("/"))}
    for name, data in contents.items():
        bucket.write(name, b"older")
        bucket.write(name, data)
    assert {name: bucket.read(name) for name in contents} == contents
    assert bucket.names() == {name: len(data) for name, data in contents.items()}
    below = {name: len(data) for name, data in contents.items() if name.startswith(f"{prefix}/") or not prefix}
    assert bucket.names(prefix) == below
    for name in contents:
        bucket.delete(name)
        bucket.delete(name)  # that it is gone is no fault
    assert bucket.names() == {}
    assert bucket.read("absent") is None


def check_large(bucket: Bucket, folder: Path) -> None:
    """A file of several chunks comes back, with its digest."""
    data = os.urandom(3 * CHUNK + 17)
    (folder / "there").write_bytes(data)
    bucket.upload(folder / "there", "large")
    digest = bucket.download("large", folder / "back")
    assert (folder / "back").read_bytes() == data
    assert digest == storage.hashlib.sha256(data).hexdigest()


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(contents=st.dictionaries(NAMES, st.binary(max_size=300), max_size=3), prefix=st.sampled_from(["", "x", "xa"]))
def test_what_is_written_is_read_and_listed(bucket: Bucket, contents: dict[str, bytes], prefix: str) -> None:
    check_small(
        bucket / uuid.uuid4().hex, contents, prefix
    )  # some stores keep folders: no object may take a name later


def test_a_large_file_comes_back_with_its_digest(bucket: Bucket, tmp_path: Path) -> None:
    check_large(bucket, tmp_path)
    with pytest.raises(StorageError, match=r"s3://tests/.*/absent: missing"):
        bucket.download("absent", tmp_path / "none")


def test_two_hundred_files_with_two_threads_do_not_hang(bucket: Bucket, tmp_path: Path) -> None:
    """apache/arrow#32372: uploads waited for each other when there were more files than threads."""
    code = (
        "import sys, pyarrow; pyarrow.set_io_thread_count(2)\n"
        "from pathlib import Path\nfrom cddpm.storage import Bucket\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "for i in range(200): (folder / str(i)).write_bytes(b'x' * 1000)\n"
        f"Bucket({bucket.uri!r}).upload_all((folder / str(i), f'many/{{i}}') for i in range(200))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # apache/arrow#41087: exits that abort
    assert len(bucket.names("many")) == 200


def test_what_a_store_refuses_is_told_with_its_remedy(
    port: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.check()
    assert bucket.names() == {}
    with pytest.raises(StorageError, match=r"^s3://absent/x/\S+: there is no such bucket"):
        Bucket("s3://absent/x").check()
    at(monkeypatch, s3_server.free_port())
    start = time.monotonic()
    with pytest.raises(StorageError, match="nothing answers at the endpoint"):
        Bucket(bucket.uri).check()
    assert time.monotonic() - start < 20


def test_wrong_keys_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server.juicefs(tmp_path) as port:  # moto takes any
        at(monkeypatch, port, AWS_SECRET_ACCESS_KEY="another12345")
        with pytest.raises(StorageError, match=r"the keys are wrong|access denied"):
            Bucket("s3://tests/x").check()
        at(monkeypatch, port, AWS_ACCESS_KEY_ID="nobody")
        with pytest.raises(StorageError, match=r"the keys are wrong|access denied"):
            Bucket("s3://tests/x").check()


@pytest.mark.parametrize("fault", ["busy", "cut"])
def test_a_store_that_stumbles_is_tried_again(
    behind: int, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(2 * CHUNK)
    (tmp_path / "file").write_bytes(data)
    with s3_server.Proxy(behind).running() as proxy:
        at(monkeypatch, proxy.port)
        bucket = Bucket(f"s3://tests/stumbles-{fault}", patience_seconds=60)
        for what in ("upload", "download"):
            storage.opened.cache_clear()  # a connection that is open would be used again, past the proxy's eyes
            broken = proxy.broken
            if fault == "busy":
                proxy.busy = 12  # more than Arrow's own tries
            else:
                proxy.cut_after, proxy.cuts = CHUNK // 2, 8
            if what == "upload":
                bucket.upload(tmp_path / "file", "file")
            else:
                bucket.download("file", tmp_path / "back")
            assert proxy.busy == 0
            assert proxy.broken > broken or fault == "busy"
        assert (tmp_path / "back").read_bytes() == data
        storage.opened.cache_clear()
        proxy.busy = 10**6
        with pytest.raises(StorageError, match=r"s3://tests/\S+: the store is overloaded"):
            Bucket(bucket.uri, patience_seconds=1).write("x", b"")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        ("400 Bad Request", "ExpiredToken", "the keys have expired"),
        ("403 Forbidden", "RequestTimeTooSkewed", "this machine's clock is wrong"),
        ("403 Forbidden", "SignatureDoesNotMatch", "the keys are wrong"),
        ("403 Forbidden", "AccessDenied", "access denied"),
    ],
)
def test_what_no_patience_mends_is_told_at_once(
    behind: int, status: str, code: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server.Proxy(behind, busy=10**6, refusal=(status, code)).running() as proxy:
        at(monkeypatch, proxy.port)
        start = time.monotonic()
        with pytest.raises(StorageError, match=rf"^s3://tests/keys/x: {said}"):
            Bucket("s3://tests/keys").write("x", b"data")
        assert time.monotonic() - start < 30


def test_keys_that_were_renewed_meanwhile_are_found(behind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem object keeps the keys that it was made with: one that is refused is made anew, once."""
    refusal = ("400 Bad Request", "ExpiredToken")
    with s3_server.Proxy(behind, busy=1, refusal=refusal).running() as proxy:
        at(monkeypatch, proxy.port)
        Bucket("s3://tests/keys").write("x", b"data")
        assert Bucket("s3://tests/keys").read("x") == b"data"


def test_a_name_that_leads_out_of_its_place_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever may write to a bucket must not write to the disks of those who read it: names of objects become paths."""
    from fsspec.implementations.memory import MemoryFileSystem

    memory = MemoryFileSystem()
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    bucket = Bucket("memory://place")
    bucket.write("inside", b"")
    assert bucket.names() == {"inside": 0}
    found = memory.find("/place", detail=True)
    found["/place/../outside"] = {**found["/place/inside"], "name": "/place/../outside"}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda self, path, **rest: found)
    with pytest.raises(StorageError, match=r"^memory://place: holds a name that leads out of it: \.\./outside"):
        bucket.names()
    with pytest.raises(StorageError, match="leads out of it"):
        outlined("memory://place")
