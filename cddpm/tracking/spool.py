"""What waits for MLflow, and its delivery by hand: ``cddpm registry sync`` is ``deliver_spool``.

The spool (``<output_dir>/spool``) holds a journal per sweep. A sweep, or the next one in the same output folder, delivers by
itself; this is for a server that was away until all was over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cddpm.errors import TrackingError
from cddpm.text import command
from cddpm.tracking import address, connection
from cddpm.tracking.delivery import Delivery
from cddpm.tracking.journal import SUFFIX, Journal, waiting_in
from cddpm.tracking.sender import Sender

_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Waiting:
    """A journal with entries that MLflow does not have."""

    sweep: str
    """Name of the sweep, training or evaluation."""
    entries: int
    uri: str
    experiment: str
    journal: Path


@dataclass(frozen=True)
class Delivered:
    """What ``deliver_spool`` did. All counts are of entries."""

    delivered: int
    waiting: int
    """Not delivered; they stay in the spool."""
    refused: int
    """MLflow will never take these; they lie in ``<sweep>.refused`` in the spool, with the reason."""
    faults: tuple[str, ...]
    """One line per journal that was not delivered whole: what is in the way."""


def waiting(spool: Path) -> list[Waiting]:
    """What waits in ``spool``, by sweep; empty if nothing does or there is no spool. Nothing is written.

    Raises ``TrackingError`` for a damaged journal.
    """
    found = [_waiting_in(path) for path in _journals(spool)]
    return [entry for entry in found if entry.entries]


def _journals(spool: Path) -> list[Path]:
    return sorted(spool.glob(f"*{SUFFIX}"))


def _waiting_in(path: Path) -> Waiting:
    count, home = waiting_in(path)
    name = path.name.removesuffix(SUFFIX)
    return Waiting(name, count, home.get("uri", ""), home.get("experiment", ""), path)


def to_deliver(entries: int, output_dir: Path) -> str:
    """What to tell a person whose work is over before MLflow has everything."""
    return f"{entries} lab-book entries wait in {output_dir / 'spool'}; deliver them with `{sync_command(output_dir)}`"


def sync_command(output_dir: Path) -> str:
    """What delivers the spool of ``output_dir`` by hand."""
    usual = output_dir == Path.cwd() / "outputs"
    return command("cddpm", "registry", "sync", *(() if usual else ("--output-dir", output_dir)))


def deliver_spool(
    spool: Path,
    uri: str | None = None,
    timeout_seconds: float = 600.0,
    told: Callable[[Waiting], None] = lambda waiting: None,
) -> Delivered:
    """Deliver what waits in the folder ``spool`` (``<output_dir>/spool``), each journal to the lab book it was written for.

    ``uri``: deliver all to this lab book instead (the first one was wrong, or has moved); only journals of which nothing was
    delivered yet can be sent elsewhere. ``told`` is called before each journal; ``timeout_seconds`` holds for each. Delivering
    twice is delivering once. One journal that cannot be delivered does not hinder the others: see ``Delivered.faults``.
    """
    delivered = left = refused = 0
    faults = []
    for path in _journals(spool):
        try:
            entry = _waiting_in(path)
        except TrackingError as error:  # damaged
            faults.append(f"{path.name.removesuffix(SUFFIX)}: {error}")
            continue
        if not entry.entries:
            continue
        told(entry)
        try:
            rest, not_taken, fault = _deliver(entry, uri, timeout_seconds)
        except TrackingError as error:
            rest, not_taken, fault = entry.entries, 0, str(error)
        delivered += max(0, entry.entries - rest - not_taken)
        left, refused = left + rest, refused + not_taken
        faults += [f"{entry.sweep}: {fault}"] if fault else []
    return Delivered(delivered, left, refused, tuple(faults))


def _deliver(entry: Waiting, uri: str | None, timeout_seconds: float) -> tuple[int, int, str | None]:
    """Entries that are left, entries that were refused, and what is in the way."""
    journal = Journal(entry.journal)
    try:
        delivery = _delivery(journal, uri)
        with connection.told(entry.sweep):
            delivery.connect()
        sender = Sender(delivery)
        sender.add(journal)
        sender.start()
        left = sender.flush(timeout_seconds, _PATIENCE_SECONDS)
        sender.stop(timeout_seconds=5.0)
        fault = sender.last_fault if left or sender.refused else None
        return left, sender.refused, fault or ("the time is over" if left else None)
    finally:
        journal.close()


def _delivery(journal: Journal, uri: str | None) -> Delivery:
    home = journal.home
    own = home.get("uri")
    target = uri or own
    if not target:
        raise TrackingError(
            f"{journal.path}: does not say which lab book it was written for; name one (--tracking-uri)"
        )
    same = own is not None and _plain(own) == _plain(target)
    if not same and journal.begun:
        raise TrackingError(f"{journal.path}: a part of it lies in {own} already; deliver the rest there")
    file = address.sqlite_file(target)
    if file is not None:
        address.check_is_there(file)  # a lab book that is gone is not made anew for the rest of its entries
    return Delivery(lambda: connection.connect(target), home.get("experiment") or "cddpm", address.whole(target))


def _plain(uri: str) -> str:
    return address.whole(uri).rstrip("/")
