"""What a person is told of hosts that go and come."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cddpm.cluster.roster import Roster


def nodes(*alive: str, lost: tuple[str, ...] = (), ended: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """As ``ray.nodes()`` lists them; who is dead stays in it."""
    dead = [(address, 2) for address in lost] + [(address, 1) for address in ended]
    return [{"NodeManagerAddress": a, "Alive": True, "DeathReason": 0} for a in alive] + [
        {"NodeManagerAddress": a, "Alive": False, "DeathReason": reason} for a, reason in dead
    ]


def test_a_host_is_lost_and_its_successor_joins() -> None:
    roster = Roster()
    assert roster.update(nodes("h2", "h3"), 0) == []
    assert roster.waiting(0) == ""
    assert roster.update(nodes("h2", lost=("h3",)), 10) == ["host h3 lost; 1 of 2 hosts left"]
    assert roster.update(nodes("h2", lost=("h3",)), 12) == []
    assert roster.waiting(34) == "1 of 2 hosts; waiting for a successor since 0:24"
    assert roster.update(nodes("h2", "h3", lost=("h3",)), 40) == ["host h3 joined after 0:30; 2 hosts now"]
    assert roster.waiting(41) == ""


def test_a_successor_with_another_address_is_one() -> None:
    roster = Roster()
    roster.update(nodes("h2", "h3"), 0)
    roster.update(nodes("h2", lost=("h3",)), 10)
    assert roster.update(nodes("h2", "h9", lost=("h3",)), 20) == ["host h9 joined after 0:10; 2 hosts now"]
    assert roster.waiting(21) == ""


def test_a_host_that_was_ended_on_purpose_is_not_missed() -> None:
    roster = Roster()
    roster.update(nodes("h2", "h3"), 0)
    assert roster.update(nodes("h2", ended=("h3",)), 10) == []
    assert roster.waiting(20) == ""


ADDRESSES = st.sets(st.sampled_from(["h2", "h3", "h4", "h5"]), min_size=1)


@given(st.lists(ADDRESSES, min_size=1, max_size=12))
def test_after_any_course_we_wait_only_while_hosts_are_fewer_than_there_were(course: list[set[str]]) -> None:
    roster, ever = Roster(), set[str]()
    for moment, alive in enumerate(course):
        ever |= alive
        roster.update(nodes(*sorted(alive), lost=tuple(sorted(ever - alive))), float(moment))
        waiting = roster.waiting(float(moment))
        if waiting:
            there, of = (int(word) for word in waiting.split() if word.isdigit())
            assert there == len(alive) < of
    assert roster.update(nodes(*sorted(ever)), 99.0) == [] or roster.waiting(99.0) == ""


def test_for_a_minute_after_a_host_has_joined_all_say_again_what_they_have_free() -> None:
    roster = Roster()
    roster.update(nodes("a", "b"), 0.0)
    assert not roster.unsettled(1.0)
    roster.update(nodes("a", lost=("b",)), 10.0)
    assert not roster.unsettled(11.0)
    roster.update(nodes("a", "b"), 100.0)
    asked = [now for now in range(100, 300) if roster.unsettled(float(now))]
    assert asked[0] == 100
    assert len(asked) > 10
    assert asked[-1] < 160
