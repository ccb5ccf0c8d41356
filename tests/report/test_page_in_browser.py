"""The page in Chromium: no network, no errors, a click sorts, narrow windows fit, light and dark differ."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser

from cddpm.report import page
from cddpm.search.record import SweepRecord

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

COLUMN = """Array.from(document.querySelectorAll("table.sortable thead th")).findIndex(
    (heading) => heading.textContent === "learning_rate")"""
DRAWN = "document.querySelectorAll('.chart .main-svg')"
INK = "getComputedStyle(document.querySelector('.chart svg .xtitle')).fill"
HEADING = "table.sortable thead th:nth-child({})"


@pytest.fixture(scope="module")
def address(long: SweepRecord, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page.html(long))
    return path.as_uri()


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Browser]:
    """The page, just opened; afterwards nothing was loaded and no script has failed."""
    browser.open(address)
    browser.wait("document.querySelectorAll('.chart').length === document.querySelectorAll('.chart .xtitle').length")
    yield browser
    assert browser.console == []
    assert browser.requested == []


def test_a_click_sorts(opened: Browser) -> None:
    column = opened.run(COLUMN)

    def values() -> list[str]:
        rows = "document.querySelector('table.sortable').tBodies[0].rows"
        return list(opened.run(f"Array.from({rows}, (row) => row.cells[{column}].textContent)"))

    def click() -> str:
        opened.click(f"{HEADING.format(column + 1)} button")
        return str(opened.run(f"document.querySelector('{HEADING.format(column + 1)}').getAttribute('aria-sort')"))

    before = values()
    assert click() == "descending"
    down = values()
    assert click() == "ascending"
    up = values()
    numbers = [float(v) for v in down if v != "-"]
    assert len(numbers) > 20
    assert numbers == sorted(numbers, reverse=True) != [float(v) for v in before if v != "-"]
    assert [float(v) for v in up if v != "-"] == sorted(numbers)
    assert up[len(numbers) :] == down[len(numbers) :]  # what has no value stays last


@pytest.mark.parametrize("width", [400, pytest.param(1600, marks=pytest.mark.nightly)])
def test_nothing_sticks_out(opened: Browser, width: int) -> None:
    opened.resize(width)
    assert opened.run("innerWidth") == width
    assert opened.run("document.documentElement.scrollWidth") <= width
    opened.wait(f"Array.from({DRAWN}, (e) => e.getBoundingClientRect().right).every((right) => right <= {width})")
    assert opened.run("document.documentElement.scrollWidth") <= width


def test_a_mark_tells_what_it_is(opened: Browser) -> None:
    opened.run("Plotly.Fx.hover(document.querySelector('#history .chart'), [{curveNumber: 1, pointNumber: 0}])")
    opened.wait("document.querySelector('#history .hovertext')")
    told = opened.run("document.querySelector('#history .hovertext').textContent")
    assert told.startswith("trial 0000: 0.")


def test_it_has_a_light_and_a_dark_face(opened: Browser, tmp_path: Path) -> None:
    seen = {}
    for dark in (False, True):
        opened.dark(dark)
        opened.wait(f"{INK} === getComputedStyle(document.body).color")  # charts follow
        seen[dark] = opened.run(
            f"[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, {INK}]"
        )
        opened.picture(tmp_path / f"{'dark' if dark else 'light'}.png")
    assert all(light != dark for light, dark in zip(seen[False], seen[True], strict=True))
    assert brightness(seen[False][0]) > 600 > 200 > brightness(seen[True][0])


def brightness(colour: str) -> int:
    return sum(int(v) for v in re.findall(r"\d+", colour)[:3])
