"""The lab book: what the driver tells MLflow about a sweep and its trials.

Every call writes to the journal on disk and returns; a background sender tells MLflow, now or when it answers again. So an
MLflow fault never reaches a training, and what was written down survives a crash and is entered exactly once.

A run is named by its **key**, ``<sweep>`` or ``<sweep>/<trial number>``, which this module gives out and takes: it is known
before MLflow answers and is the same after a restart. ``LabBook.mlflow_id`` tells MLflow's own id once it is delivered.
"""

import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mlflow import MlflowClient

from cddpm import artifact
from cddpm.config import TrackingConfig
from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import address, connection, names
from cddpm.tracking.delivery import Delivery
from cddpm.tracking.journal import SUFFIX, Journal
from cddpm.tracking.promotion import Promotion
from cddpm.tracking.registry import user
from cddpm.tracking.sender import Sender
from cddpm.tracking.spool import sync_command
from cddpm.tracking.values import Promised, finite, now_ms, samples, size_bytes, table, texts

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_COPIED_BYTES = 8 * 2**20
_PATIENCE_SECONDS = 10.0
_SLUG = re.compile(r"[A-Za-z0-9_.-]{1,120}")
_SWEEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")


class LabBook:
    """The driver's way to MLflow; one per process. A context manager: leaving it flushes for up to 30 s."""

    def __init__(self, uri: str, experiment: str, spool: Path, delivery: Delivery) -> None:
        """Use ``LabBook.open``."""
        self.uri = uri
        self.experiment = experiment
        self._spool = spool
        self._delivery = delivery
        self._sender = Sender(delivery)
        self._journals: dict[str, Journal] = {}
        self._last_step: dict[tuple[str, str], int] = {}
        self._tables: dict[str, dict[str, None]] = {}
        self._left: int | None = None
        self.away: str | None = None
        """Why MLflow did not answer when the lab book was opened; None if it did."""

    @classmethod
    def open(cls, tracking: TrackingConfig, output_dir: Path, spool: Path, must_answer: bool | None = None) -> Self:
        """Open the lab book and deliver what an earlier process left in ``spool`` (folder of journals, made if absent).

        Without ``tracking.uri`` it is the SQLite file ``<output_dir>/mlflow.db``; files of a SQLite file lie in the folder
        ``mlartifacts`` beside it.
        A server that is away is no error, unless ``must_answer`` (by default ``tracking.when_away: refuse``): entries wait in
        the journal, and ``away`` says why. Raises ``AwayError`` if it is one, ``TrackingError`` for what no waiting mends (a
        URI that is none, a damaged database, a deleted experiment), ``StorageError`` if ``spool`` cannot be written.
        """
        if must_answer is None:
            must_answer = tracking.when_away == "refuse"
        uri = address.whole(tracking.uri) if tracking.uri else address.default_uri(output_dir)
        with artifact.storage_errors(spool):
            spool.mkdir(parents=True, exist_ok=True)
        delivery = Delivery(lambda: connection.connect(uri), tracking.experiment, uri)
        book = cls(uri, tracking.experiment, spool, delivery)
        try:
            with connection.told(uri):
                delivery.connect()
        except AwayError as error:
            if must_answer:
                raise
            book.away = str(error)
        book._take_over_leftovers()
        book._sender.start()
        return book

    @property
    def notice(self) -> str | None:
        """What to tell a person who starts work while MLflow does not answer; None if it does."""
        if self.away is None:
            return None
        return (
            f"{self.away}. The work goes on: its entries wait in {self._spool} until MLflow answers, or until "
            f"`{sync_command(self._spool.parent)}` delivers them (tracking.when_away: refuse would end here)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    # Runs

    def parent(
        self,
        sweep: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        kind: str = names.KIND_SWEEP,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """Find or create (and reopen) the run of a sweep, or of an evaluation by ``kind``; returns its key, ``sweep``.

        ``config`` (plain JSON data, whole) becomes the file ``config.json``; ``params`` (dotted path -> value) what a person
        looks at in a list: what differs from the defaults. Params of an earlier start stay. Raises ``ValueError`` for a name
        that is no file name, ``TrackingError`` if another process holds the sweep.
        """
        if not _SWEEP.fullmatch(sweep):
            raise ValueError(
                f"sweep: '{sweep}': allowed are up to 120 letters, digits, '_', '.', '-', no dot or dash first"
            )
        self._take(sweep)
        self._open_run(sweep, params or {}, {**tags, names.KIND: kind, names.RUN_NAME: sweep})
        self.log_dict(sweep, config, "config.json")
        return sweep

    def trial(self, parent: str, number: int, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Find or create (and reopen) the run of a trial; returns its key ``<sweep>/0003``.

        ``params``: dotted configuration path -> value; those of an earlier start stay. They are in its name.
        """
        number_tag, name = {names.TRIAL: str(number)}, names.run_name(f"{number:04d}", params)
        return self.child(parent, f"{number:04d}", names.KIND_TRIAL, name, params, {**tags, **number_tag})

    def child(
        self,
        parent: str,
        slug: str,
        kind: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        began: float | None = None,
    ) -> str:
        """Find or create (and reopen) a child run of a sweep; returns its key ``<sweep>/<slug>``.

        Children have no children: MLflow's pages draw deeper nesting flat. ``name``: what a person reads; ``began``: seconds
        since 1970, if it was not now.
        """
        self._journal_of(parent)
        if not _SLUG.fullmatch(slug):
            raise ValueError(f"slug: '{slug}': allowed are up to 120 letters, digits, '_', '.', '-'")
        key = names.child_key(parent, slug)
        self._open_run(key, params, {**tags, names.KIND: kind, names.RUN_NAME: name}, began)
        return key

    def close(self, run: str, status: Status, ended: float | None = None) -> None:
        """Mark a run as ended, now or at ``ended`` (seconds since 1970)."""
        self._write(run, "close", status=status, time=now_ms(ended))

    def mlflow_id(self, run: str, timeout_seconds: float = 30.0) -> str:
        """MLflow's id of a run; waits for its delivery. Raises ``TrackingError`` if MLflow does not answer in time."""
        self._journal_of(run)
        end = time.monotonic() + timeout_seconds
        while self._delivery.known(run) is None and time.monotonic() < end:
            if not self.flush(min(0.5, timeout_seconds)):
                break
        found = self._delivery.known(run)
        if found is None:
            raise TrackingError(
                f"{self.uri}: run '{run}' has not reached MLflow within {timeout_seconds:.0f} s "
                f"({self._sender.last_fault or 'no answer yet'}); its entries are safe in {self._spool}"
            )
        return found

    # Entries

    def log_history(self, run: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Enter curves: rows ``{"images": slices seen, metric: value, ...}``; the step is the number of images.

        Rows may be repeated: per run and metric only steps above the last one are entered. A value that is no finite
        number is left out and flagged by the tag ``cddpm.nonfinite.<metric>``.
        """
        points: list[tuple[str, float, int]] = []
        flags: dict[str, str] = {}
        for row in rows:
            step = int(row[names.IMAGES])
            for metric, value in row.items():
                if metric != names.IMAGES:
                    self._point(run, names.safe(metric), value, step, points, flags)
        if points:
            self._write(run, "points", points=points, time=now_ms())
        if flags:
            self._write(run, "tags", tags=flags)

    def log_metrics(self, run: str, metrics: Mapping[str, Any], step: int) -> None:
        """Enter values at one step (images seen; for a sweep the number of finished trials). Same rules as ``log_history``."""
        self.log_history(run, [{**metrics, names.IMAGES: step}])

    def set_tags(self, run: str, tags: Mapping[str, Any]) -> None:
        """Set or replace tags."""
        self._write(run, "tags", tags=texts(tags))

    def log_artifact(self, run: str, path: Path, folder: str | None = None) -> None:
        """Keep a file or directory with the run, below ``folder``. Raises ``TrackingError`` if ``path`` does not exist.

        Up to 8 MiB are copied at once, so that the original may change; larger ones are read when they are sent and must stay.
        """
        if not path.exists():
            raise TrackingError(f"{path}: no such file to keep with run '{run}'")
        copied = size_bytes(path) <= _COPIED_BYTES
        source = self._copy(path) if copied else path
        self._write(run, "artifact", path=str(source.resolve()), folder=folder, copied=copied)

    def log_samples(self, run: str, rows: Iterable[Mapping[str, float]]) -> None:
        """Enter system metrics: rows ``{"time": seconds since 1970, metric: value, ...}``; the step is the row's number."""
        points = samples(rows)
        if points:
            self._write(run, "points", points=points, time=now_ms())

    def set_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Add params that are known only later; those that are there stay."""
        self._write(run, "params", params=texts(params))

    def link(self, run: str, stage: str, fingerprint: str) -> None:
        """Name the run of this lab book that made the artifact ``fingerprint``: tag ``cddpm.made_by.<stage>`` and a link."""
        self._write(run, "link", stage=stage, fingerprint=fingerprint)

    def log_dict(self, run: str, value: Mapping[str, Any], file: str) -> None:
        """Keep JSON data as the run's file ``file`` (``.json`` or ``.yaml``)."""
        self._write(run, "dict", value=dict(value), file=file)

    def log_table(self, run: str, path: Path) -> None:
        """Keep a JSON file ``{"columns": [...], "data": [[...], ...]}`` as a table of the run. Raises as ``log_artifact``.

        ``mlflow.load_table`` and MLflow's pages show it.
        """
        self.log_artifact(run, path)
        self._name_table(run, path.name)

    def log_rows(self, run: str, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Keep rows of plain values as a table of the run, by the name ``file`` (``.json``); see ``log_table``."""
        self.log_dict(run, table(rows), file)
        self._name_table(run, file)

    def _name_table(self, run: str, file: str) -> None:
        known = self._tables.setdefault(run, {})
        known[file] = None
        tables = [{"path": name, "type": "table"} for name in known]
        self.set_tags(run, {names.LOGGED_ARTIFACTS: json.dumps(tables)})

    def log_dataset_inputs(
        self, run: str, store_fingerprint: str, name: str = "slice store", context: str = "training"
    ) -> None:
        """Say which data a run used: a dataset input whose digest is the store's fingerprint, and a tag."""
        self._write(
            run,
            "dataset",
            name=name,
            digest=store_fingerprint[:36],
            source=store_fingerprint,
            context=context,
        )
        self._write(run, "tags", tags={names.FINGERPRINT_STORE: store_fingerprint})

    def register(
        self,
        run: str,
        package: Path,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        model: str,
        promotion: Promised | None = None,
        label: str = "",
    ) -> None:
        """Register a run's model package, and point an alias to it, once MLflow answers.

        The package is read then: it must stay. Delivered twice it is registered once, and an alias that somebody moved
        meanwhile stays. ``registered`` tells the version.
        """
        promised = promotion or Promised("", "")
        self._write(
            run,
            "register",
            package=str(package.resolve()),
            metrics={name: number for name, value in metrics.items() if (number := finite(value)) is not None},
            tags=dict(tags),
            model=model,
            label=label,
            alias=promised.alias,
            why=promised.why,
            who=user(),
            id=uuid.uuid4().hex,
            time=now_ms(),
        )

    def registered(self, run: str, model: str) -> int | None:
        """The version of ``model`` that ``register`` made of a run; None if it waits or was refused."""
        return self._delivery.version(run, model)

    def promotion(self, run: str, model: str) -> Promotion | None:
        """What became of the promotion that ``register`` was given; None if it waits. See ``Registry.promote_once``."""
        return self._delivery.promotion(run, model)

    # Delivery

    @property
    def refused(self) -> int:
        """Entries that MLflow will never take; they lie in ``<sweep>.refused`` in the spool."""
        return self._sender.refused

    @property
    def fault(self) -> str | None:
        """The last thing that MLflow raised, as one line."""
        return self._sender.last_fault

    def flush(self, timeout_seconds: float) -> int:
        """Wait until MLflow has everything; returns how many entries it does not have yet (0: all delivered).

        For a server that does not answer at all it waits no longer than 10 s.
        """
        return self._sender.flush(timeout_seconds, _PATIENCE_SECONDS)

    def end(self, timeout_seconds: float = 30.0) -> int:
        """Flush, stop the sender and free the journals; returns how many entries wait for the next ``open``."""
        if self._left is not None:
            return self._left
        left = self._left = self.flush(timeout_seconds)
        self._sender.stop(timeout_seconds=5.0)
        for journal in self._journals.values():
            journal.close()
        if left:
            logger.warning("%d entries wait in %s (%s)", left, self._spool, self._sender.last_fault or "time over")
        return left

    def client(self) -> MlflowClient:
        """A client of its own for reading and for the registry. Raises ``TrackingError``."""
        return connection.connect(self.uri)

    # Inside

    def _take_over_leftovers(self) -> None:
        for path in sorted(self._spool.glob(f"*{SUFFIX}")):
            try:
                journal = Journal(path)
            except TrackingError as error:
                logger.info("%s", error)  # a living process delivers it, or a person must look: parent() raises it
                continue
            elsewhere = journal.written_for(self._delivery.home)
            if len(journal) and not elsewhere:
                self._journals[path.name.removesuffix(SUFFIX)] = journal
                self._sender.add(journal, until_empty=True)
                continue
            if len(journal):
                logger.warning(
                    "%s: %d entries wait for %s; open that lab book to deliver them", path, len(journal), elsewhere
                )
            journal.close()

    def _take(self, sweep: str) -> None:
        journal = self._journals.get(sweep)
        if journal is None or not self._sender.keep(journal):
            journal = self._journals[sweep] = Journal(self._spool / f"{sweep}{SUFFIX}")
            self._sender.add(journal)
        elsewhere = journal.written_for(self._delivery.home)
        if elsewhere:
            logger.warning(
                "%s: what came before was written for %s; from here it goes to %s", sweep, elsewhere, self._home
            )
        for entry in journal.entries():
            for metric, _, step, *_ in entry.get("points", ()):
                self._remember(entry["run"], metric, step)

    @property
    def _home(self) -> str:
        return f"{self.uri} (experiment {self.experiment})"

    def _journal_of(self, run: str) -> Journal:
        sweep = run.partition("/")[0]
        if sweep not in self._journals:
            raise ValueError(f"run: '{run}' is not open here; call LabBook.parent first")
        return self._journals[sweep]

    def _open_run(
        self, key: str, params: Mapping[str, Any], tags: Mapping[str, str], began: float | None = None
    ) -> None:
        sweep, _, child = key.partition("/")
        own = {names.RUN: key, names.SWEEP: sweep}
        home = {} if child else self._delivery.home
        self._write(key, "open", tags={**texts(tags), **own}, params=texts(params), time=now_ms(began), **home)

    def _write(self, run: str, op: str, **fields: Any) -> None:
        self._journal_of(run).append({"op": op, "run": run, **fields})
        self._sender.wake()

    def _point(
        self, run: str, metric: str, value: Any, step: int, points: list[tuple[str, float, int]], flags: dict[str, str]
    ) -> None:
        if step <= self._last_step.get((run, metric), -1):
            return
        self._remember(run, metric, step)
        number = finite(value)
        if number is None:
            flags[f"{names.NONFINITE}.{metric}"[:250]] = f"{value} at {step}"[:500]
        else:
            points.append((metric, number, step))

    def _remember(self, run: str, metric: str, step: int) -> None:
        self._last_step[run, metric] = max(step, self._last_step.get((run, metric), -1))

    def _copy(self, path: Path) -> Path:
        target = self._spool / "files" / uuid.uuid4().hex / path.name
        with artifact.storage_errors(target):
            target.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)
        return target
