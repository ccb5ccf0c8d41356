"""All scans of a DATA_DIR or a table as one page: a row of pictures and figures each, the oddest first, a box to take it out."""

from collections import Counter, defaultdict
from pathlib import Path

from cddpm import artifact
from cddpm.data.afar import told
from cddpm.data.outlier import ODD, Value, shown
from cddpm.data.quality import Figure
from cddpm.report.document import (
    Block,
    Cell,
    Lineup,
    LineupCell,
    LineupRow,
    Section,
    Table,
    Tiles,
    Words,
    cell,
    page,
)
from cddpm.report.survey import PREPARATION, Scan, Survey

FIRST = 1000.0
"""Added to the score of what cannot be trained on."""


def write(survey: Survey, path: Path) -> Path:
    """Write the page to the file ``path``; returns it. Raises ``StorageError`` if the disk refuses."""
    artifact.write_text(path, html(survey))
    return path


def html(survey: Survey) -> str:
    """The page."""
    return page(f"Scans of {survey.place}", _head(survey), [_scans(survey), _tables(survey), _meanings(survey)])


def _head(survey: Survey) -> list[Block]:
    scans = survey.scans
    tiles = {
        "scans": f"{len(scans):,}",
        "subjects": f"{len({scan.key for scan in scans}):,}",
        "cannot be trained on": str(sum(scan.unreadable for scan in scans)),
        "outliers": str(sum(scan.judged.score > ODD for scan in scans)),
        "with a finding of their own": str(sum(bool(survey.own(scan)) for scan in scans)),
        **_warned(survey),
        "excluded when this was made": str(len(survey.listed)),
    }
    return [
        Words(
            "The oddest first. Tick who is to be left out (space; arrow keys move from row to row), download the list, and "
            f"save it as {survey.list_file}: 'cddpm data check', 'cddpm data build', 'cddpm data splits' and every sweep then "
            "drop these subjects from every split. This browser keeps the ticks until then."
        ),
        Tiles(tiles),
        *(
            Words(f"Preparation warns of {count} of {len(scans)} scans alike: {told(found)}", "missing")
            for (code, found), count in survey.common.items()
            if code == PREPARATION
        ),
    ]


def _warned(survey: Survey) -> dict[str, str]:
    """Subjects that preparation warns of, and not of most alike; nothing without manifests."""
    if not survey.prepared:
        return {}
    warned = {scan.key for scan in survey.scans if scan.warned}
    return {"subjects with warnings of preparation of their own": f"{len(warned)} of {survey.prepared}"}


def _scans(survey: Survey) -> Section:
    used = [figure for figure in survey.figures if any(_value(scan, figure).value is not None for scan in survey.scans)]
    lineup = Lineup(
        rows=[_row(survey, scan, used) for scan in survey.scans],
        place=survey.place,
        list_file=survey.list_file,
        listed=[(one.dataset, one.subject, one.reason) for one in survey.listed],
        figures={figure.key: figure.name for figure in used},
    )
    return Section("scans", "Scans", [lineup])


def _value(scan: Scan, figure: Figure) -> Value:
    return scan.judged.values.get(figure.key, Value(None))


def _row(survey: Survey, scan: Scan, figures: list[Figure]) -> LineupRow:
    findings: defaultdict[str, list[str]] = defaultdict(list)
    for finding in survey.own(scan):
        findings[finding.code].append(told(finding.found))
    picture = scan.look.picture
    return LineupRow(
        dataset=scan.row.dataset,
        subject=scan.row.subject,
        modality=scan.modality,
        splits=scan.splits,
        scan=picture.scan if picture else "",
        marks=picture.marks if picture else "",
        cells=[_cell(scan, one) for one in figures if not one.logarithmic or _value(scan, one).value is not None],
        score=round(scan.score + FIRST * scan.unreadable, 3),
        odd=scan.judged.score > ODD,
        reasons=scan.judged.reasons(figures),
        findings=findings,
        faulty=scan.unreadable,
    )


def _cell(scan: Scan, figure: Figure) -> LineupCell:
    one = _value(scan, figure)
    usual = "" if one.z is None else f"z {one.z:+.1f}, usually {shown(figure, one.usual)}: {figure.meaning}"
    z = None if one.z is None else round(one.z, 2)
    return LineupCell(figure.key, figure.name, shown(figure, one.value), one.value, z, usual)


def _tables(survey: Survey) -> Section:
    """Usual values, and what is wrong with the tables themselves."""
    count = Counter((scan.row.dataset, scan.modality) for scan in survey.scans)
    first = {(scan.row.dataset, scan.modality): scan for scan in reversed(survey.scans)}
    lines = []
    for group, scan in sorted(first.items()):
        values = [_value(scan, figure).usual for figure in survey.figures]
        cells = [Cell(shown(figure, value), value) for figure, value in zip(survey.figures, values, strict=True)]
        lines.append([Cell(" ".join(group)), cell(count[group]), *cells])
    columns = ["data set", "scans", *(figure.name for figure in survey.figures)]
    caption = "Medians of each data set and modality, which its scans are compared with. None where fewer than five are known."
    faults: list[Block] = [Words(f"{told(one.file)}: {told(one.said)}", "missing") for one in survey.findings]
    common: list[Block] = [
        Words(f"Of {count} of {len(survey.scans)} scans: {told(found)} [{code}]")
        for (code, found), count in survey.common.items()
        if code != PREPARATION
    ]
    return Section("usual", "Usual values and tables", [*common, Table(caption, columns, lines), *faults])


def _meanings(survey: Survey) -> Section:
    lines = [[Cell(figure.name), Cell(figure.meaning)] for figure in survey.figures]
    least = f", at least {ODD:g} where preparation warns of the subject" if survey.prepared else ""
    caption = (
        "A figure's z is (value - median) / (1.4826 x median absolute deviation) within data set and modality; of lesions, of "
        f"the logarithm. Its colour grows with |z|: orange above the median, blue below. |z| above {ODD:g} is an outlier; the "
        f"largest |z| is the scan's outlier score{least}. Odd is not wrong: "
        "look. Pictures are all at one scale; planes are those with most lesion, or the middle of the brain; blue is the mask's "
        "outline, red the lesion; the patient's right is on the left."
    )
    return Section("meaning", "What the figures mean", [Table(caption, ["figure", "meaning"], lines, sortable=False)])
