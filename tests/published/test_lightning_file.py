"""Lightning files are read without running or importing anything; damaged and hostile ones are refused and explained."""

import collections
import contextlib
import os
import pickle
import subprocess
import sys
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_file import save

from cddpm.artifact import file_digest
from cddpm.errors import ArtifactError
from cddpm.published.lightning_file import read

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}
STARTS = (b"", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x04\x95", b"\x80\x02c", b"<", b"\x1f\x8b")


@pytest.fixture
def foreign() -> Iterator[Callable[[str, str], type]]:
    """Make classes of packages that are not installed; they are gone when the file is read."""
    made: list[str] = []

    def make(module: str, name: str, base: type = object) -> type:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            whole = ".".join(parts[:depth])
            if whole not in sys.modules:
                sys.modules[whole] = types.ModuleType(whole)
                made.append(whole)
        kind = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    yield make
    for name in made:
        sys.modules.pop(name, None)


def forget(*modules: str) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in modules]:
        del sys.modules[name]


def test_tensors_and_facts_come_out_as_they_went_in(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", STATE)
    file = read(path)
    assert file.tensors.keys() == STATE.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in STATE.items())
    assert file.about == {"epoch": 12, "global_step": 345, "pytorch-lightning_version": "1.9.3"}
    assert file.digest == file_digest(path)
    assert file.unread == ()


