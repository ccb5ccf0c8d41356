"""The states of a training, kept in an object store behind the training's back.

With a folder for storage nothing is done here: states lie there anyway. Before an object store a state is saved on the first
rank's node, and a thread sends it on, with the history and the best weights as they are at that moment; training does not wait.
A start begins with the newest sound state of the store on every node, so that all ranks go on from the same.

    WORK/images-000000005120.json   what belongs to a state: SHA-256 by file; written last
    WORK/parts/DIGEST               its files
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cddpm import artifact
from cddpm.errors import ArtifactError, StorageError
from cddpm.shelf import Shelf
from cddpm.training import best, checkpoint
from cddpm.training.loop import Hooks, Interrupted
from cddpm.training.ranks import Ranks

logger = logging.getLogger(__name__)

PARTS = "parts"
MOST_FAILURES = 3
"""States in a row that could not be sent; then the training ends."""


@contextlib.contextmanager
def kept_away(shelf: Shelf, work: Path, ranks: Ranks, hooks: Hooks) -> Iterator[Hooks]:
    """``hooks`` for a training in the folder ``work``, whose states are sent to the storage while the block runs.

    All ranks enter together and find the same newest state in their ``work``. When the training is interrupted, its last
    state is in the store before the block ends. Raises ``StorageError`` when the store has failed for too long,
    ``ArtifactError`` if there are states in it and none is sound.
    """
    if not shelf.storage:
        yield hooks
        return
    sender = _Sender(shelf, work)
    _settle(sender, ranks)
    if not ranks.first:
        yield hooks
        return
    try:
        yield replace(hooks, saved=sender.saved)
    except Interrupted:
        sender.finish()
        raise
    finally:
        sender.close()


def forget(shelf: Shelf, work: Path) -> None:
    """Remove what was kept of a training that has ended."""
    shutil.rmtree(work, ignore_errors=True)
    if shelf.storage:
        shelf.delete(work)


def _settle(sender: "_Sender", ranks: Ranks) -> None:
    """Leave in every rank's ``work`` the newest sound state of the store, or nothing."""
    chosen = ranks.share(sender.newest() if ranks.first else None)
    sender.fetch(chosen)
    ranks.barrier()


class _Sender:
    def __init__(self, shelf: Shelf, work: Path) -> None:
        self._shelf, self._work = shelf, work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._running: Future[None] | None = None
        self._waiting: Path | None = None
        self._sent: set[str] = set()
        self._failures = 0

    def saved(self, path: Path) -> None:
        """The state ``path`` was saved: send it when the one before is done. Of several that wait the newest is sent."""
        self._settle_running(wait=False)
        if self._waiting is not None:
            shutil.rmtree(self._waiting, ignore_errors=True)
        self._waiting = self._snapshot(path)
        self._start()

    def finish(self) -> None:
        """Wait until the last state is there. Raises ``StorageError`` if it could not be sent."""
        self._failures = MOST_FAILURES - 1  # the next one counts
        while self._running is not None or self._waiting is not None:
            self._settle_running(wait=True)
            self._start()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for aside in self._work.glob(".sending-*"):
            shutil.rmtree(aside, ignore_errors=True)

    def newest(self) -> str | None:
        """Name of the newest sound state in the store, after what only this node has was sent.

        Raises ``ArtifactError`` if there are states and none is sound.
        """
        own = next(iter(checkpoint.states(self._work)), None)
        there = self._names()
        ahead = own is not None and (not there or f"{own.name}.json" > there[0])
        if own is not None and ahead and artifact.is_sound(own, checkpoint.STATE_KIND):
            self._send(self._snapshot(own))
            there = self._names()
        for name in there:
            try:
                self._fetch(name)
            except (ArtifactError, StorageError) as error:
                logger.warning("passing over a damaged state: %s", error)
            else:
                return name
        if there:
            place = self._shelf.place(self._work)
            raise ArtifactError(
                f"{place}: none of its {len(there)} saved states is intact; delete it to train from the start"
            )
        return None

    def fetch(self, name: str | None) -> None:
        """Have the state ``name`` in the folder, and no other."""
        marker = self._work / ".fetched"
        if name is None:
            shutil.rmtree(self._work, ignore_errors=True)
        elif not marker.exists() or marker.read_text() != name:
            self._fetch(name)
        marker.unlink(missing_ok=True)

    def _fetch(self, name: str) -> None:
        data = self._shelf.read(self._work / name)
        if data is None:
            raise ArtifactError(f"{self._shelf.place(self._work / name)}: missing")
        files: dict[str, str] = json.loads(data)
        fresh = self._work.with_name(f".{self._work.name}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self._shelf.receive(fresh, files, self._work / PARTS)
        (fresh / ".fetched").write_text(name)
        shutil.rmtree(self._work, ignore_errors=True)
        fresh.rename(self._work)

    def _names(self) -> list[str]:
        return sorted((n for n in self._shelf.names(self._work) if n.endswith(".json") and "/" not in n), reverse=True)

    def _snapshot(self, path: Path) -> Path:
        """Links to the files of this moment: they stay when those they name are replaced."""
        aside = self._work / f".sending-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        for folder in (path, *best.folders(self._work)):
            for file in folder.iterdir():
                _link(file, aside / folder.name / file.name)
        if (self._work / checkpoint.HISTORY).exists():
            _link(self._work / checkpoint.HISTORY, aside / checkpoint.HISTORY)
        return aside

    def _start(self) -> None:
        if self._running is None and self._waiting is not None:
            self._running, self._waiting = self._pool.submit(self._send, self._waiting), None

    def _settle_running(self, wait: bool) -> None:
        if self._running is None or not (wait or self._running.done()):
            return
        running, self._running = self._running, None
        try:
            running.result()
            self._failures = 0
        except StorageError as error:
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise StorageError(f"{error}; {self._failures} states in a row could not be kept there") from error
            logger.warning("%s; the state is kept on this node and training goes on", error)

    def _send(self, aside: Path) -> None:
        names = [path.relative_to(aside).as_posix() for path in sorted(aside.rglob("*")) if path.is_file()]
        files = {name: artifact.file_digest(aside / name) for name in names}
        self._shelf.send(aside, {n: d for n, d in files.items() if d not in self._sent}, self._work / PARTS)
        self._sent = set(files.values())
        self._shelf.write(self._work / f"{aside.name.removeprefix('.sending-')}.json", json.dumps(files).encode())
        shutil.rmtree(aside, ignore_errors=True)
        self._prune(set(files.values()))

    def _prune(self, kept: set[str]) -> None:
        """Only the newest two stay, as on a disk."""
        names = self._names()
        for name in names[1 : checkpoint.KEPT_STATES]:
            kept |= set(json.loads(self._shelf.read(self._work / name) or b"{}").values())
        for name in names[checkpoint.KEPT_STATES :]:
            self._shelf.delete(self._work / name)
        for name in self._shelf.names(self._work / PARTS):
            if name not in kept:
                self._shelf.delete(self._work / PARTS / name)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
