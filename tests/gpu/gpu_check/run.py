"""One process per part, with its own time limit, one after the other; whatever becomes of one, the next one runs."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check import part as parts
from gpu_check import record
from gpu_check.assignment import Assignment, allowance
from gpu_check.part import FAILED, NO_DEVICE, NOT_OPENED, PASSED

GRACE_SECONDS = 2.0
"""Between the part's own alarm, which writes down where it is, and its end."""
KEPT_LETTERS = 4000
"""Of what a part wrote to stderr."""
STARTS = ("forkserver", "spawn")
"""How a part's process begins: quickly, or anew if it cannot open the device so."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    device: str
    tiny: bool
    parts: tuple[str, ...]
    minutes: float
    out: Path
    plant: str | None = None


class NoDevice(Exception):  # noqa: N818 - the name says it
    """The device is not there, so no part can run."""


def run_parts(options: Options) -> None:
    """Run the parts in turn; their records tell how each ended. Raises ``NoDevice``."""
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        record.record_path(options.out, part).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as scratch:
        for number, part in enumerate(options.parts):
            seconds = allowance(part, options.parts[number + 1 :], end - time.monotonic())
            plant = options.plant if options.plant != "hang" or number == 0 else None
            given = Assignment(part, options.device, options.tiny, seconds, str(options.out), scratch, plant)
            print(f"{part}, at most {seconds:.0f} s", flush=True)
            _run_part(given)


def _run_part(given: Assignment) -> None:
    for start in STARTS:
        code, said = _ran(given, start)
        if code not in (NO_DEVICE, NOT_OPENED):
            break
    if code == NO_DEVICE:
        raise NoDevice(record.read(record.record_path(given.out_folder, given.part)))
    if code is None:
        record.close(given.out_folder, given.part, record.OUT_OF_TIME, f"ended after {given.seconds:.0f} s", said)
    elif code not in (PASSED, FAILED, NOT_OPENED) or _unfinished(given):
        record.close(given.out_folder, given.part, record.FAILED, _ending(code, said), said)
    elif code != PASSED:
        print(said, file=sys.stderr, flush=True)


def _ran(given: Assignment, start: str) -> tuple[int | None, str]:
    """Exit code, None if it was ended, and the end of what it wrote to stderr."""
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(parts.PRELOADED)
    errors = given.scratch_folder / f"{given.part}-{start}.stderr"
    process = context.Process(target=parts.main, args=(given.to_json(), str(errors)))
    process.start()
    try:
        process.join(given.seconds + GRACE_SECONDS)
        code: int | None = process.exitcode
    finally:
        _end(process)
    return code, errors.read_text(errors="replace")[-KEPT_LETTERS:] if errors.exists() else ""


def _unfinished(given: Assignment) -> bool:
    content = record.read(record.record_path(given.out_folder, given.part))
    return content is None or content["status"] == record.RUNNING


def _ending(code: int, said: str) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    last = next(iter(reversed(said.strip().splitlines())), "without a word")
    return f"its process ended with code {code}: {last}"


def _end(process: Any) -> None:
    """End the part's process and all that it started: they are one process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def contents(folder: Path, parts: Sequence[str]) -> list[record.Content]:
    """The records of ``parts`` that are in ``folder``."""
    found = [record.read(record.record_path(folder, part)) for part in parts]
    return [content for content in found if content is not None]
