"""What the doctor makes of what nodes say; what they say on real hosts is in ``test_two_hosts.py``."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from screen import too_long

from cddpm.cli import cluster as command
from cddpm.cluster import doctor
from cddpm.cluster.doctor import Check, Node, Report, Room
from cddpm.text import Console

ADDRESSES = st.lists(st.integers(2, 250).map("10.77.0.{}".format), min_size=1, max_size=9, unique=True)
GIB = 2**30


@given(ADDRESSES)
def test_every_pair_meets_once_and_nobody_is_in_two_pairs_of_a_round(addresses: list[str]) -> None:
    rounds = list(doctor.rounds(addresses))
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert sorted(map(sorted, met)) == sorted(sorted(pair) for pair in itertools.combinations(addresses, 2))
    assert all(len(set().union(*pairs)) == 2 * len(pairs) for pairs in rounds if pairs)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(["2.13.0", "2.12.1"]), min_size=1))
def test_versions_are_a_fault_where_they_differ_and_only_there(torch: dict[str, str]) -> None:
    rows = list(doctor.version_rows({node: {"ray": "2.60.0", "torch": found} for node, found in torch.items()}))
    (faults, sound) = ([row for row in rows if row.fault], [row for row in rows if not row.fault])
    assert len(faults) == (len(set(torch.values())) > 1)
    for row in faults:
        assert row.what == "torch"
        assert all(version in row.found for version in torch.values())
        assert all(node in row.found for node in torch)
    assert "ray 2.60.0" in sound[0].found
    assert ("torch" in sound[0].found) == (not faults)


def test_a_package_that_a_node_lacks_is_a_version_of_its_own() -> None:
    fault, _ = doctor.version_rows({"a": {"ray": "1", "torch": "2"}, "b": {"ray": "1"}})
    assert fault.found == "2 on a; missing on b"


def test_many_nodes_are_counted_instead_of_named() -> None:
    versions = {f"n{number}": {"torch": "2.13" if number else "2.12"} for number in range(30)}
    (fault,) = doctor.version_rows(versions)
    assert fault.found == "2.12 on n0; 2.13 on n1, n2, n3 and 26 more"


OFFSETS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.tuples(st.floats(-100, 100), st.floats(0, 10)), min_size=1
)


@given(OFFSETS)
def test_a_clock_is_at_fault_if_it_is_surely_off(offsets: dict[str, tuple[float, float]]) -> None:
    rows = list(doctor.clock_rows(offsets))
    sure = [node for node, (offset, unsure) in offsets.items() if abs(offset) - unsure > doctor.CLOCK_SECONDS]
    assert [row.what for row in rows if row.fault] == [f"clock of {node}" for node in sure]
    assert bool(sure) != any(not row.fault for row in rows)


def test_a_clock_is_said_to_be_ahead_or_behind() -> None:
    ahead, behind = doctor.clock_rows({"a": (12.0, 0.1), "b": (-3600.0, 0.1)})
    assert (ahead.found, behind.found) == ("12.0 s ahead of this one's", "3600.0 s behind this one's")


def node(cache: float = 100, temporary: float = 100, shared: float = 12, total: float = 200) -> Node:
    rooms = Room("/cache", int(cache * GIB), int(total * GIB)), Room("/tmp/ray", int(temporary * GIB), int(total * GIB))
    return Node({}, "eth0", *rooms, Room("/dev/shm", int(shared * GIB), int(shared * GIB)))


@pytest.mark.parametrize(
    ("given_node", "what"),
    [
        (node(), []),
        (node(cache=1), ["disk of a"]),
        (node(temporary=9), ["disk of a"]),  # more than 95 % full: Ray refuses objects
        (node(shared=1 / 16), ["memory of a"]),  # what Docker gives
        (node(cache=0, temporary=0, shared=0), ["disk of a", "disk of a", "memory of a"]),
    ],
)
def test_too_little_room_is_a_fault(given_node: Node, what: list[str]) -> None:
    rows = list(doctor.room_rows("a", given_node))
    assert [row.what for row in rows] == what
    assert all(row.fault for row in rows)


def test_a_node_that_lacks_the_project_is_told_what_to_install() -> None:
    answers = {"a": node(), "b": ModuleNotFoundError("No module named 'cddpm'"), "c": doctor.SearchError("is gone")}
    without, gone = doctor.silent_rows(answers)
    assert (without.what, without.found) == ("node b", "No module named 'cddpm'")
    assert "requirements.lock" in without.remedy
    assert (gone.what, gone.found) == ("node c", "is gone")


def test_a_folder_that_is_not_there_is_a_fault_without_asking_a_node(tmp_path: Path) -> None:
    (row,) = doctor.storage_rows(str(tmp_path / "absent"), ["10.77.0.2"])
    assert row.fault
    assert "No such file or directory" in row.found


def test_a_sweep_on_nodes_that_do_not_fit_is_refused_with_every_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = {"10.77.0.2": "2.13.0", "10.77.0.3": "2.12.1"}
    offsets = {"10.77.0.2": (0.0, 0.1), "10.77.0.3": (90.0, 0.1)}

    def ask(function: Any, given: dict[str, Any], seconds: float) -> dict[str, Any]:
        if function is doctor._versions:
            return {node: {"ray": "2.60.0", "torch": torch[node]} for node in given}
        return dict.fromkeys(given, (100.0, 100.0))

    monkeypatch.setattr(doctor, "_resources", lambda: dict.fromkeys(torch, (16.0, 0.0, "")))
    monkeypatch.setattr(doctor, "_offset", offsets.get)
    monkeypatch.setattr(doctor, "ask", ask)
    with pytest.raises(doctor.SearchError, match="do not fit together") as refused:
        doctor.refuse_unfit(str(tmp_path))
    _, *faults = str(refused.value).splitlines()
    assert [fault.partition(":")[0] for fault in faults] == ["torch", "clock of 10.77.0.3"]
    assert "2.12.1 on 10.77.0.3" in faults[0]
    torch["10.77.0.3"], offsets["10.77.0.3"] = "2.13.0", (0.0, 0.1)
    doctor.refuse_unfit(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [80, 60, 120])
def test_the_screen_of_three_nodes_is_no_wider_than_the_terminal(width: int) -> None:
    checks = [
        Check("versions", "Python 3.11.7, ray 2.60.0, torch 2.13.0+cu128, cddpm 0.1.0 (3f2a90aa)"),
        *doctor.clock_rows({"10.77.0.2": (0.001, 0.02), "10.77.0.3": (61.0, 0.02)}),
        *doctor.room_rows("10.77.0.3", node(cache=0, shared=0.06)),
        Check(
            "all-reduce (gloo)", "fails between 10.77.0.2 and 10.77.0.3 (timed out after 15 s)", "open all TCP ports"
        ),
    ]
    nodes = {f"10.77.0.{number}": (16.0, 1.0, node() if number < 4 else None) for number in (2, 3, 4)}
    text = io.StringIO()
    command.show(Report(nodes, checks), Console(file=text, width=width))
    assert not too_long(text.getvalue(), width)
    assert "4 faults" in text.getvalue()