def test_the_old_format_is_read_too(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(read(tmp_path / "x.ckpt").tensors["a.weight"], STATE["a.weight"])


def test_parameters_and_channels_last_do_not_matter(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 4, 5)
    state = {"p": torch.nn.Parameter(images), "c": images.to(memory_format=torch.channels_last)}
    tensors = read(save(tmp_path / "x.ckpt", state)).tensors
    assert torch.equal(tensors["p"], images)
    assert torch.equal(tensors["c"], images)
    assert not tensors["p"].requires_grad


def test_settings_of_absent_packages_are_passed_over(tmp_path: Path, foreign: Callable[..., type]) -> None:
    node = foreign("omegaconf.dictconfig", "DictConfig")()
    node.__dict__.update(
        _content={"lr": foreign("omegaconf.nodes", "AnyNode")()}, _metadata=collections.defaultdict(list, a=[1])
    )
    attributes = foreign("pytorch_lightning.utilities.parsing", "AttributeDict", dict)(cfg=node, where=Path("/a/b"))
    more = {"hyper_parameters": attributes, "callbacks": {"best": np.float64(0.5)}}
    path = save(tmp_path / "x.ckpt", STATE, **more)
    forget("omegaconf", "pytorch_lightning")
    file = read(path)
    assert torch.equal(file.tensors["a.weight"], STATE["a.weight"])
    assert "omegaconf.dictconfig.DictConfig" in file.unread
    assert not {"omegaconf", "pytorch_lightning"} & {name.split(".")[0] for name in sys.modules}


class Payload:
    """Unpickling this the common way would call ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def _payloads(trap: Path) -> dict[str, Payload]:
    return {
        "system": Payload(os.system, f"touch {trap}"),
        "exec": Payload(exec, f"open({str(trap)!r}, 'w')"),
        "open": Payload(open, str(trap), "w"),
        "process": Payload(subprocess.call, ["touch", str(trap)]),
        "mkdir": Payload(Path.mkdir, Path(trap)),
        "save": Payload(np.save, str(trap), 0),
        "getattr": Payload(getattr, Path(trap), "touch"),
    }


@pytest.mark.parametrize("name", sorted(_payloads(Path("x"))))
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict"])
@pytest.mark.parametrize("new", [True, False])
def test_a_payload_never_runs(tmp_path: Path, name: str, place: str, new: bool) -> None:
    trap = tmp_path / "trap"
    payload = _payloads(trap)[name]
    content = {"state_dict": dict(STATE), place: {**(STATE if place == "state_dict" else {}), "x": payload}}
    path = tmp_path / "x.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with contextlib.suppress(ArtifactError):
        read(path)
    assert not list(tmp_path.glob("trap*"))
    with path.open("rb"):  # the trap is armed: the common way springs it
        if name in ("system", "exec", "open", "process", "mkdir", "save"):
            torch.load(path, weights_only=False)
            assert list(tmp_path.glob("trap*"))


@pytest.mark.parametrize(("new", "name"), [(True, "builtins.exec"), (False, "exec")])
def test_foreign_objects_are_named_with_a_way_out_that_runs_nothing(tmp_path: Path, new: bool, name: str) -> None:
    content = {"state_dict": STATE, "hyper_parameters": {"f": Payload(exec, "1")}}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new)
    assert told_of(tmp_path / "x.ckpt") == (
        f"{tmp_path}/x.ckpt: holds pickled objects that loading would have to run code for: {name}. They are never "
        "loaded; have the tensors alone saved where the file was made: torch.save({'state_dict': module.state_dict()}, FILE)"
    )


def told_of(path: Path) -> str:
    """The one line by which the file is refused; nothing in it is PyTorch's advice to run what the file holds."""
    with pytest.raises(ArtifactError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert len(line.splitlines()) == 1
    assert not [word for word in ("weights_only", "trust", "safe_globals", "pytorch.org") if word in line.lower()]
    return line


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title>", "a web page: download the file itself"),
        (b"\n  <html>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "'git lfs pull' fetches"),
        (b'{"message": "Not Found"}', 'begins with \'{"message": "Not\': a text'),
        (b"hello", "begins with 'hello': a text"),
        (b"\x1f\x8b\x08\x00" + bytes(99), "an archive: unpack it first"),
        (b"x" * 257 + b"ustar" + bytes(99), "an archive: unpack it first"),
        (b"\x40" + bytes(7) + b'{"a":1}', "safetensors, perhaps"),
        (b"", "the file is empty"),
        (b"\x00\xff\xfe", r"begins with '\x00\xff\xfe')"),
        (b"PK\x03\x04" + bytes(100), "damaged or cut off"),
        (pickle.dumps({"state_dict": {}}), "damaged or cut off, or another kind of ZIP or pickle"),
        (pickle.dumps({"f": Payload(exec, "1")}), "damaged or cut off, or another kind of ZIP or pickle"),
    ],
)
def test_what_is_no_checkpoint_is_told_by_what_it_is(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    assert told in told_of(tmp_path / "x.ckpt")


def test_what_pytorch_raises_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.ckpt", STATE)
    for kind in (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        RecursionError,
        SystemError,
        NotImplementedError,
        MemoryError,
    ):

        def refuse(*_: Any, raised: type[Exception] = kind, **__: Any) -> None:
            raise raised("set weights_only=False if you trust it")

        monkeypatch.setattr(torch, "load", refuse)
        assert "damaged or cut off" in told_of(path)


@pytest.mark.slow
@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.sampled_from(STARTS))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_in_one_line(tmp_path: Path, content: bytes, start: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(start + content)
    told_of(tmp_path / "x.ckpt")


def test_a_stand_in_is_no_tensor(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", {**STATE, "odd": Path("/a"), "none": None})
    with pytest.raises(ArtifactError, match=r"(?s)odd: is _Unread, a tensor is needed.*none: is NoneType"):
        read(path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("new", [True, False])
def test_truncated_files_are_refused(tmp_path: Path, part: float, new: bool) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ArtifactError, match=r"x\.ckpt: (cannot be read as a checkpoint|the file is empty)"):
        read(path)


@pytest.mark.slow
def test_every_damaged_byte_of_the_pickle_is_refused_or_harmless(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", STATE)
    good = path.read_bytes()
    start = good.index(b"data.pkl")
    for place in range(start, start + 700, 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x15]) + good[place + 1 :])
        with contextlib.suppress(ArtifactError):
            read(path)


@pytest.mark.parametrize("content", [{"model": STATE}, {"state_dict": [1]}, [STATE], {"state_dict": {}}])
def test_files_without_a_state_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ArtifactError, match="state_dict"):
        read(tmp_path / "x.ckpt")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read(tmp_path / "none.ckpt")


def test_a_shape_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    with pytest.raises(ArtifactError, match=r"huge: claims \(1000000, 1000000\), more than the 4 bytes"):
        read(save(tmp_path / "x.ckpt", {"huge": huge}))


@pytest.mark.parametrize(
    "odd", [torch.ones(2, dtype=torch.complex64), torch.eye(3).to_sparse(), torch.ones(2, device="meta")]
)
def test_odd_tensors_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    with pytest.raises(ArtifactError, match=r"x\.ckpt"):
        read(save(tmp_path / "x.ckpt", {"odd": odd}))
