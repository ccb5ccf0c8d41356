"""Number formats: settled by what the hardware can do, before anything is computed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cddpm.config import parse
from cddpm.errors import ConfigError
from cddpm.models import precision
from cddpm.search.preparation import settled

SETTINGS = st.sampled_from(["auto", "float32", "bfloat16"])


def experiment(training: str = "auto", reconstruction: str = "auto", **compute: object):
    sections = {"training": {"precision": training}, "reconstruction": {"precision": reconstruction}}
    return parse({"name": "x", **sections, "compute": compute}, "test")


@given(SETTINGS, SETTINGS, st.booleans())
def test_auto_follows_the_hardware_and_what_is_explicit_stays(training: str, reconstruction: str, native: bool) -> None:
    config = experiment(training, reconstruction)
    found = precision.settled(config, native)
    chosen = "bfloat16" if native else "float32"
    for path, asked in precision.formats(config).items():
        assert precision.formats(found)[path] == (chosen if asked == "auto" else asked)
    assert precision.settled(found, not native) == found  # once settled, always settled
    assert found.model_copy(update={"training": config.training, "reconstruction": config.reconstruction}) == config


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("flags\t\t: fpu avx2 avx512f amx_bf16 avx512_bf16", {"amx_bf16", "avx512_bf16"}),
        ("flags\t\t: fpu avx2 avx512f", set()),
        ("flags : avx2 avx512_bf16_not", set()),
        ("Features\t: asimd", set()),
    ],
)
def test_flags_are_read_as_whole_words(tmp_path: Path, line: str, names: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert precision.cpu_flags(tmp_path / "cpuinfo") & precision.CPU_FLAGS.keys() == names
    assert precision.cpu_flags(tmp_path / "elsewhere") == frozenset()


def test_a_cpu_says_which_instructions_it_has_or_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    found = precision.hardware("cpu")
    assert found.bfloat16 == bool(precision.cpu_flags() & precision.CPU_FLAGS.keys())
    assert found.why.startswith("a CPU with ") if found.bfloat16 else found.why.startswith("a CPU without ")
    assert found.slowdown is None
    with pytest.raises(ValueError, match="'tpu'; allowed are cpu and cuda"):
        precision.hardware("tpu")  # type: ignore[arg-type]


def test_a_limit_on_instructions_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert precision.hardware("cpu") == precision.Hardware(False, "a CPU limited by ONEDNN_MAX_CPU_ISA=AVX2")


@pytest.mark.slow
@pytest.mark.skipif(precision.hardware("cpu").bfloat16, reason="this CPU computes bfloat16, so nothing is measured")
def test_emulation_is_measured() -> None:
    found = precision.hardware("cpu", measure=True)
    assert found.slowdown is not None
    assert found.slowdown > 1


@pytest.mark.slow
def test_a_node_is_asked_without_importing_torch() -> None:
    code = "import sys; from cddpm.models.precision import hardware; hardware('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_settled_formats_compute() -> None:
    cpu = torch.device("cpu")
    with precision.autocast("bfloat16", cpu):
        assert torch.is_autocast_enabled("cpu")
    with precision.autocast("float32", cpu):
        assert not torch.is_autocast_enabled("cpu")
    for wrong in ("auto", "float16"):
        with pytest.raises(ValueError, match=f"{wrong}'; allowed are float32 and bfloat16"):
            precision.autocast(wrong, cpu)


ABLE, UNABLE = precision.Hardware(True, "a CPU with AMX-BF16"), precision.Hardware(False, "an old CPU", 9.4)


@pytest.mark.parametrize(
    ("nodes", "chosen", "why"),
    [
        ({"n1": ABLE, "n2": ABLE}, "bfloat16", "a CPU with AMX-BF16"),
        ({"n1": ABLE, "n2": UNABLE}, "float32", "an old CPU"),
        ({"n1": UNABLE}, "float32", "an old CPU"),
    ],
)
def test_a_mixed_cluster_computes_in_what_all_can(nodes: dict, chosen: str, why: str) -> None:
    found = settled([experiment()], {"CPU": 4}, lambda *asked, needed: nodes)
    assert set(precision.formats(found.configs[0]).values()) == {chosen}
    assert found.said == f"{chosen} (auto: {why})"
    assert found.warnings == ()


def test_explicit_bfloat16_where_it_is_emulated_is_a_warning_with_the_factor() -> None:
    asked = []

    def ask(function: object, device: str, measure: bool, needed: dict) -> dict:
        asked.append((device, measure, needed))
        return {"n1": ABLE, "n2": UNABLE}

    found = settled([experiment("bfloat16"), experiment("bfloat16"), experiment()], {"CPU": 4}, ask)
    assert [c.training.precision for c in found.configs] == ["bfloat16", "bfloat16", "float32"]
    assert asked == [("cpu", True, {"CPU": 1.0}), ("cpu", False, {"CPU": 1.0})]  # each kind of question once
    (line,) = found.warnings
    assert re.search(
        r"training\.precision: bfloat16 is only emulated by node n2 \(an old CPU\): .* 9 times as long", line
    )


def test_workers_on_gpus_are_asked_for_their_gpu() -> None:
    asked = []
    settled([experiment()], {"CPU": 4, "GPU": 1}, lambda *a, needed: asked.append((a[1], needed)) or {"n": ABLE})
    assert asked == [("cuda", {"CPU": 1.0, "GPU": 1.0})]


def test_the_formats_of_a_search_are_named() -> None:
    space = {"training.precision": {"choice": ["auto", "float32"]}}
    with pytest.raises(ConfigError, match="'auto' is one of the others"):
        parse({"name": "x", "search": {"training": {"trials": 2, "space": space}}}, "test")
