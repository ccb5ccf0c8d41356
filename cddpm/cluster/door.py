"""The way into a cluster: whether Ray answers at an address, and where a Ray of this machine's own keeps its files.

Ray itself tries a dead address for a quarter of an hour, and starts nothing below a folder with a long name.
"""

import contextlib
import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cddpm.cluster import internals
from cddpm.errors import SearchError, StorageError
from cddpm.host import writable

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 8.0
VARIABLE = "RAY_ADDRESS"
_ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?"
)
_LONGEST_SOCKET = 107
"""Bytes of the path of a socket on Linux."""
_IN_RAY = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray puts behind the temporary folder for its sockets, with the largest process number."""
LONGEST_FOLDER = _LONGEST_SOCKET - len(_IN_RAY.removeprefix("/ray"))
"""Bytes of the path of a temporary folder that is Ray's alone (``ray start --temp-dir``)."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def wanted(address: str | None, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The address that is meant, or ``local``, and how a person can do without it."""
    found = environment.get(VARIABLE)
    if address and not (address == "auto" and found):
        return address, "leave out --address to use this machine"
    return (found, f"unset {VARIABLE} to use this machine") if found else ("local", "")


def elsewhere(address: str | None) -> bool:
    """Whether a cluster is meant that somebody has started, not a Ray of this machine's own."""
    return wanted(address)[0] != "local"


def check_answers(address: str | None = None) -> None:
    """Raises ``SearchError``, within seconds, if the cluster that is meant (see ``wanted``) does not answer."""
    address, instead = wanted(address)
    if address == "auto":
        address = _here(instead)
    if address != "local":
        _check(address, instead)


def _here(instead: str) -> str:
    try:
        return internals.address_here()
    except ConnectionError:
        raise SearchError(f"Ray at 'auto': no cluster runs on this machine; start one, or {instead}") from None


@contextlib.contextmanager
def told(address: str, instead: str) -> Iterator[None]:
    """Turn what Ray raises while it starts, or joins the cluster at ``address``, into a ``SearchError`` of one line."""
    try:
        yield
    except Exception as error:  # Ray raises nearly anything here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address != "local":
            raise SearchError(
                f"Ray at '{address}' does not answer ({reason}); start a cluster, or {instead}"
            ) from error
        raise SearchError(
            f"Ray cannot be started on this machine ({reason}); its files go to RAY_TMPDIR, TMPDIR or /tmp: see that there is "
            "room"
        ) from error


def _check(address: str, instead: str) -> None:
    """Raises ``SearchError`` that ends with ``instead`` unless a head of Ray answers at HOST:PORT or ray://HOST:PORT.

    Seconds decide, and nothing that Ray prints is seen.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None or parts["scheme"] not in (None, "ray"):
        raise SearchError(
            f"Ray at '{address}': no address of a cluster; allowed are HOST:PORT of its head (6379 by default), "
            f"ray://HOST:PORT, auto and local; or {instead}"
        )
    answer = _fault(parts["host"], int(parts["port"]), client=parts["scheme"] == "ray")
    if answer:
        raise SearchError(f"Ray at '{address}' does not answer ({answer}); start a cluster there, or {instead}")


def _fault(host: str, port: int, client: bool) -> str | None:
    """Why this is no head of Ray (no server of its clients); None if it is one."""
    try:
        socket.create_connection((host.strip("[]"), port), PATIENCE_SECONDS / 2).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or error)
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None  # the certificates are Ray's to show
    import grpc

    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=PATIENCE_SECONDS)
        except grpc.RpcError as error:
            code = error.code()
        else:
            return None
    if code == grpc.StatusCode.UNAUTHENTICATED or (client and code == grpc.StatusCode.UNIMPLEMENTED):
        return None
    late = code == grpc.StatusCode.DEADLINE_EXCEEDED
    return f"something listens, but says nothing for {PATIENCE_SECONDS:g} s" if late else "something else listens there"


def settle_token() -> None:
    """Where Ray's token can neither be found nor kept in the home, give a Ray of our own one for its lifetime, told."""
    token = Path("~/.ray/auth_token").expanduser()
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or os.access(token, os.R_OK):
        return
    if not writable(token.parent):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        logger.warning("%s: cannot be written; this Ray has a token for itself alone", token.parent)


def settle_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """The temporary folder for a Ray of our own where that which the variables name cannot be it, told; else None.

    Raises ``StorageError`` if there is none.
    """
    named = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or _SHORT[0]
    reason = _unfit(named)
    if reason is None:
        return None
    for place in _SHORT:
        if place != named and _unfit(place) is None:
            logger.warning(
                "%s: %s; Ray keeps its files in %s/ray (RAY_TMPDIR names another folder)", named, reason, place
            )
            return place
    raise StorageError(f"{named}: {reason}; set RAY_TMPDIR to a short folder that can be written, such as {_SHORT[0]}")


def _unfit(folder: str) -> str | None:
    if len(os.fsencode(os.path.abspath(folder) + _IN_RAY)) > _LONGEST_SOCKET:  # noqa: PTH100 - links stay
        return f"too long for Ray's sockets (at most {_LONGEST_SOCKET - len(_IN_RAY)} bytes)"
    try:
        place = Path(folder, "ray")
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"
