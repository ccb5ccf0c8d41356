"""The official downloads of IXI, BraTS 2021, the MS data of Ljubljana (MSLUB), ATLAS R2.0 and the WMH challenge.

=========  ==============================================================================================
IXI        ``IXI012-HH-1211-T2.nii.gz``, in a folder for each modality or in one; ages from ``IXI.xls``, saved as CSV
Brats21    ``BraTS2021_00000/BraTS2021_00000_t2.nii.gz``, ``_seg``; of 2023 ``BraTS-GLI-00000-000-t2w.nii.gz``,
           whose last number is the time point: one person is one subject
MSLUB      ``patient01/patient01_T2W.nii.gz``, ``_consensus_gt``, ``_brainmask`` if it is there
ATLAS_v2   ``sub-r001s001/ses-1/anat/*_T1w.nii.gz``, ``*_label-L_desc-T1lesion_mask.nii.gz``
WMH        ``Utrecht/0/pre/T1.nii.gz`` (else ``orig/``), ``Utrecht/0/wmh.nii.gz``
=========  ==============================================================================================

Files are known by their own names; folders above them may have any. A subject that lacks something is told and left out, or
goes without (a modality of a healthy one); it never stops the others.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cddpm.data.finding import Finding
from cddpm.data.pattern import SharedOut, Shares
from cddpm.data.raw.head import RawSubject
from cddpm.data.raw.tree import Found, ages, first_of, first_session, is_empty, joined, scans, warning

MASK, SEGMENTATION = "mask", "segmentation"


@dataclass(frozen=True)
class Download:
    """How one official download names its files."""

    name: str
    healthy: bool
    modalities: tuple[str, ...]
    """Those that are prepared unless others are asked for."""
    file: re.Pattern[str]
    """Of a path without ends: groups ``subject`` and ``kind``, and where there are such ``site``, ``session``, ``variant``."""
    kinds: Mapping[str, str]
    """By ``kind`` in small letters: a modality, ``mask`` or ``segmentation``."""
    shares: SharedOut
    looks: str
    """Names as a person would look for them."""


def _shares(train: float, val: float, test: float, folds: int | None = None) -> SharedOut:
    return SharedOut(split=Shares(train=train, val=val, test=test), folds=folds)


_BRATS = {
    "t1": "t1",
    "t1n": "t1",
    "t1ce": "t1ce",
    "t1c": "t1ce",
    "t2": "t2",
    "t2w": "t2",
    "flair": "flair",
    "t2f": "flair",
}
_MSLUB = {"t1w": "t1", "t1wks": "t1ks", "t2w": "t2", "flair": "flair", "consensus_gt": SEGMENTATION}
DOWNLOADS: dict[str, Download] = {
    one.name: one
    for one in (
        Download(
            "IXI",
            True,
            ("t1", "t2"),
            re.compile(r"(?:^|.*/)(?P<subject>IXI\d{3}-[A-Za-z]+-\d{4})-(?P<kind>T1|T2|PD|MRA)", re.IGNORECASE),
            {"t1": "t1", "t2": "t2", "pd": "pd", "mra": "mra"},
            _shares(0.65, 0.08, 0.27, 5),
            "IXI012-HH-1211-T1.nii.gz",
        ),
        Download(
            "Brats21",
            False,
            ("t1", "t2"),
            re.compile(
                r"(?:^|.*/)(?P<subject>BraTS2021_\d{5}|BraTS-GLI-\d{5}(?=-\d{3}))(?:-(?P<session>\d{3}))?"
                r"[_-](?P<kind>t1ce|t1n|t1c|t1|t2w|t2f|t2|flair|seg)",
                re.IGNORECASE,
            ),
            {**_BRATS, "seg": SEGMENTATION},
            _shares(0, 0.08, 0.92),
            "BraTS2021_00000/BraTS2021_00000_t1.nii.gz",
        ),
        Download(
            "MSLUB",
            False,
            ("t1", "t2"),
            re.compile(
                r"(?:^|.*/)(?P<subject>patient\d{1,3})_(?P<kind>T1WKS|T1W|T2W|FLAIR|consensus_gt|brain_?mask)",
                re.IGNORECASE,
            ),
            {**_MSLUB, "brainmask": MASK, "brain_mask": MASK},
            _shares(0, 1 / 3, 2 / 3),
            "patient01/patient01_T1W.nii.gz",
        ),
        Download(
            "ATLAS_v2",
            False,
            ("t1",),
            re.compile(
                r"(?:^|.*/)(?P<subject>sub-[A-Za-z0-9]+)_(?P<session>ses-[A-Za-z0-9]+)(?:_[a-z]+-[A-Za-z0-9]+)*?"
                r"_(?P<kind>T1w|label-L_(?:[a-z]+-[A-Za-z0-9]+_)*?desc-T1lesion_mask)",
                re.IGNORECASE,
            ),
            {"t1w": "t1", "label-l_desc-t1lesion_mask": SEGMENTATION},
            _shares(0, 0.27, 0.73),
            "sub-r001s001/ses-1/anat/sub-r001s001_ses-1_T1w.nii.gz",
        ),
        Download(
            "WMH",
            False,
            ("t1",),
            re.compile(
                r"(?:^|.*/)(?P<site>Utrecht|Singapore|GE3T|GE1T5|Philips)[^/]*/(?P<subject>\d{1,3})"
                r"(?:/(?P<variant>pre|orig))?/(?P<kind>T1|FLAIR|wmh|brain_?mask)",
                re.IGNORECASE,
            ),
            {"t1": "t1", "flair": "flair", "wmh": SEGMENTATION, "brainmask": MASK, "brain_mask": MASK},
            _shares(0, 0.25, 0.75),
            "Utrecht/0/pre/T1.nii.gz",
        ),
    )
}

Files = dict[str, list[Path]]
"""By modality, ``mask`` or ``segmentation``: files, the preferred one first."""


def find(download: Download, root: Path, modalities: Sequence[str] = ()) -> Found:
    """Subjects of one official download below ``root`` with their files of ``modalities`` (empty: its usual ones)."""
    wanted = tuple(modalities) or download.modalities
    findings: list[Finding] = []
    sessions, strangers = _by_session(download, root, findings)
    if strangers:
        found = f"{len(strangers)} files have none of the names of {download.name}"
        findings.append(
            warning("strange-name", strangers[0], found, f"left out; looked for as {download.looks}", strangers[1:])
        )
    if not sessions:
        found = f"no scan of {download.name}"
        findings.append(Finding("error", "no-match", str(root), found, f"names are looked for as {download.looks}"))
    years, told = _ixi_ages(root) if download.name == "IXI" else ({}, [])
    findings += told
    subjects = []
    for name, of in sorted(sessions.items()):
        files = of[first_session(findings, name, of, "folders" if "site" in download.file.groupindex else "sessions")]
        subjects.append(_subject(download, name, files, wanted, years.get(name[3:6].lstrip("0")), findings))
    there = tuple(subject for subject in subjects if subject)
    return Found(download.name, download.healthy, there, tuple(findings), download.shares, tuple(sessions))


def _by_session(
    download: Download, root: Path, findings: list[Finding]
) -> tuple[dict[str, dict[str, Files]], list[Path]]:
    """Files by subject and session, and scans of other names."""
    found: defaultdict[str, defaultdict[str, defaultdict[str, list[tuple[str, Path]]]]]
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    strangers: list[Path] = []
    for stem, path in scans(root):
        match = download.file.fullmatch(stem)
        if match is None:
            strangers.append(path)
        elif is_empty(path):
            findings.append(warning("empty-file", path, "0 bytes", "taken for missing; copy it again from its source"))
        else:
            groups = match.groupdict()
            kind = re.sub(
                r"(?<=l_).*(?=desc)", "", groups["kind"].lower()
            )  # ATLAS: label-L_space-..._desc-T1lesion_mask
            variant = (groups.get("variant") or "").lower()
            # two folders of one site may count alike
            session = stem[: match.end("subject")] if groups.get("site") else (groups.get("session") or "").lower()
            role = found[_name(groups)][session][download.kinds[kind]]
            role.append(("" if variant == "pre" else variant or "-", path))
    sessions = {
        subject: {
            session: {role: [path for _, path in sorted(files)] for role, files in roles.items()}
            for session, roles in of.items()
        }
        for subject, of in found.items()
    }
    return sessions, strangers


def _name(groups: Mapping[str, str | None]) -> str:
    """As the published tables have it: ``IXI012-HH-1211``, ``patient01``, ``sub-r001s001``, ``Utrecht_0``."""
    subject, site = groups["subject"] or "", groups.get("site")
    return f"{site}_{subject}" if site else subject


def _subject(
    download: Download, name: str, files: Files, wanted: Sequence[str], age: float | None, findings: list[Finding]
) -> RawSubject | None:
    def only(role: str) -> Path | None:
        several = files.get(role, [])
        # the WMH challenge has every scan as it was and preprocessed
        alike = [path for path in several if download.name != "WMH" or path.parent == several[0].parent]
        return first_of(findings, name, role, alike)

    here = next(iter(files.values()))[0].parent
    segmentation = None if download.healthy else only(SEGMENTATION)
    label = 0 if download.healthy else 1
    subject = RawSubject(download.name, name, {}, only(MASK), segmentation, label=label, age=age)
    return joined(findings, here, subject, {modality: only(modality) for modality in wanted})


def _ixi_ages(root: Path) -> tuple[dict[str, float], list[Finding]]:
    """Years by number of the subject without leading zeros."""
    tables = sorted(path for path in root.rglob("*.csv") if path.stem.lower() == "ixi")
    if tables:
        years, told = ages(tables[0], "IXI_ID", "AGE")
        return {name.removeprefix("IXI").lstrip("0"): age for name, age in years.items()}, told
    sheets = sorted(path for path in root.rglob("*.xls*") if path.stem.lower() == "ixi")
    found = "no table of ages (IXI.csv)" if not sheets else "ages in a spreadsheet's own format"
    allowed = "ages are left empty; save IXI.xls as IXI.csv beside it to have them"
    return {}, [warning("ages", sheets[0] if sheets else root, found, allowed)]
