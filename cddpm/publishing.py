"""``publish(folder)``: MLflow made like the folder of a sweep or an evaluation; ``cddpm registry sync`` for all."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cddpm import artifact, events
from cddpm.campaign import IDENTITY, is_running
from cddpm.errors import CddpmError, TrackingError
from cddpm.tracking import address, connection
from cddpm.tracking.lab import LOCK
from cddpm.tracking.mirror import MirroredRun
from cddpm.tracking.publish import Mirror, uri_of

FOLDERS = ("sweeps", "evaluations")


@dataclass(frozen=True)
class Published:
    """What became of one folder. ``changed``: runs that MLflow had not, or otherwise; ``fault``: what is in the way."""

    name: str
    changed: int = 0
    missing: int = 0
    """Runs that MLflow does not show whole."""
    refused: tuple[str, ...] = ()
    """What MLflow will never take, with its reasons."""
    fault: str | None = None
    note: str = ""
    """Why there was nothing to do."""

    @property
    def said(self) -> str:
        """In words."""
        if self.note:
            return self.note
        done = f"{self.changed} runs brought up to date" if self.changed else "all of it is in MLflow"
        return f"{self.missing} runs are not there, or not whole" if self.fault or self.missing else done


def folders(output_dir: Path) -> list[Path]:
    """All sweeps and evaluations of an output folder that have begun."""
    return sorted(path.parent for kind in FOLDERS for path in (output_dir / kind).glob(f"*/{IDENTITY}"))


def publish_all(output_dir: Path, uri: str | None = None) -> list[Published]:
    """``publish`` for each of ``folders``; one that cannot be published does not hinder the others."""
    return [publish(folder, uri) for folder in folders(output_dir)]


def publish(folder: Path, uri: str | None = None) -> Published:
    """Make MLflow show what ``folder`` says: everything once, however often it is called and wherever it was ended.

    It goes to the MLflow that the folder's configuration names, or to ``uri``. What a running driver publishes itself is left
    to it. Raises nothing but what a bug raises: see ``Published.fault``.
    """
    if is_running(folder):
        return Published(folder.name, note="is running; its driver keeps MLflow like it")
    if not (folder / events.FILE).exists():
        return Published(
            folder.name, note="was begun by an earlier version of this program; nothing of it is published"
        )
    runs: list[MirroredRun] = []
    mirror, changed, fault = None, 0, None
    try:
        with artifact.lock(folder / LOCK, wait=False):
            read, mirror = _opened(folder, uri)
            runs = list(read())
            with connection.told(folder.name):
                changed = mirror.publish(runs)
    except BlockingIOError:
        fault = "another process is publishing it"
    except CddpmError as error:
        fault = str(error)
    if mirror is None:
        return Published(folder.name, fault=fault)
    refused = tuple(f"{part}: {why}" for part, why in mirror.refusals.items())
    return Published(folder.name, changed, mirror.missing(runs), refused, fault)


def _opened(folder: Path, uri: str | None) -> tuple[Callable[[], Iterable[MirroredRun]], Mirror]:
    """The runs of a folder, and where they go."""
    from cddpm.evaluation.mirror import EvaluationMirror
    from cddpm.search.mirror import SweepMirror

    found = (SweepMirror if folder.parent.name == "sweeps" else EvaluationMirror)(folder)
    config = found.config()
    if config is None:
        raise TrackingError(f"{folder}: nothing has begun here; --resume begins it")
    target = address.whole(uri) if uri else uri_of(config.tracking, folder.resolve().parents[1])
    return found.runs, Mirror(target, config.tracking.experiment)
