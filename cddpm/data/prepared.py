"""What preparation has told of its volumes: figures in the manifests below ``DATA_DIR/manifests``, where there are any.

A manifest is a JSON file with ``dataset``, ``subject`` and, at any depth, objects called ``figures``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "manifests"
TOLD = ("similarity", "overlap", "dice")
"""Parts of the names of those that speak for or against a registration; others are left alone."""


def prepared_figures(root: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Figures by data set and subject. What is no manifest, or cannot be read as one, is left out: scans need none."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for path in sorted((root / FOLDER).rglob("*.json")):
        try:
            raw = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(raw, dict) and isinstance(raw.get("dataset"), str) and isinstance(raw.get("subject"), str):
            found.setdefault((raw["dataset"], raw["subject"]), {}).update(_figures(raw))
    return found


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
