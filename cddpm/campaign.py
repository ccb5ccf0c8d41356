"""A named piece of work in a folder: one process at a time, one configuration for ever, stopped and resumed at will.

A sweep is one, an evaluation another.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cddpm import artifact, cluster, events
from cddpm.errors import SearchError, StoppedError

IDENTITY, HOLDER, LOCK, STOP = "identity.json", "holder.json", ".lock", "stop"
FINISHED = "finished.json"
"""There while nothing is left to do: what a finished campaign has used may be freed."""


@dataclass(frozen=True)
class Campaign:
    """``kind`` and ``name`` are what a person calls it; ``identity`` holds the settings that may never change."""

    kind: str
    name: str
    folder: Path
    identity: Mapping[str, Any]
    forceable: bool = False
    """Whether a person may go on in spite of another identity (``--force``)."""

    @property
    def stop_file(self) -> Path:
        """Asks all of its processes to save and end."""
        return self.folder / STOP

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self.stop_file.exists()

    def begin(self, surroundings: Mapping[str, str] | None = None) -> None:
        """From here on there is something to resume. ``surroundings``: code and machine of this start, as tags."""
        events.start(self.folder, surroundings=dict(surroundings or {}))
        artifact.write_json(self.folder / IDENTITY, dict(self.identity))

    def stopped_error(self) -> StoppedError:
        """What ends a process that was asked to stop."""
        return StoppedError(
            f"{self.kind} '{self.name}' was stopped and its state saved; the same command with --resume continues it"
        )

    @contextlib.contextmanager
    def held(self, resume: bool, stopping: Callable[[], None], force: bool = False) -> Iterator[list[str]]:
        """Hold the folder alone until the block ends; ``stopping`` is called at the first request to stop.

        Gives what differs from the identity that it was begun with: nothing, unless ``force`` allows it. Raises
        ``SearchError`` if it exists and ``resume`` is not asked for (or the other way round), if its identity was another,
        or if another process has it; ``StoppedError`` when it was stopped and can be resumed.
        """
        earlier = (self.folder / HOLDER).exists()
        with self._alone(), self._stoppable(stopping):
            changed = self._check_same(resume, earlier, force)
            (self.folder / FINISHED).unlink(missing_ok=True)
            yield changed
            artifact.write_json(self.folder / FINISHED, {"kind": self.kind, "name": self.name})

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        holder = self.folder / HOLDER
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(artifact.lock(self.folder / LOCK, wait=False))
            except BlockingIOError:
                other = self._holder()
                raise SearchError(
                    f"{self.kind} '{self.name}' is running already (process {other.get('pid', 'unknown')} on "
                    f"{other.get('host', 'unknown')}); wait for it, or give this one another name"
                ) from None
            artifact.write_json(holder, {"pid": os.getpid(), "host": os.uname().nodename})
            yield

    def _check_same(self, resume: bool, earlier: bool, force: bool) -> list[str]:
        """Refuse to mix. One that was started ``earlier`` but has nothing yet may go on with another configuration."""
        path = self.folder / IDENTITY
        if not path.exists():
            if resume and not earlier:
                raise SearchError(
                    f"{self.folder}: there is no {self.kind} '{self.name}' to resume; start it without --resume"
                )
            return []
        if not (self.folder / events.FILE).exists():
            raise SearchError(
                f"{self.folder}: {self.kind} '{self.name}' was begun by an earlier version of this program and cannot be gone "
                "on with; give this one another name (--name): checkpoints and reconstructions that are still valid are found"
            )
        if not resume:
            raise SearchError(
                f"{self.folder}: {self.kind} '{self.name}' exists; continue it with --resume, or give this one another "
                "name (--name)"
            )
        return self.changes("configuration", self._kept(IDENTITY), self.identity, force)

    def same(self, what: str, now: Mapping[str, Any], force: bool = False) -> list[str]:
        """What of ``now`` was otherwise at the start before, kept in ``<what>.json``; it is kept anew.

        Raises ``SearchError`` that lists it, unless ``force``.
        """
        path = self.folder / f"{what}.json"
        before = self._kept(path.name) if path.exists() and (self.folder / IDENTITY).exists() else now
        changed = self.changes(what, before, now, force)
        artifact.write_json(path, dict(now))
        return changed

    def _holder(self) -> Mapping[str, Any]:
        """Process and host of who has it; empty where that cannot be told."""
        try:
            return self._kept(HOLDER)
        except SearchError:
            return {}

    def _kept(self, name: str) -> dict[str, Any]:
        remedy = f"restore it, or give this {self.kind} another name (--name)"
        return artifact.read_json(self.folder / name, dict[str, Any], "what this program writes", remedy, SearchError)

    def changes(self, what: str, before: Mapping[str, Any], now: Mapping[str, Any], force: bool) -> list[str]:
        """What of ``before`` is another ``now``, a line each. Raises ``SearchError`` that lists it, unless ``force``."""
        changed = [
            f"{k}: was {before.get(k)!r}, is {now.get(k)!r}"
            for k in sorted(before.keys() | now.keys())
            if before.get(k) != now.get(k)
        ]
        if changed and not force:
            otherwise = ", or go on in spite of it with --force" if self.forceable else ""
            raise SearchError(
                f"{self.kind} '{self.name}' was started with another {what}; put it back or use another name{otherwise}:\n"
                + "\n".join(changed)
            )
        return changed

    @contextlib.contextmanager
    def _stoppable(self, stopping: Callable[[], None]) -> Iterator[None]:
        """First Ctrl-C or SIGTERM: trainings save their state, all ends in order. Second: at once. Both resumable."""
        stop = self.stop_file
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.unlink(missing_ok=True)

        def handle(number: int, frame: FrameType | None) -> None:
            if stop.exists():
                os.write(2, b"\nended at once; --resume continues from the last saved state\n")
                for s in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(s, signal.SIG_DFL)  # a third one does not even wait for Ray
                cluster.kill()
                os._exit(128 + number)
            stop.touch()
            stopping()
            os.write(2, b"\nstopping: trainings save their state (press Ctrl-C again to end at once) ...\n")
            if not cluster.connected():
                raise self.stopped_error()

        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            if not stop.exists():  # else a second Ctrl-C may still come while Ray shuts down
                for s, old in before.items():
                    signal.signal(s, old)


def is_begun(folder: Path) -> bool:
    """Whether the campaign in ``folder`` has something to resume."""
    return (folder / IDENTITY).exists()


def is_running(folder: Path) -> bool:
    """Whether a process holds the campaign in ``folder`` now. Looking is in nobody's way."""
    return artifact.is_locked(folder / LOCK)
