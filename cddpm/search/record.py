"""A sweep's folder as plain data, whatever state it is in: finished, running, stopped, or killed half-way.

Nothing is written, and no artifact is needed but where a method says so: a folder that was copied away can still be read.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cddpm import artifact
from cddpm.campaign import IDENTITY, is_running
from cddpm.config import ExperimentConfig, parse, resolve_paths, with_values
from cddpm.errors import CddpmError, SearchError
from cddpm.search import champion, origin
from cddpm.search import space as spaces
from cddpm.search import trial as trials
from cddpm.search.champion import Contender
from cddpm.search.leaderboard import FRONT
from cddpm.search.origin import Origin
from cddpm.search.point import Point
from cddpm.search.trial import TrialResult, read_ending, read_result, read_stop
from cddpm.text.likeness import nearest
from cddpm.training import checkpoint, stages

State = Literal["finished", "stopped early", "failed", "running", "interrupted"]
History = list[dict[str, float]]


@dataclass(frozen=True)
class TrialRecord:
    """A trial in whatever state.

    ``objective``: the best of its search, on validation; ``preview``: what a trial that was stopped early had last, on a
    few volumes.
    """

    number: int
    state: State
    params: dict[str, Any]
    """Training settings by dotted path; those of a trial that has not ended are not known."""
    result: TrialResult | None = None
    objective: float | None = None
    preview: float | None = None
    note: str = ""
    points: list[Point] = field(default_factory=list)
    """Every scoring setting that was tried on its reconstructions."""

    @property
    def name(self) -> str:
        """``0003``."""
        return f"{self.number:04d}"


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

    def history(self, trial: TrialRecord, stage: str = stages.CHECKPOINT) -> History:
        """Validations of a trial's training (or of its encoder's pretraining); empty where none was kept."""
        name = self._artifact_name(trial, stage)
        if name is None:
            return []
        kind = self.artifacts / stage
        found = (checkpoint.read_history(place / checkpoint.HISTORY) for place in (kind / name, kind / ".work" / name))
        return next((rows for rows in found if rows), [])

    def _artifact_name(self, trial: TrialRecord, stage: str) -> str | None:
        if stage not in (stages.CHECKPOINT, stages.ENCODER):
            raise ValueError(f"stage: {stage!r}; allowed are {stages.CHECKPOINT} and {stages.ENCODER}")
        if trial.result is not None:
            return trial.result.checkpoint if stage == stages.CHECKPOINT else trial.result.encoder
        if self.origin is None:
            return None
        try:
            config = self.trial_config(trial)
        except CddpmError:  # it failed for that
            return None
        identity = stages.checkpoint_identity if stage == stages.CHECKPOINT else stages.encoder_identity
        return identity(config, self.origin.store)[0]


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
    running, entered = is_running(folder), origin.read(folder)
    folders = sorted(p for p in (folder / "trials").glob("[0-9]*") if p.is_dir())
    config = resolve_paths(parse(_configuration(folder, entered, folders), str(folder)), folder.resolve().parents[2])
    return SweepRecord(
        folder,
        config,
        entered,
        [_trial(path, running, config) for path in folders],
        champion.load(folder / champion.TEST),
        _json(folder / FRONT) if (folder / FRONT).exists() else None,
        running,
    )


def _configuration(folder: Path, entered: Origin | None, folders: Sequence[Path]) -> dict[str, Any]:
    if entered is not None:
        return entered.config
    first = next((p / trials.CONFIG for p in folders if (p / trials.CONFIG).exists()), None)
    if first is None:
        raise SearchError(f"{folder}: this sweep has not begun its first trial; there is nothing to report")
    return _json(first)


def _trial(folder: Path, running: bool, base: ExperimentConfig) -> TrialRecord:
    number, result = int(folder.name), read_result(folder)
    if result is not None:
        return TrialRecord(
            number, "finished", result.params, result, result.objective, points=trials.read_points(folder)
        )
    if stop := read_stop(folder):
        return TrialRecord(number, "stopped early", stop.params, preview=stop.objective, note=stop.note)
    fault = read_ending(folder, trials.FAILED)
    params = _searched(folder / trials.CONFIG, base)
    if fault:
        return TrialRecord(number, "failed", params, note=str(fault["error"]))
    return TrialRecord(number, "running" if running else "interrupted", params)


def _searched(path: Path, base: ExperimentConfig) -> dict[str, Any]:
    """The values that a trial's own configuration has for the searched training settings."""
    if not path.exists():
        return {}
    tree = _json(path)
    return {p: functools.reduce(lambda part, name: part[name], p.split("."), tree) for p in base.search.training.space}


def _json(path: Path) -> dict[str, Any]:
    remedy = "delete it, and --resume the sweep if it is to be made again"
    return artifact.read_json(path, dict[str, Any], "what this program writes", remedy, SearchError)
