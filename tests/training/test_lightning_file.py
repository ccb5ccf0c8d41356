"""Lightning files are read without running or importing anything; damaged and hostile ones are refused and explained."""

import collections
import contextlib
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_file import save

from cddpm.artifact import file_digest
from cddpm.errors import ArtifactError
from cddpm.training.lightning_file import read

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}


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


def test_foreign_objects_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", STATE, hyper_parameters={"f": Payload(exec, "1")})
    with pytest.raises(ArtifactError, match=r"(?s)builtins\.exec.*weights_only=False.*x\.bare\.ckpt") as caught:
        read(path)
    line = str(caught.value).split("python -c ")[1].strip().strip('"')
    exec(compile(line, "advice", "exec"), {})
    assert read(tmp_path / "x.bare.ckpt").tensors.keys() == STATE.keys()


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
    with pytest.raises(ArtifactError, match=r"x\.ckpt: cannot be read as a checkpoint"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"hello", pickle.dumps({"state_dict": {}}), b"PK\x03\x04" + bytes(100), bytes(1000)]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.ckpt"):
        read(tmp_path / "x.ckpt")


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
