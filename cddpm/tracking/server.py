"""An MLflow server, asked over its REST API (version 2.0): MLflow's own client takes over a second to import.

Who the user is comes from the variables that MLflow reads too; ways in that only MLflow knows are left to it (``is_plain``).
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from cddpm import artifact
from cddpm.errors import TrackingError
from cddpm.tracking import address

_SECONDS = (8.0, 60.0)
"""To connect, and for each answer."""
_TRIES = Retry(
    3, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504), allowed_methods=None, raise_on_status=False
)
"""Every request here may be repeated: what it writes is a value under a key."""
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_CHUNK = 1 << 20
OTHER_WAYS_IN = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_WORKSPACE",
)
"""Variables of the environment that leave a server to MLflow's own client."""


def is_plain(uri: str) -> bool:
    """Whether ``uri`` is an HTTP server that is entered freely, by name and password, or by token of the environment."""
    other = any(os.environ.get(name) for name in OTHER_WAYS_IN) or Path("~/.mlflow/credentials").expanduser().exists()
    return uri.startswith(("http://", "https://")) and not other


class Server:
    """One session with a server. Every method raises ``AwayError`` if it does not answer or does not let us in."""

    def __init__(self, uri: str) -> None:
        """Asks nothing yet."""
        self._base = f"{uri.rstrip('/')}/api/2.0"
        self._uri = uri
        self.shown = address.without_password(uri)
        """The URI as it may be shown."""
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(max_retries=_TRIES))
        self._session.mount("https://", HTTPAdapter(max_retries=_TRIES))
        name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        if name and password:
            self._session.auth = (name, password)
        elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._session.auth = _Token(token)
        if certificates := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
            self._session.verify = certificates

    def asked(self, method: str, what: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one request; None if what it names is absent. Raises ``TrackingError`` if it is refused."""
        payload: dict[str, Any] = {"params" if method == "GET" else "json": content}
        answer = self._answer(method, what, **payload)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            found, message = {}, f"no answer of an MLflow server: {answer.text}"
        elif answer.ok:
            return found
        else:
            message = str(found.get("message", ""))
        if found.get("error_code") in _ABSENT:
            return None
        raise self._refusal(answer, message, found.get("error_code"))

    def fetch(self, path: str, file: Path) -> bool:
        """Write the file that the server keeps under ``path`` to ``file``; False if there is none.

        Raises ``StorageError`` if ``file`` cannot be written.
        """
        answer = self._answer("GET", f"mlflow-artifacts/artifacts/{quote(path)}", stream=True)
        with answer:
            if not answer.ok:
                if answer.status_code == 404:
                    return False
                raise self._refusal(answer, answer.text, None)
            with artifact.storage_errors(file), file.open("wb") as stream:
                try:
                    for chunk in answer.iter_content(_CHUNK):
                        stream.write(chunk)
                except requests.RequestException as error:  # an OSError too, but none of the disk
                    raise address.away(self._uri, address.one_line(error)) from None
        return True

    def _answer(self, method: str, what: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(method, f"{self._base}/{what}", timeout=_SECONDS, **options)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise address.away(self._uri, address.one_line(error)) from None
        except (requests.RequestException, OSError) as error:
            raise TrackingError(f"{self.shown}: MLflow cannot be asked: {address.one_line(error)}") from error

    def _refusal(self, answer: requests.Response, message: str, code: str | None) -> TrackingError:
        status = answer.status_code
        return address.refusal(self.shown, address.code_of_status(status) or code, f"{status} {message}")


class _Token(requests.auth.AuthBase):
    """A token; as authentication of the session it is not replaced by an entry of ``.netrc``."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
