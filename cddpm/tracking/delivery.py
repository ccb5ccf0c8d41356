"""Delivery: one journal entry made true in MLflow, however often it is tried.

A run is found by its tag ``cddpm.run`` or created with it in the same request. Points carry the time at which they were
written down, and MLflow drops a point that it has (key, step, time and value equal); of a run that was there before this
process, points at or below its last step are left out.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from cddpm.errors import ArtifactError, AwayError, TrackingError
from cddpm.tracking import book_files, connection, mlflow_settings, names
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
_MADE_FROM = "Made from:\n"
_REFUSED_UPLOADS = (400, 405, 413, 422)


def is_refusal(error: Exception) -> bool:
    """Whether trying again is in vain: MLflow understood and said no, or what is to be sent is gone or makes no sense.

    All else (no connection, 5xx, 403, a locked database, faults of an object store) may pass.
    """
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an artifact upload over HTTP
    return status in _REFUSED_UPLOADS or isinstance(
        error, FileNotFoundError | ValueError | TypeError | LookupError | ArtifactError
    )


class Delivery:
    """Writes entries with explicit run ids; used by one thread. Every method may raise ``MlflowException`` or ``OSError``."""

    def __init__(self, client: Callable[[], MlflowClient], experiment: str, uri: str) -> None:
        """``client`` is called until it succeeds and goes to ``uri``; a new experiment's files lie where its book's do."""
        mlflow_settings.apply()
        self._connect, self._uri = client, uri
        self._client: MlflowClient | None = None
        self._experiment = experiment
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}
        self._last_step: dict[tuple[str, str], int] = {}
        self._created: set[str] = set()
        self._versions: dict[tuple[str, str], int] = {}
        self._promotions: dict[tuple[str, str], Promotion] = {}

    def connect(self) -> MlflowClient:
        """The client, with the experiment there."""
        if self._client is None:
            self._client = self._connect()
        if not self._experiment_id:
            self._experiment_id = connection.experiment(self._client, self._experiment, book_files.folder(self._uri))
        return self._client

    def known(self, key: str) -> str | None:
        """MLflow's id of a run that was delivered in this process."""
        return self._run_ids.get(key)

    @property
    def home(self) -> dict[str, str]:
        """Where entries go, as journals keep it: ``uri`` and ``experiment``."""
        return {"uri": self._uri, "experiment": self._experiment}

    def version(self, run: str, model: str) -> int | None:
        """The version of ``model`` that was registered for the run with this key by this process."""
        return self._versions.get((run, model))

    def promotion(self, run: str, model: str) -> Promotion | None:
        """What became of the promotion that followed this registration; None if there was none in this process."""
        return self._promotions.get((run, model))

    def deliver(self, entry: dict[str, Any]) -> None:
        """Carry out one entry. Raises ``ValueError`` for one of another version of the program."""
        steps: dict[str, Callable[[dict[str, Any]], None]] = {
            "open": self._open,
            "points": self._points,
            "tags": lambda e: self._tags(self.run_id(e["run"]), e["tags"]),
            "params": self._late_params,
            "link": self._link,
            "artifact": self._artifact,
            "dict": lambda e: self.connect().log_dict(self.run_id(e["run"]), e["value"], e["file"]),
            "dataset": self._dataset,
            "register": self._register,
            "close": lambda e: self.connect().set_terminated(self.run_id(e["run"]), e["status"], e["time"]),
        }
        if entry["op"] not in steps:
            raise ValueError(f"journal entry '{entry['op']}' is not known to this version of the program")
        steps[entry["op"]](entry)

    def run_id(self, key: str) -> str:
        """MLflow's id of the run ``key``: remembered, found by its tag, or created."""
        if key not in self._run_ids:
            found = self._find(key)
            self._run_ids[key] = found.info.run_id if found else self._create(key, {}, None)
        return self._run_ids[key]

    def _find(self, key: str) -> Run | None:
        runs = self.connect().search_runs(
            [self._experiment_id], f"tags.`{names.RUN}` = '{key}'", order_by=["attributes.start_time ASC"]
        )
        if len(runs) > 1:
            logger.warning("%d runs are tagged %s=%s; the oldest is used", len(runs), names.RUN, key)
        return runs[0] if runs else None

    def _create(self, key: str, tags: dict[str, str], time_ms: int | None) -> str:
        sweep, _, child = key.partition("/")
        identity = {names.RUN: key, names.SWEEP: sweep} | ({names.PARENT: self.run_id(sweep)} if child else {})
        named = {names.RUN_NAME: child or sweep, **tags, **identity}
        run = self.connect().create_run(self._experiment_id, start_time=time_ms, tags=_cut_tags(named))
        self._created.add(key)
        return str(run.info.run_id)

    def _open(self, entry: dict[str, Any]) -> None:
        key, client = entry["run"], self.connect()
        found = self._find(key)
        if found is None:
            run_id = self._create(key, entry["tags"], entry["time"])
            self._run_ids[key] = run_id
            self._params(run_id, entry["params"], {})
            return
        run_id = self._run_ids[key] = found.info.run_id
        if found.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        self._tags(run_id, entry["tags"])
        self._params(run_id, entry["params"], found.data.params)

    def _params(self, run_id: str, params: dict[str, str], present: dict[str, str]) -> None:
        wanted = {name: _cut(value, _LONGEST_PARAM) for name, value in params.items()}
        for name in sorted(wanted.keys() & present.keys()):
            if wanted[name] != present[name]:
                logger.warning("run %s: param %s stays %r (now %r)", run_id, name, present[name], wanted[name])
        new = [Param(name, value) for name, value in wanted.items() if name not in present]
        for part in _parts(new, _PAIRS_PER_REQUEST):
            self.connect().log_batch(run_id, params=part)

    def _late_params(self, entry: dict[str, Any]) -> None:
        run_id = self.run_id(entry["run"])
        self._params(run_id, entry["params"], self.connect().get_run(run_id).data.params)

    def _link(self, entry: dict[str, Any]) -> None:
        """Name the run that made an artifact, in whichever sweep of this lab book; nothing if none is known."""
        run_id, stage = self.run_id(entry["run"]), entry["stage"]
        wanted = f"tags.`{names.STAGE}` = '{stage}' AND tags.`{names.FINGERPRINT}` = '{entry['fingerprint']}'"
        found = self.connect().search_runs(
            [self._experiment_id], wanted, order_by=["attributes.start_time ASC"], max_results=1
        )
        if not found:
            return
        maker = found[0].info
        tags = self.connect().get_run(run_id).data.tags
        line = f"- {stage}: [{maker.run_name}](#/experiments/{maker.experiment_id}/runs/{maker.run_id})"
        note = tags.get(names.NOTE, _MADE_FROM)
        if line not in note.splitlines():
            note = f"{note}\n{line}"
        self._tags(run_id, {f"{names.MADE_BY}.{stage}": maker.run_id, names.NOTE: note})

    def _tags(self, run_id: str, tags: dict[str, str]) -> None:
        pairs = [RunTag(name, value) for name, value in _cut_tags(tags).items()]
        for part in _parts(pairs, _PAIRS_PER_REQUEST):
            self.connect().log_batch(run_id, tags=part)

    def _points(self, entry: dict[str, Any]) -> None:
        key, run_id = entry["run"], self.run_id(entry["run"])
        new = [
            Metric(name, value, own[0] if own else entry["time"], step)
            for name, value, step, *own in entry["points"]
            if key in self._created or step > self._last(key, run_id, name)
        ]
        for part in _parts(new, _POINTS_PER_REQUEST):
            self.connect().log_batch(run_id, metrics=part)

    def _last(self, key: str, run_id: str, name: str) -> int:
        """The last step that the run had when this process met it; asked once."""
        if (key, name) not in self._last_step:
            history = self.connect().get_metric_history(run_id, name)
            self._last_step[key, name] = max((point.step for point in history), default=-1)
        return self._last_step[key, name]

    def _artifact(self, entry: dict[str, Any]) -> None:
        path, run_id = Path(entry["path"]), self.run_id(entry["run"])
        if path.is_dir():
            self.connect().log_artifacts(run_id, str(path), entry["folder"])
        elif path.is_file():
            self.connect().log_artifact(run_id, str(path), entry["folder"])
        else:
            raise FileNotFoundError(f"{path}: this file of run {entry['run']} is gone; it was to be kept in MLflow")

    def _dataset(self, entry: dict[str, Any]) -> None:
        dataset = Dataset(entry["name"], entry["digest"], "local", entry["source"])
        tag = InputTag("mlflow.data.context", entry["context"])
        self.connect().log_inputs(self.run_id(entry["run"]), datasets=[DatasetInput(dataset, [tag])])

    def _register(self, entry: dict[str, Any]) -> None:
        """Register a package; the same one is registered once, and its promotion is entered once."""
        run_id, client = self.run_id(entry["run"]), self.connect()
        registry = Registry(client, self._uri, entry["model"])
        try:
            what = (Path(entry["package"]), entry["metrics"], entry["tags"], entry.get("label", ""))
            version = registry.register(run_id, *what)
            if entry["alias"]:
                self._promotions[entry["run"], entry["model"]] = registry.promote_once(
                    version, entry["alias"], entry["why"], entry["who"], entry["id"], entry["time"]
                )
        except AwayError:
            raise
        except TrackingError as error:
            if isinstance(error.__cause__, MlflowException | OSError):
                raise error.__cause__ from None  # whether trying again is in vain, that one says
            raise ValueError(str(error)) from error
        self._versions[entry["run"], entry["model"]] = version


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cut(text: str, longest: int) -> str:
    """MLflow's own cut leaves no trace; ours says so."""
    return text if len(text) <= longest else text[: longest - 12] + " ...(is cut)"


def _cut_tags(tags: dict[str, str]) -> dict[str, str]:
    return {name: _cut(value, _LONGEST_TAG) for name, value in tags.items()}
