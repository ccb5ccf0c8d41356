"""Looking through a cohort in Chromium: sort, choose, tick by keys, reload, download the list, and the subject is gone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.data.sheet import read_sheet

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SHOWN = "Array.from(document.querySelectorAll('#lineup > li:not([hidden])'))"


@pytest.fixture(scope="module")
def folder(looked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ticked")
    shutil.copytree(looked, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDDPM_CACHE", str(folder / "cache"))
        report(folder)
    return folder


def run(*words: object) -> str:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False).stdout


def report(folder: Path) -> None:
    config = ("--config", folder / "looked.yaml", "--out", folder / "page.html")
    assert "13 scans" in run("data", "report", folder / "data", *config)


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Browser]:
    browser.open((folder / "page.html").as_uri())
    browser.wait("document.getElementById('lineup').dataset.ready")
    yield browser
    browser.run("localStorage.clear()")
    assert browser.console == []
    assert browser.requested == []


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById('lineup-{name}'); e.value = {value!r};"
        "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
    )


def subjects(browser: Browser) -> list[str]:
    return list(browser.run(f"{SHOWN}.map((item) => item.dataset.subject)"))


def column(browser: Browser, key: str, what: str = "value") -> list[float]:
    cells = f"{SHOWN}.map((item) => item.querySelector('.chip[data-key={key}]').dataset.{what})"
    return [float(value) for value in browser.run(cells) if value is not None]


def test_sorting_and_choosing(opened: Browser) -> None:
    assert subjects(opened)[1].startswith("IXI002")
    for key in ("noise", "brain_ml"):
        choose(opened, "by", key)
        values = column(opened, key)
        assert len(values) == 12
        assert values == sorted(values, reverse=True)
        choose(opened, "order", "low")
        assert column(opened, key) == sorted(values)
        choose(opened, "order", "odd")
        sizes = [abs(z) for z in column(opened, key, "z")]
        assert sizes == sorted(sizes, reverse=True)
    choose(opened, "dataset", "IXI")
    choose(opened, "splits", "train")
    assert len(subjects(opened)) == 5
    assert all(name.startswith("IXI") for name in subjects(opened))
    choose(opened, "finding", "truncated")
    assert [name[:6] for name in subjects(opened)] == ["IXI003"]
    choose(opened, "name", "nobody")
    assert subjects(opened) == []
    assert "No scan is left" in opened.text()


def test_pictures_are_made_when_they_come_near(opened: Browser) -> None:
    opened.wait(
        "document.querySelector('img.grey').complete && document.querySelector('img.grey').naturalWidth === 384"
    )
    opened.run("scrollTo(0, document.body.scrollHeight)")
    opened.wait("document.querySelectorAll('img[data-src]').length === 0")


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_no_row_sticks_out(opened: Browser, width: int, tmp_path: Path) -> None:
    opened.resize(width)
    for large in (False, True):
        opened.picture(tmp_path / f"{width}-{large}.png", whole=False)
        assert opened.run("document.documentElement.scrollWidth") <= width
        opened.click("#lineup-large")


def test_ticks_become_a_list_that_the_check_honours(opened: Browser, folder: Path, tmp_path: Path) -> None:
    opened.run(f"{SHOWN}[0].querySelector('.tick').focus()")
    opened.press("ArrowDown")
    opened.press(" ")
    named = opened.run("document.activeElement.closest('li').dataset.subject")
    assert named.startswith("IXI002")
    assert "1 subject ticked" in opened.text()
    opened.press("End")
    opened.press(" ")
    opened.press(" ")  # not that one
    opened.run(
        f"(() => {{ const e = {SHOWN}[1].querySelector('.reason'); e.value = 'moved, \"twice\"';"
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    opened.open((folder / "page.html").as_uri())
    opened.wait("document.getElementById('lineup').dataset.ready")
    assert opened.run("document.querySelectorAll('.tick:checked').length") == 1
    opened.downloads(tmp_path)
    opened.click("#lineup-save")
    file = tmp_path / "exclude.csv"
    wait_for(opened, file)
    (record,) = (row for _, row in read_sheet(file, ("dataset", "subject", "reason")).records)
    assert record == {"dataset": "IXI", "subject": named, "reason": 'moved, "twice"'}

    check = ("data", "check", folder / "data", "--config", folder / "looked.yaml")
    before = run(*check)
    listed = folder / "data" / "splits" / "exclude.csv"
    shutil.copy(file, listed)
    try:
        after = " ".join(run(*check).split())
        assert "13 volumes read" in before
        assert "12 volumes read" in after
        assert f'1 subject excluded: IXI/{named} (moved, "twice"); dropped from every split' in after
        report(folder)  # who is excluded is still there, ticked, and can be taken back
        opened.run("localStorage.clear()")
        opened.open((folder / "page.html").as_uri())
        opened.wait("document.getElementById('lineup').dataset.ready")
        assert opened.run("document.querySelector('.tick:checked').closest('li').dataset.subject") == named
        opened.click(".tick:checked")
        assert "0 subjects ticked" in opened.text()
        opened.click("#lineup-reset")
        assert "1 subject ticked" in opened.text()
    finally:
        listed.unlink()


def wait_for(browser: Browser, file: Path) -> None:
    for _ in range(100):
        if file.exists() and file.stat().st_size:
            return
        browser.run("new Promise((done) => setTimeout(done, 100))")
    raise AssertionError(f"{file}: not downloaded; there are {list(file.parent.iterdir())}")
