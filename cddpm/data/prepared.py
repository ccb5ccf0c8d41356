"""What preparation has told of its volumes: figures and warnings in the manifests below ``DATA_DIR/manifests``, if there are any.

A manifest is a JSON file with ``dataset``, ``subject``, a list ``warnings`` and, at any depth, objects called ``figures``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "manifests"
TOLD = ("similarity", "overlap", "dice")
"""Parts of the names of those that speak for or against a registration; others are left alone."""


@dataclass(frozen=True)
class Preparation:
    """What the manifest of a subject tells."""

    figures: dict[str, float]
    warnings: tuple[str, ...]
    """Sentences: lesions that changed, a mask that does not fit, what reading mended."""


def prepared(root: Path) -> dict[tuple[str, str], Preparation]:
    """By data set and subject. What is no manifest, or cannot be read as one, is left out: scans need none."""
    found: dict[tuple[str, str], Preparation] = {}
    for path in sorted((root / FOLDER).rglob("*.json")):
        try:
            raw = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(raw, dict) and isinstance(raw.get("dataset"), str) and isinstance(raw.get("subject"), str):
            key = raw["dataset"], raw["subject"]
            before = found.get(key, Preparation({}, ()))
            warnings = dict.fromkeys((*before.warnings, *_sentences(raw.get("warnings"))))
            found[key] = Preparation({**before.figures, **dict(_figures(raw))}, tuple(warnings))
    return found


def _sentences(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _figures(value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        for one in value:
            yield from _figures(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name == "figures" and isinstance(one, dict):
                yield from ((key, float(number)) for key, number in one.items() if _is_told(key, number))
            else:
                yield from _figures(one)


def _is_told(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and any(part in name for part in TOLD)
