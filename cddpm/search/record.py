"""A sweep's folder as plain data, whatever state it is in: finished, running, stopped, or killed half-way.

Nothing is written, and no artifact is needed but where a method says so: a folder that was copied away can still be read.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cddpm import artifact, events
from cddpm.campaign import IDENTITY, is_running
from cddpm.config import ExperimentConfig, parse, recorded, resolve_paths, with_values
from cddpm.data.store import VERSION as STORE_VERSION
from cddpm.errors import CddpmError, SearchError
from cddpm.reconstruct import reconstruction
from cddpm.scoring import score_book
from cddpm.search import champion
from cddpm.search import space as spaces
from cddpm.search import trial as trials
from cddpm.search.champion import Contender
from cddpm.search.point import Point
from cddpm.search.trial import Stop, TrialResult, read_ending, read_result, read_stop
from cddpm.text.likeness import nearest
from cddpm.tracking import provenance
from cddpm.training import checkpoint, stages

ORIGIN = "origin.json"
PACKAGES = (*provenance.PACKAGES, "optuna")


@dataclass(frozen=True)
class Start:
    """One start of the sweep's driver."""

    when: str
    """UTC, ISO 8601."""
    commit: str
    machine: str
    """Processor and GPUs of the driver's machine."""
    versions: dict[str, str]
    """By package."""
    forced: tuple[str, ...] = ()
    """What had changed since the start before, and was gone on with in spite of it (``--force``)."""


@dataclass(frozen=True)
class Origin:
    """Configuration as of the last start, fingerprint of the slice store, every start in order."""

    config: dict[str, Any]
    store: str
    starts: tuple[Start, ...]
    stores: tuple[str, ...] = ()
    """Of every way to prepare scans that is searched, ``store`` among them."""


def enter(
    sweep: Path, config: ExperimentConfig, store: str, forced: Sequence[str] = (), stores: Sequence[str] = ()
) -> None:
    """Add a start, now and here, to the folder ``sweep``. Raises ``StorageError`` if the disk refuses."""
    earlier = read_origin(sweep)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = Start(now, provenance.commit(), provenance.machine(), provenance.versions(PACKAGES), tuple(forced))
    starts = (*(earlier.starts if earlier else ()), start)
    artifact.write_json(sweep / ORIGIN, asdict(Origin(recorded(config), store, starts, tuple(stores))))


def read_origin(sweep: Path) -> Origin | None:
    """What was entered, None if nothing was. Raises ``SearchError`` for a damaged file."""
    path = sweep / ORIGIN
    if not path.exists():
        return None
    remedy = "delete it, the next start writes it"
    return artifact.read_json(path, Origin, "the origin of a sweep", remedy, SearchError)


def versions() -> dict[str, Any]:
    """What a number depends on beside configuration and data: this method's own versions, and those of its packages."""
    own = {
        "method": stages.METHOD_VERSION,
        "reconstruction": reconstruction.VERSION,
        "scoring": score_book.SCORING_VERSION,
        "slice store": STORE_VERSION,
    }
    return {f"version of {name}": version for name, version in {**provenance.versions(PACKAGES), **own}.items()}


FRONT = "pareto.json"
State = Literal["finished", "stopped early", "failed", "running", "interrupted"]
History = list[dict[str, float]]


@dataclass(frozen=True)
class TrialRecord:
    """A trial in whatever state."""

    folder: Path
    state: State
    params: dict[str, Any]
    """Training settings by dotted path; those of a trial that has not ended are not known."""
    result: TrialResult | None = None
    stop: Stop | None = None
    error: str = ""
    points: list[Point] = field(default_factory=list)
    """Every scoring setting that was tried on its reconstructions; ``read`` alone looks them up."""

    @property
    def number(self) -> int:
        """In the sweep."""
        return int(self.folder.name)

    @property
    def name(self) -> str:
        """``0003``."""
        return self.folder.name

    @property
    def objective(self) -> float | None:
        """The best of its search, on validation."""
        return self.result.objective if self.result else None

    @property
    def preview(self) -> float | None:
        """What a trial that was stopped early had last, on a few volumes."""
        return self.stop.objective if self.stop else None

    @property
    def note(self) -> str:
        """How it ended, where it has no result."""
        return self.stop.note if self.stop else self.error


