"""The page in Chromium: no network, no errors, a click sorts, narrow windows fit, light and dark differ."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cddpm.report import page
from cddpm.search.record import SweepRecord

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

PROBE = """
<script>
const table = document.querySelector("table.sortable");
const column = Array.from(table.tHead.rows[0].cells, (c) => c.textContent).indexOf("learning_rate");
const values = () => Array.from(table.tBodies[0].rows, (r) => r.cells[column].textContent);
const found = { before: values(), width: innerWidth, needed: document.documentElement.scrollWidth };
const heading = table.tHead.rows[0].cells[column];
heading.querySelector("button").click();
found.down = values();
found.downSaid = heading.getAttribute("aria-sort");
heading.querySelector("button").click();
found.up = values();
found.upSaid = heading.getAttribute("aria-sort");
found.ground = getComputedStyle(document.body).backgroundColor;
found.ink = getComputedStyle(document.body).color;
found.axis = getComputedStyle(document.querySelector("figure svg text")).fill;
found.loaded = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:"));
document.documentElement.setAttribute("data-found", JSON.stringify(found));
</script>
</body>"""
CONSOLE = re.compile(r"CONSOLE[^\n]*")


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(names)} is installed")
    return found


@pytest.fixture(scope="module")
def probed(long: SweepRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with a script that clicks and looks."""
    path = tmp_path_factory.mktemp("page") / "probed.html"
    path.write_text(page.html(long).replace("</body>", PROBE))
    return path


def look(chromium: str, path: Path, folder: Path, width: int = 1000, dark: bool = False) -> tuple[dict[str, Any], str]:
    """What the probe found, and what the console said. No host can be reached."""
    command = [
        chromium,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={folder}",
        f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    return json.loads(html.unescape(match[1])), "\n".join(CONSOLE.findall(done.stderr))


def test_it_opens_without_network_or_errors_and_sorts(chromium: str, probed: Path, tmp_path: Path) -> None:
    found, console = look(chromium, probed, tmp_path)
    assert console == ""
    assert found["loaded"] == []
    numbers = [float(v) for v in found["down"] if v != "-"]
    assert len(numbers) > 20
    assert numbers == sorted(numbers, reverse=True) != [float(v) for v in found["before"] if v != "-"]
    assert [float(v) for v in found["up"] if v != "-"] == sorted(numbers)
    assert found["up"][len(numbers) :] == found["down"][len(numbers) :]  # what has no value stays last
    assert (found["downSaid"], found["upSaid"]) == ("descending", "ascending")


@pytest.mark.parametrize("width", [500, 1600])  # headless windows are no narrower than 500
def test_nothing_sticks_out(chromium: str, probed: Path, tmp_path: Path, width: int) -> None:
    found, _ = look(chromium, probed, tmp_path, width)
    assert found["needed"] <= found["width"] == width


def test_it_has_a_light_and_a_dark_face(chromium: str, probed: Path, tmp_path: Path) -> None:
    light, dark = (look(chromium, probed, tmp_path, dark=dark)[0] for dark in (False, True))
    for name in ("ground", "ink", "axis"):
        assert light[name] != dark[name]
    assert sum(brightness(light["ground"])) > 600 > 200 > sum(brightness(dark["ground"]))


def brightness(colour: str) -> list[int]:
    return [int(v) for v in re.findall(r"\d+", colour)[:3]]
