"""What DATA_DIR says of a prepared subject: where it came from, what was done, what was found, which files it is.

``manifests/DATASET/SUBJECT.json``: ``sources`` (digest of each file; its path below RAW_DIR, names replaced), ``steps`` (name,
version, parameters, seconds, figures), ``notes`` (what reading mended), ``warnings``, ``figures`` of the result, ``defaced``,
``outputs`` (digest and bytes), ``versions``. But for the seconds it is the same for the same sources and steps. No
field of a header, sidecar or DICOM tag stands in it.
"""

import functools
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from cddpm import artifact
from cddpm.data.raw.head import RawSubject, Step

VERSION = 1
FOLDER = "manifests"
_PACKAGES = ("cddpm", "nibabel", "numpy", "scipy", "SimpleITK")


def name_of(dataset: str, subject: str) -> str:
    """Of a subject's manifest, below DATA_DIR."""
    return f"{FOLDER}/{dataset}/{subject}.json"


def summary_name(dataset: str) -> str:
    """Of what is said of a whole data set."""
    return f"{FOLDER}/{dataset}.json"


def home(dataset: str, healthy: bool) -> str:
    """Folder of a data set in the published layout."""
    return f"Train/{dataset.lower()}" if healthy else f"Test/{dataset}"


def file_name(dataset: str, healthy: bool, kind: str, subject: str) -> str:
    """Of a modality, ``mask`` or ``seg`` of a subject, below DATA_DIR."""
    return f"{home(dataset, healthy)}/{kind}/{subject}_{kind}.nii.gz"


def chain(subject: RawSubject, digests: dict[str, str], series: dict[str, str], steps: tuple[Step, ...]) -> list[str]:
    """Fingerprints: of what goes in, then of what each step makes of it. The last one names the result."""
    on = subject.segmentation_on
    keys = [artifact.fingerprint("raw", VERSION, list(subject.images), on, list(digests.items()), series)]
    for step in steps:
        keys.append(artifact.fingerprint(keys[-1], step.name, step.version, dict(step.parameters)))
    return keys


def entry(step: Step, seconds: float, figures: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a step that was done."""
    return {
        "name": step.name,
        "version": step.version,
        "parameters": _placeless(dict(step.parameters)),
        "seconds": round(seconds, 3),
        "figures": figures,
    }


def series_told(series: Mapping[str, str]) -> dict[str, str]:
    """The series that were asked for; of a UID, which is one person's, its digest."""
    return {
        modality: choice if choice.isdecimal() else f"uid sha256 {sha256(choice.encode()).hexdigest()[:16]}"
        for modality, choice in series.items()
    }


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages that decide the bytes."""
    return {name: version(name) for name in _PACKAGES}


def _placeless(value: Any) -> Any:
    """Parameters with a file's name in place of its whole path, which may tell whose computer it was."""
    if isinstance(value, dict):
        return {name: _placeless(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_placeless(one) for one in value]
    if isinstance(value, str | PurePath) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
