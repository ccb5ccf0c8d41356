"""The page of a cohort: who is odd comes first and is told why; what was looked at once is not read again."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cddpm.cli import app
from cddpm.config import DataConfig, load
from cddpm.data.exclusion import exclusion_file
from cddpm.data.layout import whole_layout
from cddpm.data.outlier import ODD
from cddpm.errors import DataError
from cddpm.report import cohort, survey
from cddpm.report.survey import Scan, Survey

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(looked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(looked, tmp_path_factory.mktemp("looked"), dirs_exist_ok=True))


@pytest.fixture(scope="module")
def data(folder: Path) -> DataConfig:
    return load(folder / "looked.yaml", {"data.data_dir": str(folder / "data")}).data


@pytest.fixture(scope="module")
def found(folder: Path, data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDDPM_CACHE", str(tmp_path_factory.mktemp("cache")))
        first = survey.survey(data, folder / "data", ("t2",))
        patch.setattr(survey, "look_at", None)  # nothing is read again
        again = survey.survey(data, folder / "data", ("t2",))
    assert again.to_dict() == first.to_dict()
    assert cohort.html(again) == cohort.html(first)
    return first


def test_the_odd_come_first_and_say_why(found: Survey) -> None:
    first, second = found.scans[:2]
    assert [finding.code for finding in first.look.findings] == ["truncated"]
    assert second.row.subject.startswith("IXI002")
    assert second.judged.reasons(found.figures)[0].startswith("noise ")
    assert {scan.row.dataset for scan in found.scans} == {"IXI", "Brats21"}
    assert len(found.scans) == 13


def test_a_changed_scan_is_looked_at_again(
    folder: Path, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDDPM_CACHE", str(tmp_path))
    row = next(row for row in whole_layout(data, folder / "data").rows if row.subject.startswith("IXI004"))
    before = survey.kept_look(data, row)
    content = row.image.read_bytes()
    try:
        row.image.write_bytes(content[:2000])
        assert [finding.code for finding in survey.kept_look(data, row).findings] == ["truncated"]
        row.image.write_bytes(content)
        assert survey.kept_look(data, row).digest == before.digest
    finally:
        row.image.write_bytes(content)
    (kept,) = (tmp_path / survey.FOLDER).iterdir()  # one per scan, however often it changes
    kept.write_text("{")
    assert survey.kept_look(data, row).digest == before.digest


def test_the_page_holds_everything_and_loads_nothing(found: Survey) -> None:
    page = cohort.html(found)
    assert page.count('<li class="scan') == len(found.scans)
    assert page.count("data:image/webp") == len(found.scans) - 1
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert found.list_file in page


@contextmanager
def manifests(folder: Path, told: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Of preparation, one for each of ``told``, and one that is broken."""
    place = folder / "data" / "manifests"
    try:
        (place / "IXI").mkdir(parents=True)
        (place / "IXI" / "broken.json").write_text("{")
        for number, one in enumerate(told):
            (place / "IXI" / f"{number}.json").write_text(json.dumps(one))
        yield
    finally:
        shutil.rmtree(place)


def about(scan: Scan, **more: Any) -> dict[str, Any]:
    return {"dataset": scan.row.dataset, "subject": scan.row.subject, **more}


def test_manifests_of_preparation_are_columns(folder: Path, data: DataConfig, found: Survey) -> None:
    assert "registration_similarity" not in {figure.key for figure in found.figures}
    healthy = [scan for scan in found.scans if scan.row.dataset == "IXI"]
    figures = [
        {"registration_similarity": 0.9 - 0.1 * (number == 4), "steps": 3, "accepted": True}
        for number in range(len(healthy))
    ]
    steps = [[{"name": "register", "figures": one}] for one in figures]
    with manifests(folder, [about(scan, steps=one) for scan, one in zip(healthy, steps, strict=True)]):
        again = survey.survey(data, folder / "data", ("t2",))
    assert [figure.key for figure in again.figures if figure not in found.figures] == ["registration_similarity"]
    odd = [scan for scan in again.scans if (scan.judged.values["registration_similarity"].z or 0) < -3.5]
    assert len(odd) == 1


def test_warnings_of_preparation_are_rows_counted_and_among_the_outliers(
    folder: Path, data: DataConfig, found: Survey
) -> None:
    assert not re.search(
        "preparation warns|warnings of preparation", cohort.html(found)
    )  # nothing is said of what nobody prepared
    last = found.scans[-1]
    lost = "label 1 had 3 ml before crop and has <2.7> ml (-10%)"
    alike = "the brain mask is of thresholds"
    warned = [about(scan, warnings=[alike, *([lost] if scan == last else [])]) for scan in found.scans]
    with manifests(folder, warned):
        again = survey.survey(data, folder / "data", ("t2",))
    outliers = [scan.key for scan in found.scans if scan.unreadable or scan.judged.score > ODD]
    assert [scan.key for scan in again.scans[: len(outliers) + 1]] == [*outliers, last.key]
    assert [scan.key for scan in again.scans if scan.warned] == [last.key]
    page = cohort.html(again)
    rows = page.split('<li class="scan')[1:]
    assert [lost.replace("<", "&lt;").replace(">", "&gt;") in row for row in rows].index(True) == len(outliers)
    assert re.search(r">1 of 13<[^1]*subjects with warnings of preparation of their own", page)
    assert page.count(alike) == 1
    assert f"Preparation warns of 13 of 13 scans alike: {alike}" in page
    (told,) = (one for one in again.to_dict()["scans"] if one["subject"] == last.row.subject)
    assert told["warnings"] == [alike, lost]
    assert told["score"] == ODD


def test_a_manifest_without_warnings_is_counted_too(folder: Path, data: DataConfig, found: Survey) -> None:
    with manifests(folder, [about(found.scans[-1], warnings=[]), about(found.scans[-2], warnings="no list")]):
        again = survey.survey(data, folder / "data", ("t2",))
    assert [scan.key for scan in again.scans] == [scan.key for scan in found.scans]
    assert "0 of 2" in cohort.html(again)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        given = ["data", "report", str(folder / "data"), *map(str, words)]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    config = ("--config", folder / "looked.yaml", "--out", tmp_path / "page.html")
    told = " ".join(run(*config).split())
    assert "page.html: 13 scans; its list belongs to" in told
    assert re.search(r"IXI/IXI002 t2: noise", told)
    scans = json.loads(run(*config, "--json"))["scans"]
    assert scans[1]["figures"]["noise"]["z"] > 3.5
    assert [scan["excluded"] for scan in scans] == [False] * 13


def test_nothing_to_look_at_is_told(folder: Path, data: DataConfig) -> None:
    with pytest.raises(DataError, match="no scan of the modalities flair is there"):
        survey.survey(data, folder / "data", ("flair",))


def test_a_list_that_cannot_be_read_is_told_before_any_work(folder: Path, data: DataConfig) -> None:
    path = exclusion_file(data, folder / "data")
    path.write_text("who\nIXI001\n")
    try:
        with pytest.raises(DataError, match=r"exclude\.csv: no column 'dataset', 'subject'"):
            survey.survey(data, folder / "data", ("t2",), parallel_map=lambda *_: [])
    finally:
        path.unlink()
