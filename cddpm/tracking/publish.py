"""Publishing: MLflow made to match what folders say, however often it is tried.

A run is found by its tags ``cddpm.run`` and ``cddpm.campaign`` or created with them in the same request. Once all of it is
there it gets the tag ``cddpm.published``, the digest of what it shows, and is left alone until that changes. Points carry the
time at which the training wrote them, and MLflow drops a point that it has (key, step, time and value equal); points at or
below the last step that the run has are not sent. So nothing has to be remembered between two processes, and a request whose
answer was lost is harmless.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from cddpm.config import TrackingConfig
from cddpm.errors import ArtifactError, AwayError, StorageError, TrackingError
from cddpm.tracking import address, apply_settings, connection, database, names
from cddpm.tracking.mirror import MirroredFile, MirroredRun, Point
from cddpm.tracking.promotion import Promotion
from cddpm.tracking.registry import Registry

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POINTS_PER_REQUEST = 500
_PAIRS_PER_REQUEST = 100
_LONGEST_TAG = 8000
_LONGEST_PARAM = 6000
_REFUSALS = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
)
_GONE = "RESOURCE_DOES_NOT_EXIST"
_REFUSED_UPLOADS = (400, 405, 413, 422)
_MADE_FROM = "Made from:"
_PASSING_TAGS = (names.ERROR, names.ENDING, names.NONFINITE)
"""Tags (and those that begin so) that a run loses again: a trial that failed may be tried once more."""


@dataclass
class _Known:
    """What MLflow has of a run, as far as this process knows."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    data: set[str]
    metrics: dict[str, float]
    """Latest value by metric."""
    last_step: dict[str, int] = field(default_factory=dict)
    """By metric whose points were asked for or sent by this process."""
    files: dict[str, str] = field(default_factory=dict)
    """Digest by name of what this process has sent."""


