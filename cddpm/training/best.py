"""The best weights of a training so far: kept beside its states until a later validation is better."""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cddpm import artifact
from cddpm.errors import ArtifactError
from cddpm.training import checkpoint

logger = logging.getLogger(__name__)

KIND = "best-weights"


@dataclass(frozen=True)
class Criterion:
    """Which metric of a validation decides, and which of its ends is better."""

    metric: str
    better: str
    """``lower`` or ``higher``."""

    def prefers(self, value: float, other: float) -> bool:
        """Whether ``value`` is better than ``other``; equal ones are not, so that the first stays."""
        if self.better == "lower":
            return value < other
        if self.better == "higher":
            return value > other
        raise ValueError(f"better: {self.better!r}; allowed are lower and higher")


def offer(
    directory: Path, criterion: Criterion, images: int, value: float, weights: Mapping[str, Tensor], name: str
) -> bool:
    """Keep ``weights`` (validated with ``value`` after ``images``) if they are the best so far; whether they are.

    ``name`` is the fingerprint of the training. NaN and infinity are never the best. Offering the same point again, after
    a resume, changes nothing. Raises ``StorageError`` if the disk refuses.
    """
    if not math.isfinite(value):
        logger.warning("%s is %s after %d images; these weights are not kept", criterion.metric, value, images)
        return False
    before = _newest(directory)
    if before is not None and not criterion.prefers(value, _value(before, criterion)):
        return False
    made_from = {criterion.metric: value, "images": images}
    path = directory / f"best-{images:012d}"
    artifact.create(path, KIND, name, made_from, lambda d: checkpoint.save_weights(d / checkpoint.WEIGHTS, weights))
    for old in folders(directory):
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    return True


def weights(directory: Path, criterion: Criterion, name: str) -> dict[str, Tensor]:
    """The best weights that were offered, on the CPU.

    Raises ``ArtifactError`` if there are none, or if they are damaged or of another training.
    """
    path = _newest(directory)
    if path is None:
        raise ArtifactError(
            f"{directory}: no validation had a finite {criterion.metric}, so no weights are the best; "
            "lower training.learning_rate, or set training.keep: last"
        )
    try:
        manifest = artifact.verify(path, KIND)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; delete the folder {directory} to train from the start") from error
    if manifest.fingerprint != name:
        raise ArtifactError(f"{path}: belongs to another training ({manifest.fingerprint}, not {name})")
    logger.info("keeping the weights after %d images", manifest.made_from["images"])
    return checkpoint.load_weights(path / checkpoint.WEIGHTS)


def folders(directory: Path) -> list[Path]:
    """Of finished best weights, the oldest first."""
    return sorted(path for path in directory.glob("best-*") if artifact.is_complete(path))


def _newest(directory: Path) -> Path | None:
    """The best so far: of two, which a crash can leave, the later one was better."""
    return next(reversed(folders(directory)), None)


def _value(path: Path, criterion: Criterion) -> float:
    return float(artifact.read_manifest(path, KIND).made_from[criterion.metric])
