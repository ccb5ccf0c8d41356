"""A BIDS folder, known by itself: ``sub-*/[ses-*/]anat/*_T1w.nii.gz``, brain masks and lesions below ``derivatives``.

Maps of tissue (``dseg``) are no lesions, and what lies in a template's space does not lie on the scan.
Source: Gorgolewski et al. 2016, "The brain imaging data structure", specification 1.10. Of other files only the ages in
``participants.tsv`` are read; no sidecar is.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cddpm.data.finding import Finding
from cddpm.data.raw.custom import HEALTHY, UNHEALTHY
from cddpm.data.raw.head import RawSubject
from cddpm.data.raw.tree import Found, ages, first_of, first_session, is_empty, joined, scans, warning

SUFFIXES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw"}
_IMAGE = re.compile(
    r"(?P<subject>sub-[A-Za-z0-9]+)/(?:(?P<session>ses-[A-Za-z0-9]+)/)?anat/\1(?:_[A-Za-z0-9-]+)*?_(?P<suffix>[A-Za-z0-9]+)"
)
_DERIVED = re.compile(
    r"derivatives/(?:[^/]+/)*(?P<subject>sub-[A-Za-z0-9]+)(?:_(?P<session>ses-[A-Za-z0-9]+))?_(?P<rest>[^/]+)"
)
_LESION = re.compile(r"lesion|tumou?r|label-L(?:_|$)", re.IGNORECASE)
_BRAIN = re.compile(r"desc-brain_mask|brain_?mask|^mask$", re.IGNORECASE)
_ELSEWHERE = re.compile(r"(?:^|_)space-(?!(?:orig|T1w|T2w)(?:_|$))")


def is_bids(root: Path) -> bool:
    """Whether ``root`` looks like a BIDS folder."""
    return (
        (root / "dataset_description.json").is_file()
        or any(root.glob("sub-*/anat"))
        or any(root.glob("sub-*/ses-*/anat"))
    )


def find(root: Path, name: str, modalities: Sequence[str] = ()) -> Found:
    """Subjects of a BIDS folder with their files of ``modalities`` (empty: T1 and T2 where they are there), as data set ``name``.

    If any of them has a lesion mask the data set is one of anomalies, and those without are left out.
    """
    findings: list[Finding] = []
    images, derived = _gathered(root, findings)
    there = [m for m in ("t1", "t2") if any(_suffix(m) in kinds for of in images.values() for kinds in of.values())]
    wanted = list(modalities) or there or ["t1"]
    is_healthy = not any("segmentation" in roles for roles in derived.values())
    table = root / "participants.tsv"
    years, told = ages(table, "participant_id", "age") if table.is_file() else ({}, [])
    findings += told
    if not images:
        found = "no image of a BIDS folder"
        findings.append(Finding("error", "no-match", str(root), found, "looked for as sub-01/anat/sub-01_T1w.nii.gz"))
    subjects = []
    for subject, sessions in sorted(images.items()):
        session = first_session(findings, subject, sessions)
        roles = {**derived.get((subject, ""), {}), **derived.get((subject, session), {})}
        mask, segmentation = (
            first_of(findings, subject, role, roles.get(role, [])) for role in ("mask", "segmentation")
        )
        files = {m: first_of(findings, subject, m, sessions[session].get(_suffix(m), [])) for m in wanted}
        age = years.get(subject, years.get(subject.removeprefix("sub-")))
        raw = RawSubject(name, subject, {}, mask, segmentation, label=0 if is_healthy else 1, age=age)
        subjects.append(joined(findings, root / subject, raw, files))
    there_are = tuple(subject for subject in subjects if subject)
    shares = HEALTHY if is_healthy else UNHEALTHY
    return Found(name, is_healthy, there_are, tuple(findings), shares, tuple(images))


Images = defaultdict[str, defaultdict[str, defaultdict[str, list[Path]]]]
Derived = defaultdict[tuple[str, str], defaultdict[str, list[Path]]]


def _gathered(root: Path, findings: list[Finding]) -> tuple[Images, Derived]:
    """Images by subject, session and suffix; masks and lesions by subject and session.

    Who has lesions in a template's space alone has an empty list of them: not healthy, and none to be had.
    """
    elsewhere: list[Path] = []
    images: Images = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    derived: Derived = defaultdict(lambda: defaultdict(list))
    for stem, path in scans(root):
        image, other = _IMAGE.fullmatch(stem), _DERIVED.fullmatch(stem)
        if not image and not other:
            continue
        if is_empty(path):
            findings.append(warning("empty-file", path, "0 bytes", "taken for missing; copy it again from its source"))
        elif image:
            images[image["subject"]][image["session"] or ""][image["suffix"]].append(path)
        elif other and _LESION.search(other["rest"]):
            lesions = derived[other["subject"], other["session"] or ""]["segmentation"]
            (elsewhere if _ELSEWHERE.search(other["rest"]) else lesions).append(path)
        elif other and _BRAIN.search(other["rest"]) and not _ELSEWHERE.search(other["rest"]):
            derived[other["subject"], other["session"] or ""]["mask"].append(path)
    if elsewhere:
        found = "lesions in the space of a template"
        findings.append(warning("space", elsewhere[0], found, "left out; give them on the scan's grid", elsewhere[1:]))
    return images, derived


def _suffix(modality: str) -> str:
    return SUFFIXES.get(modality, modality)
