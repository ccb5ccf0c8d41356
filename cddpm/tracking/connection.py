"""The way to MLflow: one client per tracking URI, its database made once, faults told in one sentence."""

import contextlib
import logging
import os
import socket
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cddpm import artifact
from cddpm.errors import AwayError, TrackingError
from cddpm.tracking import database, quieten_mlflow
from cddpm.tracking.address import default_uri, file_uri, one_line, sqlite_file, without_password

__all__ = ["as_global", "connect", "default_uri", "experiment", "one_line", "sqlite_file", "told"]

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 8.0
_PASSING = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
)
"""MLflow's codes for what may be gone later."""
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Kinds of database servers, and where they listen if the URI does not say."""


def connect(uri: str, create: bool = True) -> MlflowClient:
    """A client for ``uri``; a SQLite database is made by one process at a time, and knows where its files lie now.

    Several processes that open a fresh database at once corrupt it for good, hence the lock. With ``create=False``, for who
    only looks, a missing database file is an error and nothing is written. Raises ``TrackingError`` that names the URI:
    ``AwayError`` if a server may answer later, another for what no waiting mends (such as another schema: ``database.check``).
    """
    quieten_mlflow()
    _check_kind(uri)
    file = sqlite_file(uri)
    if file is None:
        _check_answers(uri)
        return _opened(uri)
    if not create:
        database.check(file)
        return _opened(file_uri(file))
    with artifact.lock(file.with_name(f".{file.name}.lock")):
        if not file.exists():
            _make(file)
        database.check(file)
        database.settle(file)
        return _opened(file_uri(file))


def _make(file: Path) -> None:
    """It appears whole: one that MLflow has half made would be of an earlier schema."""
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        _opened(file_uri(part))
        database.settle_new(part)
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)


def _opened(uri: str) -> MlflowClient:
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        lasting = sqlite_file(uri) is not None and "database is locked" not in str(error)
        passing = error.error_code in _PASSING and not lasting and "schema" not in str(error)
        kind = AwayError if passing else TrackingError
        raise kind(f"{without_password(uri)}: MLflow refuses: {one_line(error)}{_advice(error)}") from error
    except Exception as error:  # SQLAlchemy, Alembic and drivers raise their own kinds
        raise TrackingError(
            f"{without_password(uri)}: MLflow cannot open this: {one_line(error)}{_advice(error)}"
        ) from error
    return client


def _check_kind(uri: str) -> None:
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in ("http", "https", "sqlite", *_DATABASES):
        raise TrackingError(
            f"tracking.uri: '{uri}' is no lab book; allowed are http://HOST:PORT, https://..., "
            f"sqlite:////absolute/path/mlflow.db and {', '.join(f'{name}://...' for name in _DATABASES)}"
        )


def _check_answers(uri: str) -> None:
    """A look of a few seconds; MLflow would try for minutes. Raises ``AwayError``."""
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind in _DATABASES:
        _check_listens(uri, parts.hostname, parts.port or _DATABASES[kind])
    if kind not in ("http", "https"):
        return
    try:
        with urllib.request.urlopen(uri, timeout=_ANSWER_SECONDS):  # proxies of the environment are used
            return
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in, the first request tells
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # certificates are judged by MLflow's own settings
        raise AwayError(
            f"{without_password(uri)}: the MLflow server does not answer ({reason}). Start it, correct tracking.uri (or "
            "MLFLOW_TRACKING_URI), or leave it empty for a SQLite file in output_dir"
        ) from None


def _check_listens(uri: str, host: str | None, port: int) -> None:
    if host is None:
        return  # a socket file: the driver looks for it
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise AwayError(
            f"{without_password(uri)}: the database does not answer ({error}). Start it, or correct the URI"
        ) from None


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn MLflow's exceptions into ``TrackingError`` that begins with ``what``: ``AwayError`` for what may pass."""
    try:
        yield
    except MlflowException as error:
        kind = AwayError if error.error_code in _PASSING else TrackingError
        raise kind(f"{without_password(what)}: MLflow refuses: {one_line(error)}{_advice(error)}") from error
    except OSError as error:
        raise AwayError(
            f"{without_password(what)}: MLflow cannot be reached or its files not be used: {one_line(error)}"
        ) from error


def _advice(error: Exception) -> str:
    if "No module named 'psycopg" in str(error):
        return ". Install psycopg2-binary and write postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE, or use a server"
    if "schema" in str(error):
        return ". The database is of another MLflow version: back it up, then run `mlflow db upgrade <uri>`"
    if getattr(error, "error_code", None) in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ". Check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return ""


_FOR_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages show metrics and models of such an experiment, not chats."""


def experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Id of the experiment ``name``, made if absent, its files below ``artifacts`` (None: where the server keeps them).

    Raises ``TrackingError`` if it was deleted; lets MLflow's own exceptions pass.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            place = artifacts.as_uri() if artifacts else None
            return str(client.create_experiment(name, place, tags=_FOR_TRAINING))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found is None or found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment '{name}' was deleted in MLflow; restore it (`mlflow experiments restore`) or set "
            "tracking.experiment to another name"
        )
    return str(found.experiment_id)


@contextlib.contextmanager
def as_global(uri: str) -> Iterator[None]:
    """Make a database ``uri`` MLflow's process-wide one for a moment: its SQL registry looks up ``models:/`` sources there.

    A server does that for itself.
    """
    if urlsplit(uri).scheme in ("http", "https"):
        yield
        return
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it
