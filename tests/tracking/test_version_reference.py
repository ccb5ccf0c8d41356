"""How a person names a version."""

import pytest

from cddpm.errors import TrackingError
from cddpm.tracking.reference import find
from cddpm.tracking.version import Version

RUN = "0123456789abcdef" * 2


def _version(number: int, aliases: tuple[str, ...] = (), sweep: str | None = "demo", run: str = RUN) -> Version:
    trial = None if sweep is None else number
    return Version(number, aliases, sweep, trial, run, "m-1", "f", "2026-01-01T00:00:00+00:00", {}, {})


VERSIONS = [_version(12, ("champion", "tried")), _version(3), _version(1, sweep=None, run="f" * 32)]


@pytest.mark.parametrize(
    ("ref", "number"),
    [("12", 12), ("champion", 12), ("tried", 12), ("demo/0003", 3), (RUN, 12), ("f" * 32, 1)],  # the newest of a run
)
def test_every_name_is_found(ref: str, number: int) -> None:
    assert find(ref, VERSIONS, "'cddpm'").number == number


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("champoin", "did you mean champion?"),
        ("demo/003", "did you mean demo/0003"),
        ("zzz", "there are champion, tried, demo/0012, 12, demo/0003, 3, 1"),
        (RUN[:20], f"did you mean {RUN}"),
    ],
)
def test_a_wrong_one_gets_the_nearest(ref: str, told: str) -> None:
    with pytest.raises(TrackingError, match=f"'{ref}' is no version of 'cddpm'; ") as caught:
        find(ref, VERSIONS, "'cddpm'")
    assert told in str(caught.value)
    assert "(allowed: a version number, an alias, a run id or <sweep>/<trial>)" in str(caught.value)


def test_nothing_there() -> None:
    with pytest.raises(TrackingError, match="there are none yet"):
        find("1", [], "'cddpm'")