class Mirror:
    """The way from folders to one MLflow; used by one thread at a time. Nothing in it must outlive the process."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Nobody is asked yet. A new experiment's files lie where its lab book's do."""
        apply_settings()
        self.uri, self.experiment = uri, experiment
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._known: dict[tuple[str, str], _Known] = {}
        self._looked: set[tuple[str, str]] = set()
        self._done: dict[tuple[str, str], str] = {}
        self._made_again: set[tuple[str, str]] = set()
        self.refusals: dict[str, str] = {}
        """What MLflow will never take, by run and part -> its reason."""

    @classmethod
    def of(cls, tracking: TrackingConfig, output_dir: Path) -> Self:
        """The MLflow of a configuration; without ``tracking.uri`` the SQLite file ``<output_dir>/mlflow.db``."""
        return cls(uri_of(tracking, output_dir), tracking.experiment)

    def connect(self) -> MlflowClient:
        """The client, with the experiment there.

        Raises ``AwayError`` if MLflow does not answer, ``TrackingError`` for what no waiting mends (a URI that is none, a
        damaged database, a deleted experiment), ``MlflowException`` and ``OSError`` as MLflow does.
        """
        if self._client is None:
            self._client = connection.connect(self.uri)
        if self._experiment_id is None:
            self._experiment_id = connection.experiment(self._client, self.experiment, database.folder(self.uri))
        return self._client

    def missing(self, runs: Iterable[MirroredRun]) -> int:
        """How many of ``runs`` this process has not seen whole in MLflow; those of which it refused a part count."""
        whole = [
            self._done.get((run.campaign, run.key)) == self._digest(run) and not self._refused(run) for run in runs
        ]
        return whole.count(False)

    def publish(self, runs: Iterable[MirroredRun]) -> int:
        """Make MLflow match ``runs``, parents before children; returns how many had to be changed.

        What MLflow refuses for good is kept in ``refusals`` and the rest goes on. Raises ``AwayError``, ``MlflowException``
        or ``OSError`` for what may pass: the same call again goes on where this one ended.
        """
        changed = 0
        for run in runs:
            place, digest = (run.campaign, run.key), self._digest(run)
            if digest is None or self._done.get(place) == digest:
                continue
            for part in self._refused(run):
                self.refusals.pop(part, None)
            try:
                changed += self._match(run, digest)
            except BaseException:
                self._known.pop(place, None)  # an answer may be lost: ask again what is there
                raise
            self._done[place] = digest
        return changed

    def _digest(self, run: MirroredRun) -> str | None:
        """None, and a refusal, for a run of which a file cannot be read: it holds no other up."""
        part = f"{run.key}: files"
        try:
            digest = run.digest
        except (StorageError, OSError) as error:
            self.refusals[part] = str(error)
            return None
        self.refusals.pop(part, None)
        return digest

    def run_id(self, run: MirroredRun) -> str | None:
        """MLflow's id of a run that was published; None if it was not."""
        known = self._find(run)
        return known.run_id if known else None

    def version(self, run: MirroredRun) -> int | None:
        """The version that the run's package became; None if there is none."""
        run_id = self.run_id(run)
        if run.registration is None or run_id is None:
            return None
        versions = self._registry(run.registration.model).versions()
        return next((version.number for version in versions if version.run_id == run_id), None)

    def meant(self, model: str, alias: str) -> int | None:
        """The version that an alias means now."""
        versions = self._registry(model).versions()
        return next((version.number for version in versions if alias in version.aliases), None)

    def promotion(self, run: MirroredRun) -> Promotion | None:
        """What became of the promotion that followed the registration; None if nothing did yet."""
        wanted = run.registration
        return None if wanted is None else self._registry(wanted.model).promotion(wanted.identity)

    def _registry(self, model: str) -> Registry:
        return Registry(self.connect(), self.uri, model)

    def _refused(self, run: MirroredRun) -> list[str]:
        # a copy: the driver's thread asks while that of the lab book writes
        return [part for part in list(self.refusals) if part.startswith(f"{run.key}: ")]

    # One run

    def _match(self, run: MirroredRun, digest: str) -> bool:
        """Whether anything had to be sent."""
        known = self._find(run)
        if known is not None and known.tags.get(names.PUBLISHED) == digest:
            return False
        known = known or self._create(run)
        self._send(run, known)
        if not self._refused(run):
            self._tag(known, {names.PUBLISHED: digest})
        return True

    def _forget(self, place: tuple[str, str]) -> None:
        """MLflow does not know a run any more that it had, maybe a server with another database: all is made again, once."""
        self._made_again.add(place)
        self._known.clear()
        self._looked.clear()
        self._done.clear()
        self._experiment_id = None

    def _send(self, run: MirroredRun, known: _Known) -> None:
        """Send the parts of a run that differ; what is refused is kept in ``refusals``."""
        parts: dict[str, Any] = {
            "beginning": lambda: self._reopen(run, known),
            "settings": lambda: self._params(known, run.params),
            "tags": lambda: self._own_tags(known, {**_identity(run), **run.tags}),
            "data": lambda: self._data(known, run.data),
            "curves": lambda: self._points(known, run.points),
            "metrics": lambda: self._metrics(run, known),
            **{f"file {file.name}": lambda file=file: self._file(known, file) for file in run.files},
            "links": lambda: self._links(known, run),
            "registration": lambda: self._register(run, known),
            "ending": lambda: self._end(run, known),
        }
        for name, send in parts.items():
            try:
                send()
            except Exception as error:
                if isinstance(error, AwayError) or not is_refusal(error):
                    raise
                if getattr(error, "error_code", None) == _GONE and (run.campaign, run.key) not in self._made_again:
                    self._forget((run.campaign, run.key))
                    raise AwayError(f"{run.key}: MLflow does not know this run any more; it is made again") from error
                self.refusals[f"{run.key}: {name}"] = connection.one_line(error)
                logger.error("MLflow refuses %s of run %s: %s", name, run.key, connection.one_line(error))

    def _find(self, run: MirroredRun) -> _Known | None:
        """What MLflow has of a run; at the first one of a sweep all of that sweep is asked for."""
        place, sweep = (run.campaign, run.key), run.key.partition("/")[0]
        if place not in self._known:
            whole = (run.campaign, sweep) not in self._looked
            wanted = f"tags.`{names.SWEEP}` = '{sweep}'" if whole else f"tags.`{names.RUN}` = '{run.key}'"
            for found in self._search(f"{wanted} AND tags.`{names.CAMPAIGN}` = '{run.campaign}'"):
                self._known.setdefault((run.campaign, found.data.tags.get(names.RUN, "")), _known(found))
            self._looked.add((run.campaign, sweep))
        return self._known.get(place)

    def _search(self, wanted: str) -> Iterator[Run]:
        """Oldest first: of two runs of one key the older one is taken."""
        client, token = self.connect(), None
        while True:
            page = client.search_runs(
                [str(self._experiment_id)], wanted, order_by=["attributes.start_time ASC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, run: MirroredRun) -> _Known:
        tags = {**_identity(run), **run.tags}
        if run.parent is not None:
            parent = self._known.get((run.campaign, run.parent))
            if parent is None:
                raise LookupError(f"run '{run.key}' before its parent")
            tags[names.PARENT] = parent.run_id
        created = self.connect().create_run(
            str(self._experiment_id), start_time=int(run.began * 1000), tags=_cut_tags(tags)
        )
        self._known[run.campaign, run.key] = _known(created)
        return self._known[run.campaign, run.key]

    def _params(self, known: _Known, params: Any) -> None:
        """Params of an earlier start stay: MLflow never changes one."""
        wanted = {name: _cut(value, _LONGEST_PARAM) for name, value in params.items()}
        for name in sorted(wanted.keys() & known.params.keys()):
            if wanted[name] != known.params[name]:
                logger.info("run %s: %s stays %r (now %r)", known.run_id, name, known.params[name], wanted[name])
        new = [Param(name, value) for name, value in wanted.items() if name not in known.params]
        for part in _parts(new, _PAIRS_PER_REQUEST):
            self.connect().log_batch(known.run_id, params=part)
        known.params |= {param.key: param.value for param in new}

    def _tag(self, known: _Known, tags: Any) -> None:
        changed = {name: value for name, value in _cut_tags(tags).items() if known.tags.get(name) != value}
        pairs = [RunTag(name, value) for name, value in changed.items()]
        for part in _parts(pairs, _PAIRS_PER_REQUEST):
            self.connect().log_batch(known.run_id, tags=part)
        known.tags |= changed

    def _own_tags(self, known: _Known, tags: Any) -> None:
        self._tag(known, tags)
        for name in [name for name in known.tags if name.startswith(_PASSING_TAGS) and name not in tags]:
            self.connect().delete_tag(known.run_id, name)
            del known.tags[name]

    def _data(self, known: _Known, data: Any) -> None:
        new = {name: store for name, store in data.items() if store[:36] not in known.data}
        if new:
            tag = InputTag("mlflow.data.context", "training")
            inputs = [DatasetInput(Dataset(name, store[:36], "local", store), [tag]) for name, store in new.items()]
            self.connect().log_inputs(known.run_id, datasets=inputs)
        known.data |= {store[:36] for store in new.values()}

    def _points(self, known: _Known, points: Sequence[Point]) -> None:
        for metric in {point.metric for point in points} - known.last_step.keys():
            history = self.connect().get_metric_history(known.run_id, metric) if metric in known.metrics else []
            known.last_step[metric] = max((point.step for point in history), default=-1)
        new = [point for point in points if point.step > known.last_step[point.metric]]
        for part in _parts(new, _POINTS_PER_REQUEST):
            sent = [Metric(point.metric, point.value, point.time_ms, point.step) for point in part]
            self.connect().log_batch(known.run_id, metrics=sent)
            for point in part:
                known.last_step[point.metric] = max(point.step, known.last_step[point.metric])

    def _metrics(self, run: MirroredRun, known: _Known) -> None:
        """Those whose latest value in MLflow is another."""
        when = int(1000 * (run.ended if run.ended is not None else run.began))
        new = {name: value for name, value in run.metrics.items() if known.metrics.get(name) != value}
        for part in _parts(list(new.items()), _POINTS_PER_REQUEST):
            self.connect().log_batch(
                known.run_id, metrics=[Metric(name, value, when, run.step) for name, value in part]
            )
        known.metrics |= new

    def _reopen(self, run: MirroredRun, known: _Known) -> None:
        if run.status == "RUNNING" and known.status != "RUNNING":
            self.connect().update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"

    def _file(self, known: _Known, file: MirroredFile) -> None:
        digest = file.digest
        if known.files.get(file.name) == digest:
            return
        folder, _, name = file.name.rpartition("/")
        if isinstance(file.source, str):
            self.connect().log_text(known.run_id, file.source, file.name)
        elif file.source.name == name:
            self.connect().log_artifact(known.run_id, str(file.source), folder or None)
        else:
            with TemporaryDirectory(prefix="cddpm-") as place:
                Path(place, name).symlink_to(file.source.resolve())
                self.connect().log_artifact(known.run_id, str(Path(place, name)), folder or None)
        known.files[file.name] = digest

    def _links(self, known: _Known, run: MirroredRun) -> None:
        """Name the runs that made what this one is made of, in whichever sweep of this MLflow; of no known one nothing."""
        lines, tags = [_MADE_FROM], {}
        for stage, fingerprint in run.made_of.items():
            wanted = f"tags.`{names.STAGE}` = '{stage}' AND tags.`{names.FINGERPRINT}` = '{fingerprint}'"
            maker = next(self._search(wanted), None)
            if maker is not None:
                own = maker.info
                tags[f"{names.MADE_BY}.{stage}"] = own.run_id
                lines.append(f"- {stage}: [{own.run_name}](#/experiments/{own.experiment_id}/runs/{own.run_id})")
        if tags:
            self._tag(known, {**tags, names.NOTE: "\n".join(lines)})

    def _register(self, run: MirroredRun, known: _Known) -> None:
        """Register a package; the same one is registered once, and its promotion is entered once."""
        wanted = run.registration
        if wanted is None:
            return
        registry = self._registry(wanted.model)
        try:
            version = registry.register(known.run_id, wanted.package, wanted.metrics, wanted.tags, wanted.label)
            if wanted.alias:
                registry.promote_once(version, wanted.alias, wanted.why, wanted.who, wanted.identity, wanted.time_ms)
        except AwayError:
            raise
        except TrackingError as error:
            if isinstance(error.__cause__, MlflowException | OSError):
                raise error.__cause__ from None  # whether trying again is in vain, that one says
            raise ValueError(str(error)) from error

    def _end(self, run: MirroredRun, known: _Known) -> None:
        if run.status != "RUNNING":
            ended = run.ended if run.ended is not None else run.began
            self.connect().set_terminated(known.run_id, run.status, int(ended * 1000))
            known.status = run.status


def uri_of(tracking: TrackingConfig, output_dir: Path) -> str:
    """MLflow's tracking URI of a configuration."""
    return address.whole(tracking.uri) if tracking.uri else address.default_uri(output_dir)


def is_refusal(error: Exception) -> bool:
    """Whether trying again is in vain: MLflow understood and said no, or what is to be sent is gone or makes no sense.

    All else (no connection, 5xx, 403, a locked database, faults of an object store) may pass.
    """
    if isinstance(error, MlflowException):  # MLflow calls faults of a busy database bad requests
        return error.error_code in _REFUSALS and "sqlalche" not in str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an artifact upload over HTTP
    return status in _REFUSED_UPLOADS or isinstance(
        error, FileNotFoundError | ValueError | TypeError | LookupError | ArtifactError
    )


def _known(found: Run) -> _Known:
    data = {entry.dataset.digest for entry in found.inputs.dataset_inputs} if found.inputs else set()
    return _Known(
        str(found.info.run_id),
        str(found.info.status),
        dict(found.data.tags),
        dict(found.data.params),
        data,
        dict(found.data.metrics),
    )


def _identity(run: MirroredRun) -> dict[str, str]:
    own = {
        names.RUN: run.key,
        names.SWEEP: run.key.partition("/")[0],
        names.CAMPAIGN: run.campaign,
        names.KIND: run.kind,
        names.RUN_NAME: run.name,
    }
    tables = [{"path": file.name, "type": "table"} for file in run.files if file.table]
    return {**own, names.LOGGED_ARTIFACTS: json.dumps(tables)} if tables else own


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cut(text: str, longest: int) -> str:
    """MLflow's own cut leaves no trace; ours says so."""
    return text if len(text) <= longest else text[: longest - 12] + " ...(is cut)"


def _cut_tags(tags: Any) -> dict[str, str]:
    return {name: _cut(value, _LONGEST_TAG) for name, value in tags.items()}