def trials_of(sweep: Path, running: bool = False) -> list[TrialRecord]:
    """Every trial that has begun, by number. Raises ``SearchError`` for a damaged file."""
    return [_trial(path, running) for path in sorted((sweep / "trials").glob("[0-9]*")) if path.is_dir()]


def _trial(folder: Path, running: bool) -> TrialRecord:
    if result := read_result(folder):
        return TrialRecord(folder, "finished", result.params, result)
    if stop := read_stop(folder):
        return TrialRecord(folder, "stopped early", stop.params, stop=stop)
    if fault := read_ending(folder, trials.FAILED):
        return TrialRecord(folder, "failed", {}, error=str(fault["error"]))
    return TrialRecord(folder, "running" if running else "interrupted", {})


def results(sweep: Path) -> list[TrialResult]:
    """Finished trials, best first. Raises ``SearchError`` for a damaged file."""
    found = [trial.result for trial in trials_of(sweep) if trial.result]
    return sorted(found, key=lambda r: (-r.objective, r.number))


def histories(artifacts: Path, config: ExperimentConfig, store: str, result: TrialResult | None) -> dict[str, Path]:
    """The history of each stage of a trial, by stage: of finished ones, or of those in the making, as far as there are any.

    ``config``: what the trial runs, or ran, under; ``store``: the fingerprint of its slice store.
    """
    if result is not None:
        identities = {stages.CHECKPOINT: result.checkpoint, stages.ENCODER: result.encoder}
    else:
        identities = {stages.CHECKPOINT: stages.checkpoint_identity(config, store)[0]}
        if config.model.conditioned and config.pretraining.enabled:
            identities[stages.ENCODER] = stages.encoder_identity(config, store)[0]
    found = dict[str, Path]()
    for kind, name in identities.items():
        places = (artifacts / kind / name, artifacts / kind / ".work" / name) if name else ()
        files = [place / checkpoint.HISTORY for place in places if (place / checkpoint.HISTORY).exists()]
        found |= {kind: files[0]} if files else {}
    return found


@dataclass(frozen=True)
class SweepRecord:
    """All that a sweep has left so far."""

    folder: Path
    config: ExperimentConfig
    origin: Origin | None
    """None for a sweep that was begun before starts were entered."""
    trials: list[TrialRecord]
    """By number."""
    contenders: list[Contender]
    """What was scored on test, the champion first; empty before the sweep's end."""
    pareto: dict[str, Any] | None
    running: bool

    @property
    def artifacts(self) -> Path:
        """Where its stores, checkpoints and reconstructions lie, if they were not taken away."""
        return self.folder.resolve().parent.parent / "artifacts"

    @property
    def ended(self) -> list[TrialRecord]:
        """Trials that will not change any more."""
        return [t for t in self.trials if t.state in ("finished", "stopped early", "failed")]

    @property
    def finished(self) -> list[TrialRecord]:
        """Trials with a result, best first."""
        found = [t for t in self.trials if t.result is not None]
        return sorted(found, key=lambda t: (-(t.objective or 0.0), t.number))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.contenders) and len(self.ended) >= self.config.search.training.trials

    @property
    def champion(self) -> TrialRecord | None:
        """The trial that was scored on test; before that, the best so far."""
        best = self.finished
        tested = self.contenders[0].trial if self.contenders else None
        return next((t for t in best if t.number == tested), best[0] if best else None)

    def trial_config(self, trial: TrialRecord) -> ExperimentConfig:
        """The configuration with the settings of ``trial``. Raises ``ConfigError`` for an impossible combination."""
        return with_values(self.config, trial.params, f"trial {trial.number}")

    def settings(self, trial: TrialRecord) -> dict[str, Any]:
        """Every searched setting of a trial at its best, by dotted path; what it does not say is as configured."""
        search = self.config.search
        own = spaces.defaults(search.training.space, self.config) if trial.params else {}
        if trial.result is None:
            return {**own, **trial.params}
        scoring = spaces.defaults(search.scoring.space, self.config)
        return {**own, **scoring, **trial.params, **trial.result.best.params}

    def store_of(self, trial: TrialRecord) -> str | None:
        """Slice store that a trial ran on, which may be its own (``DataConfig.preparation``); None if nothing says it."""
        life = events.life(self.folder, running=False)
        span = life.trials.get(trial.number) if life else None
        return (span.what.get("store") if span else None) or (self.origin.store if self.origin else None)

    def history(self, trial: TrialRecord, stage: str = stages.CHECKPOINT) -> History:
        """Validations of a trial's training (or of its encoder's pretraining); empty where none was kept."""
        if trial.result is None and self.origin is None:
            return []
        store = self.store_of(trial) or ""
        try:
            files = histories(self.artifacts, self.trial_config(trial), store, trial.result)
        except CddpmError:  # it failed for that
            return []
        return checkpoint.read_history(files[stage]) if stage in files else []


