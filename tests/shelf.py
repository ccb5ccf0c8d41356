"""An output folder with small artifacts of every kind, sweeps and evaluations, made as the stages make them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cddpm import artifact
from cddpm.config import ExperimentConfig, ReconstructionConfig, ScoringConfig, to_dict
from cddpm.inventory.entry import SEALED, Kind
from cddpm.reconstruct.part import parts_of, write_part
from cddpm.reconstruct.reconstruction import View, cache_path, finish, found_prediction, prediction_path
from cddpm.scoring import score_book


@dataclass(frozen=True)
class Shelf:
    """The output folder."""

    output_dir: Path

    @property
    def artifacts(self) -> Path:
        return self.output_dir / "artifacts"

    def sealed(self, kind: Kind, name: str, size: int = 1000, days: float = 0, **made_from: Any) -> Path:
        def fill(folder: Path) -> None:
            (folder / "content").write_bytes(bytes(size))

        path = artifact.create(self.artifacts / kind / name, SEALED[kind], name, made_from, fill)
        return self.aged(path, days)

    def prediction(self, name: str, checkpoint: str, volumes: str, levels: Sequence[int], days: float = 0) -> Path:
        path = prediction_path(self.artifacts, name)
        found_prediction(path, {"checkpoint": checkpoint})
        for volume in volumes:
            write_part(path, volume, {("c", level, 0): np.ones((2, 8, 8), np.float32) for level in levels})
        return self.aged(path, days)

    def view(self, name: str, prediction: str, volumes: str, levels: Sequence[int], days: float = 0) -> Path:
        parts = prediction_path(self.artifacts, prediction)
        made_from = json.loads((parts / "made_from.json").read_text()) | {"prediction": prediction}
        view = View.of(list(volumes), ReconstructionConfig(noise_levels=tuple(levels)))
        return self.aged(finish(cache_path(self.artifacts, name), list(volumes), name, made_from, parts, view), days)

    def score(self, name: str, reconstruction: str, days: float = 0) -> Path:
        path = self.artifacts / "score" / name
        artifact.write_json(path / score_book.MADE_FROM, {"reconstruction": reconstruction})
        entry = {"key": "k", "scoring": to_dict(ScoringConfig()), "objective": "dice", "datasets": [], "score": {}}
        line = json.dumps({**entry, "sha256": score_book._digest(entry)})
        (path / "0123.jsonl").write_text(line + "\n")
        return self.aged(path, days)

    def campaign(self, kind: str, name: str, results: Sequence[dict[str, str]] = (), finished: bool = True) -> Path:
        folder, work = self.output_dir / kind, {"sweeps": "trials", "evaluations": "runs"}[kind]
        artifact.write_json(folder / name / "identity.json", {})
        for number, result in enumerate(results):
            artifact.write_json(folder / name / work / f"{number:04d}" / "result.json", {"number": number, **result})
        if finished:
            artifact.write_json(folder / name / "finished.json", {})
        return folder / name

    def trial(self, campaign: Path, number: int, config: ExperimentConfig) -> Path:
        """A trial that has begun and has no result."""
        path = campaign / "trials" / f"{number:04d}"
        artifact.write_json(path / "config.json", to_dict(config))
        return path

    def aged(self, path: Path, days: float) -> Path:
        """``path`` and all below it as if written ``days`` ago."""
        for file in [*path.rglob("*"), path]:
            stamp = file.stat().st_mtime - days * 86400
            os.utime(file, (stamp, stamp))
        return path

    def names(self) -> set[str]:
        """What is there: ``checkpoint/c1``, and of predictions also ``prediction/p/a/250``."""
        found = {
            f"{path.parent.name}/{path.name}" for path in self.artifacts.glob("*/*") if not path.name.startswith(".")
        }
        for path in (self.artifacts / "prediction").glob("[!.]*"):
            for volume in (folder.name for folder in path.iterdir() if folder.is_dir()):
                found |= {f"prediction/{path.name}/{volume}/{level}" for level, _ in parts_of(path, volume)}
        return found


def full(output_dir: Path) -> Shelf:
    """One of everything: c1 of a finished sweep with two reconstructions that share parts, c2 of nobody."""
    shelf = Shelf(output_dir)
    shelf.sealed("store", "s1", 5000, days=40)
    shelf.sealed("encoder", "e1", 3000, days=30, store="s1")
    shelf.sealed("checkpoint", "c1", 4000, days=20, store="s1", encoder="e1")
    shelf.sealed("checkpoint", "c2", 4000, days=25, store="s1", encoder=None)
    shelf.prediction("p1", "c1", "ab", (250, 500), days=10)
    shelf.view("r1", "p1", "ab", (250,), days=9)
    shelf.view("r2", "p1", "a", (250, 500), days=8)
    shelf.prediction("p2", "c2", "ab", (250,), days=15)
    shelf.view("r3", "p2", "ab", (250,), days=14)
    shelf.score("k1", "r1", days=7)
    shelf.score("k3", "r3", days=13)
    shelf.campaign("sweeps", "quick", [{"checkpoint": "c1", "encoder": "e1", "reconstruction": "r1"}])
    return shelf
