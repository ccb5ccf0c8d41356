"""Names that may be a person's or hold a date, and what stands in their place.

A name is kept where it looks like a code: words of the field (``sub``, ``brats``), single letters, numbers of up to five digits
that make no date or year, and at most one pair of capitals beside a number. Every other file, folder or subject gets an id
made from a keyed hash: the same name has the same id as long as the key is the same. Key and names lie in one file outside of
DATA_DIR that only its owner reads (mode 0600).
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from cddpm.artifact import read_json, storage_errors
from cddpm.data.finding import Finding
from cddpm.errors import DataError

_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    acq adc amsterdam anat asym atlas axial bids bold brain brainmask brats bravo case center centre code cohort con
    consensus control controls cor coronal ct ctrl data dataset derivatives desc dicom dir dti dwi echo edema et face
    fcd flair fmap follow followup fspgr func ge ged gli gre group gt gui guys gz head healthy icbm id image images
    img iop ixi label labels left lesion lesions lin linear manual mask masks met mni mprage mr mra mri mslub native
    nifti nii nlin op orig original part pat patient patients pd petmr phantom phenotype philips post postop pre preop
    preprocessed proc pub rage raw rawdata rec reg right roi run sag sagittal scan scanner scans seg segmentation
    segmentations segs series ses session sessions siemens singapore site sites sourcedata space spgr stripped
    strokecase study sub subj subject subjects swan swi sym tce test testing timepoint tirm tlesion tof tp tra train
    training truth tse tumor tumors tumour tumours tw twks utrecht val validation version visit vol volume wks wm wmh
        """,
    )
)
_TOKEN = re.compile(r"[A-Za-z]+|\d+|[^A-Za-z0-9\s._+()-]+")
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d[-_. ]?(?:0?[1-9]|1[0-2])(?:[-_. ]?(?:0?[1-9]|[12]\d|3[01]))?(?!\d)"
    r"|(?<!\d)\d{1,2}[-_. ]\d{1,2}[-_. ](?:19|20)?\d\d(?!\d)"
)
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_PUBLISHED = re.compile(
    r"IXI\d{3}-(?:Guys|HH|IOP)-\d{4}(?:-(?:T1|T2|PD|MRA))?|BraTS2021_\d{5}(?:_(?:t1|t1ce|t2|flair|seg))?", re.IGNORECASE
)
"""Names of official downloads: their four digits are no year of anybody."""
_TEMPLATE = re.compile(r"MNI152NLin20\d\d[a-c](?:Sym|Asym)", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.(nii|gz|dcm|ima|json|csv|tsv|yaml|yml|txt|hdr|img|mgz|nrrd|mha))+$", re.IGNORECASE)
_SIZE = 10
"""Hex digits of an id: two of a thousand names have one id with one key in two million."""


def is_plain(name: str) -> bool:
    """Whether a file's, folder's or subject's name looks like a code, with no person's name and no date in it."""
    stem = _SUFFIX.sub("", name)
    tokens = _TOKEN.findall(stem)
    if _is_dated(stem) or any(not token.isascii() or not token.isalnum() for token in tokens):
        return False
    words = [token for token in tokens if len(token) > 1 and token.isalpha() and token.lower() not in _WORDS]
    numbers = [token for token in tokens if token.isdecimal()]
    if any(len(number) > 5 for number in numbers):
        return False
    if not words:
        return True
    return len(words) == 1 and len(words[0]) == 2 and words[0].isupper() and bool(numbers)


def _is_dated(stem: str) -> bool:
    if _PUBLISHED.fullmatch(stem):
        return False
    own = _TEMPLATE.sub("MNI", stem)
    return bool(_DATE.search(own) or _YEAR.search(own))