def find(sweep: str, output_dir: Path) -> Path:
    """The folder of a sweep: a path, or a name below ``output_dir/sweeps``.

    Raises ``SearchError`` that names the nearest, if there is no such sweep.
    """
    for folder in (output_dir / "sweeps" / sweep, Path(sweep)):
        if (folder / IDENTITY).is_file():
            return folder
    if Path(sweep).is_dir():
        raise SearchError(
            f"{sweep}: not the folder of a sweep (no {IDENTITY}); a sweep is kept in OUTPUT_DIR/sweeps/NAME"
        )
    there = sorted(p.parent.name for p in (output_dir / "sweeps").glob(f"*/{IDENTITY}"))
    near = nearest(sweep, there)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"there are {', '.join(there[:10])}"
    raise SearchError(
        f"{output_dir / 'sweeps'}: no sweep '{sweep}'; {hint if there else 'there is none; --output-dir names another folder'}"
    )


def read(folder: Path) -> SweepRecord:
    """Read the sweep in ``folder``. Raises ``SearchError`` for a damaged file, or if nothing was recorded yet."""
    running, origin = is_running(folder), read_origin(folder)
    found = trials_of(folder, running)
    config = resolve_paths(parse(_configuration(folder, origin, found), str(folder)), folder.resolve().parents[2])
    return SweepRecord(
        folder,
        config,
        origin,
        [_whole(trial, config) for trial in found],
        champion.load(folder / champion.TEST),
        _json(folder / FRONT) if (folder / FRONT).exists() else None,
        running,
    )


def _configuration(folder: Path, origin: Origin | None, found: Sequence[TrialRecord]) -> dict[str, Any]:
    if origin is not None:
        return origin.config
    first = next((t.folder / trials.CONFIG for t in found if (t.folder / trials.CONFIG).exists()), None)
    if first is None:
        raise SearchError(f"{folder}: this sweep has not begun its first trial; there is nothing to report")
    return _json(first)


def _whole(trial: TrialRecord, base: ExperimentConfig) -> TrialRecord:
    """With its points; of one that has not come to its end with the settings that its own configuration has."""
    points = trials.read_points(trial.folder) if trial.result else []
    return replace(trial, params=trial.params or _searched(trial, base), points=points)


def _searched(trial: TrialRecord, base: ExperimentConfig) -> dict[str, Any]:
    """The values that a trial's own configuration has for the searched training settings."""
    path = trial.folder / trials.CONFIG
    if not path.exists():
        return {}
    tree = _json(path)
    return {p: functools.reduce(lambda part, name: part[name], p.split("."), tree) for p in base.search.training.space}


def _json(path: Path) -> dict[str, Any]:
    remedy = "delete it, and --resume the sweep if it is to be made again"
    return artifact.read_json(path, dict[str, Any], "what this program writes", remedy, SearchError)
