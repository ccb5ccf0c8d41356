"""Forks what must not see a device that its parent has opened: trainings.

A part opens its nursery before its device. There, everything is imported already, or is imported by each fork.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

_line: Connection | None = None


@contextmanager
def opened() -> Iterator[None]:
    """While it lasts, ``ask`` is answered by a process that was forked now."""
    global _line
    context = multiprocessing.get_context("fork")
    _line, other = context.Pipe()
    process = context.Process(target=_serve, args=(_line, other))
    process.start()
    other.close()
    try:
        yield
    finally:
        _line.close()
        _line = None
        process.join()


def ask(work: Callable[..., Any], *given: Any) -> Any:
    """``work(*given)``, done in the nursery, in which it may fork; without one it is done here."""
    if _line is None:
        return work(*given)
    _line.send((work, given))
    done, result = _line.recv()
    if not done:
        raise RuntimeError(result)
    return result


def _serve(theirs: Connection, line: Connection) -> None:
    theirs.close()
    while True:
        try:
            work, given = line.recv()
        except EOFError:
            return
        try:
            answer = True, work(*given)
        except Exception as error:  # noqa: BLE001 - whatever it is: told to who asked
            answer = False, f"{type(error).__name__}: {error}"
        line.send(answer)
