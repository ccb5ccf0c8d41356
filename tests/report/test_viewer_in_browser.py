"""The viewer in Chromium: sliders moved by keys change pictures and numbers, and the numbers are Python's."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from drawn_exhibit import drawn

from cddpm.report import document, viewer
from cddpm.report.document import Section
from cddpm.report.viewer import Exhibit
from cddpm.scoring import metrics

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

VIEWS = ("input", "reconstruction", "map", "live", "segmentation", "truth")


@pytest.fixture(scope="module")
def exhibits() -> list[Exhibit]:
    return [drawn("first"), drawn("without truth", truth=False)]


@pytest.fixture(scope="module")
def page(exhibits: list[Exhibit], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    sections = [Section("look", "Look through", [viewer.viewer(exhibits)])]
    path.write_text(document.page("Drawn volumes", [], sections))
    return path.as_uri()


@pytest.fixture
def opened(browser: Browser, page: str) -> Iterator[Browser]:
    """The page, just opened; afterwards nothing was loaded and no script has failed."""
    browser.open(page)
    browser.wait("document.getElementById('viewer').dataset.ready === 'first'")
    yield browser
    assert browser.console == []
    assert browser.requested == []


def pictures(browser: Browser) -> dict[str, str]:
    """A digest of the pixels of every view."""
    return {
        view: hashlib.sha256(
            browser.run(f"document.querySelector('[data-view={view}]').toDataURL()").encode()
        ).hexdigest()
        for view in VIEWS
    }


def focus(browser: Browser, control: str) -> None:
    browser.run(f"document.getElementById('viewer-{control}').focus()")


def said(browser: Browser, control: str) -> str:
    return str(browser.run(f"document.querySelector('output[for=viewer-{control}]').textContent"))


def reading(browser: Browser, name: str) -> tuple[float | None, str]:
    """A number in full, and as it is shown."""
    value, shown = browser.run(f"(e => [e.dataset.value, e.textContent])(document.getElementById('viewer-{name}'))")
    return (float(value) if value else None), shown


def threshold(browser: Browser) -> float:
    return float(browser.run("document.querySelector('output[for=viewer-threshold]').dataset.value"))


def matches(browser: Browser, exhibit: Exhibit) -> None:
    """Numbers in the page are those of Python at the same threshold, to the last bit."""
    assert exhibit.truth is not None
    counted = metrics.confusion(exhibit.anomaly_map.astype(np.float64) > threshold(browser), exhibit.truth)
    for name in ("dice", "precision", "recall"):
        value, shown = reading(browser, name)
        assert value == getattr(counted, name)
        assert value is None or abs(float(shown) - value) <= 0.5e-4
    found, shown = reading(browser, "found")
    assert found == counted.true_positive + counted.false_positive
    assert shown == f"{found * 0.0025:.2f} ml"


def test_the_threshold_moves_pictures_and_numbers(opened: Browser, exhibits: list[Exhibit], tmp_path: Path) -> None:
    assert threshold(opened) == exhibits[0].threshold
    assert said(opened, "threshold") == "0.2 (operating point)"
    matches(opened, exhibits[0])
    assert reading(opened, "kept")[0] == metrics.dice(exhibits[0].segmentation, exhibits[0].truth)
    seen = {reading(opened, "dice")[0]}
    before, thresholds = pictures(opened), [threshold(opened)]
    opened.picture(tmp_path / "operating-point.png")
    focus(opened, "threshold")
    for key, times in (("ArrowRight", 9), ("ArrowLeft", 40), ("Home", 1), ("End", 1), ("ArrowLeft", 30)):
        opened.press(key, times)
        matches(opened, exhibits[0])
        seen.add(reading(opened, "dice")[0])
        thresholds.append(threshold(opened))
    opened.picture(tmp_path / "moved.png")
    assert len(seen) == len(set(thresholds)) == 6
    after = pictures(opened)
    assert {view for view in VIEWS if before[view] != after[view]} == {"live"}


def test_buttons_go_to_the_operating_point_and_to_the_best(opened: Browser, exhibits: list[Exhibit]) -> None:
    made = exhibits[0]
    opened.click("[data-part=best]")
    matches(opened, made)
    scores = made.anomaly_map.astype(np.float64)
    every = [
        metrics.dice(scores > t, made.truth)
        for t in opened.run("JSON.parse(document.querySelector('.exhibit').text).stops")
    ]
    assert reading(opened, "dice")[0] == max(every)
    opened.click("[data-part=own]")
    assert threshold(opened) == made.threshold


def test_slices_and_opacity_move_pictures_and_no_number(opened: Browser) -> None:
    numbers, before, first = reading(opened, "dice"), pictures(opened), said(opened, "slice")
    focus(opened, "slice")
    opened.press("ArrowRight")
    moved = pictures(opened)
    assert said(opened, "slice") != first
    assert all(moved[view] != before[view] for view in VIEWS if view != "reconstruction")
    label = opened.run("document.querySelector('[data-view=map]').getAttribute('aria-label')")
    assert label == f"map, axial slice {said(opened, 'slice')}"
    focus(opened, "opacity")
    opened.press("Home")
    clear = pictures(opened)
    assert {view for view in VIEWS if clear[view] != moved[view]} == {"live", "segmentation", "truth"}
    assert clear["live"] == clear["segmentation"] == clear["truth"] == clear["input"]
    assert reading(opened, "dice") == numbers


def test_each_plane_lies_as_a_radiologist_expects(browser: Browser, tmp_path: Path) -> None:
    """One bright voxel far to the patient's left, at the front, at the top; and a dark one at the other end."""
    image = np.full((4, 5, 6), 0.5)
    image[3, 0, 5] = 1.0
    nothing = np.zeros(image.shape)
    made = Exhibit("corner", image, nothing, (0, 1), nothing, nothing > 0, None, 0.1, (1.0, 1.0, 1.0), "")
    path = tmp_path / "corner.html"
    path.write_text(document.page("corner", [], [Section("look", "Look", [viewer.viewer([made])])]))
    browser.open(path.as_uri())
    browser.wait("document.getElementById('viewer').dataset.ready === 'corner'")
    white = """(() => { const c = document.querySelector('[data-view=input]'), d = c.getContext('2d').getImageData(0, 0, c.width,
        c.height).data, at = []; for (let i = 0; i < d.length; i += 4) if (d[i] === 255) at.push([(i / 4) % c.width,
        Math.floor(i / 4 / c.width)]); return [c.width, c.height, ...at]; })()"""
    for plane, slice_key, wanted, sides in (
        ("axial", "End", [4, 5, [3, 0]], ["R", "L"]),  # left of the patient on the right, front up
        ("coronal", "Home", [4, 6, [3, 0]], ["R", "L"]),  # head up
        ("sagittal", "End", [5, 6, [0, 0]], ["A", "P"]),  # front on the left, head up
    ):
        browser.run(
            f"(s => {{ s.value = '{plane}'; s.dispatchEvent(new Event('change')); }})(document.getElementById('viewer-plane'))"
        )
        focus(browser, "slice")
        browser.press(slice_key)
        assert browser.run(white) == wanted
        assert browser.run("(p => [p.dataset.left, p.dataset.right])(document.querySelector('.plane'))") == sides