@dataclass(frozen=True)
class Veil:
    """Hides names in texts. ``pairs``: a name and its id, longest first; ``root``: the folder that paths are told from."""

    root: str
    pairs: tuple[tuple[str, str], ...] = ()

    def over(self, text: str) -> str:
        """``text`` with paths relative to ``root`` and every hidden name replaced."""
        shown = text.replace(f"{self.root}/", "") if self.root else text
        for name, alias in self.pairs:
            # within a longer word it is another name
            shown = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", alias, shown)
        return shown

    def finding(self, found: Finding) -> Finding:
        """A finding that tells no hidden name."""
        return replace(
            found,
            file=self.over(found.file),
            found=self.over(found.found),
            allowed=self.over(found.allowed),
            others=tuple(map(self.over, found.others)),
        )


@dataclass
class Names:
    """The file of key and names. With ``keep`` nothing is replaced, and no file is written."""

    file: Path
    keep: bool = False
    key: bytes = b""
    known: dict[str, str] = field(default_factory=dict)
    """By id: the name. Of a subject ``dataset/name``."""
    _changed: bool = False

    @classmethod
    def open(cls, file: Path, data_dir: Path | None, keep: bool = False) -> "Names":
        """Read ``file`` if it is there, else begin it. Raises ``DataError`` if it lies in ``data_dir`` or is no such file."""
        if data_dir is not None and file.resolve().is_relative_to(data_dir.resolve()):
            raise DataError(f"{file}: lies in DATA_DIR, which is to hold no name; name a file outside of it (--names)")
        if keep or not file.exists():
            return cls(file, keep, secrets.token_bytes(32))
        content = read_json(file, dict[str, object], "a file of names", "name another file (--names)", DataError)
        try:
            key = bytes.fromhex(str(content["key"]))
            known = {str(alias): str(name) for alias, name in dict(content["names"]).items()}  # type: ignore[call-overload]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{file}: not a file of names ({error}); name another file (--names)") from error
        return cls(file, keep, key, known)

    def subject(self, dataset: str, name: str) -> str:
        """What a subject is called in DATA_DIR."""
        if self.keep or is_plain(name):
            return name
        return self._alias(f"{dataset}/{name}", "sub-", "")

    def part(self, name: str) -> str:
        """What a file or folder is called in manifests, findings and messages."""
        if self.keep or is_plain(name):
            return name
        found = _SUFFIX.search(name)
        return self._alias(name, "x-", found[0].lower() if found else "")

    def path(self, path: Path, root: Path) -> str:
        """A path below ``root`` as it may be told: relative, every part of it replaced where need be."""
        parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
        return str(PurePosixPath(*map(self.part, parts)))

    def veil(self, root: Path, paths: Iterable[Path], subjects: Iterable[tuple[str, str]] = ()) -> Veil:
        """Hides what is replaced of ``paths`` below ``root`` and of ``subjects`` (data set, name)."""
        parts = {
            part
            for path in paths
            for part in (path.relative_to(root).parts if path.is_relative_to(root) else (path.name,))
        }
        pairs = {part: self.part(part) for part in parts}
        pairs |= {name: self.subject(dataset, name) for dataset, name in subjects}
        changed = [(name, alias) for name, alias in pairs.items() if name != alias]
        return Veil("" if self.keep else str(root), tuple(sorted(changed, key=lambda pair: (-len(pair[0]), pair))))

    def write(self) -> None:
        """Keep what is new, for its owner alone. Raises ``StorageError`` if the disk refuses."""
        if not self._changed:
            return
        about = "Names that cddpm replaced by ids, and the key of the ids. Keep it apart from the data."
        text = json.dumps({"about": about, "key": self.key.hex(), "names": self.known}, indent=2, sort_keys=True)
        temporary = self.file.with_name(f".{self.file.name}.{uuid.uuid4().hex[:8]}")
        with storage_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
                    stream.write(text + "\n")
                temporary.replace(self.file)
            finally:
                temporary.unlink(missing_ok=True)
        self._changed = False

    def _alias(self, name: str, prefix: str, suffix: str) -> str:
        digest = hmac.new(self.key, name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()
        alias = f"{prefix}{digest[:_SIZE]}{suffix}"
        self._changed = self._changed or alias not in self.known
        if self.known.setdefault(alias, name) != name:
            raise DataError(f"{self.file}: two names have one id ({alias}); name another file (--names)")
        return alias