def test_another_volume_without_truth(opened: Browser, exhibits: list[Exhibit]) -> None:
    focus(opened, "volume")
    opened.press("ArrowDown")
    opened.wait("document.getElementById('viewer').dataset.ready === 'without truth'")
    text = opened.text()
    assert "Drawn for a test: without truth." in text
    for word in ("Truth", "Dice", "precision", "false alarm"):
        assert word not in text
    above = exhibits[1].anomaly_map.astype(np.float64) > threshold(opened)
    assert reading(opened, "found")[0] == above.sum()


def test_every_control_is_reached_by_keys(opened: Browser) -> None:
    reached = []
    focus(opened, "volume")
    for _ in range(7):
        reached.append(opened.run("document.activeElement.id || document.activeElement.dataset.part"))
        opened.press("Tab")
    assert reached == [*(f"viewer-{n}" for n in ("volume", "plane", "slice", "threshold", "opacity")), "own", "best"]


@pytest.mark.parametrize("width", [400, pytest.param(1280, marks=pytest.mark.nightly)])
def test_it_fits_light_and_dark(opened: Browser, tmp_path: Path, width: int) -> None:
    opened.resize(width)
    ground = {}
    for dark in (False, True):
        opened.dark(dark)
        assert opened.run("document.documentElement.scrollWidth") <= width
        ground[dark] = opened.run("getComputedStyle(document.querySelector('.controls')).backgroundColor")
        opened.picture(tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
    assert ground[False] != ground[True]
