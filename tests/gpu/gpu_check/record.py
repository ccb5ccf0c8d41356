"""What one part found, in one small JSON file that is whole at any moment: a run that is cut off keeps it.

A *figure* is a number with a unit, a *comparison* an error with its limit, a *finding* something that costs speed, a *fault*
something that is wrong. A part passed if it came to its end without a fault and all its comparisons hold.
"""

import json
import math
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNNING, PASSED, FAILED, OUT_OF_TIME = "running", "passed", "failed", "out of time"
Content = dict[str, Any]


def record_path(folder: Path, part: str) -> Path:
    """Where the record of ``part`` lies."""
    return folder / f"{part}.json"


def read(path: Path) -> Content | None:
    """The record at ``path``; None if there is none."""
    try:
        content: Content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return content


def held(error: float, limit: float | None) -> bool:
    """Whether an error is within its limit; NaN and infinity never are."""
    return math.isfinite(error) and (limit is None or error <= limit)


def first_line(error: BaseException) -> str:
    """Type and first line of an error."""
    said = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *said[:1]])


def replace(path: Path, content: Content) -> None:
    """Put ``content`` into the file ``path``, which is the old or the new one at any moment.

    Nothing waits for the disk: a process that is ended loses nothing, and small writes are many.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(path)


def blank(part: str) -> Content:
    """The record of a part that has begun."""
    return {
        "part": part,
        "status": RUNNING,
        "step": None,
        "seconds": 0.0,
        "steps": {},
        "facts": {},
        "figures": [],
        "comparisons": [],
        "findings": [],
        "faults": [],
        "curves": {},
        "tables": {},
    }


class Record:
    """The record of ``part`` in ``folder``, written anew with whatever is entered."""

    def __init__(self, folder: Path, part: str) -> None:
        self.path = record_path(folder, part)
        self._began = time.monotonic()
        self.content = blank(part)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        self.content["seconds"] = round(time.monotonic() - self._began, 2)
        replace(self.path, self.content)

    def facts(self, **values: Any) -> None:
        """What holds for all that is measured: device, versions, sizes."""
        self.content["facts"].update(values)
        self.write()

    def figure(self, name: str, value: float, unit: str, at: str = "", better: str = "more") -> None:
        """A number; ``at`` names the row of a table of which ``name`` is the column, ``better`` is more, less or neither."""
        finite = value if math.isfinite(value) else None
        self.content["figures"].append({"name": name, "at": at, "value": finite, "unit": unit, "better": better})
        self.write()

    def compare(self, name: str, error: float, limit: float | None, note: str = "") -> None:
        """A relative error and what is allowed; None: it is listed, nothing is asked of it but to be finite."""
        row = {"name": name, "error": error if math.isfinite(error) else None, "limit": limit, "note": note}
        self.content["comparisons"].append({**row, "held": held(error, limit)})
        self.write()

    def finding(self, text: str) -> None:
        """Something that is right, but costs speed."""
        self.content["findings"].append(text)
        self.write()

    def fault(self, text: str) -> None:
        """Something that is wrong."""
        self.content["faults"].append(text)
        self.write()

    def curve(self, name: str, points: Sequence[Sequence[float]]) -> None:
        """Points (images seen, value) of a curve; replaces what was there under this name."""
        self.content["curves"][name] = [[float(f"{number:.5g}") for number in point] for point in points]
        self.write()

    def table(self, name: str, rows: Sequence[Content]) -> None:
        """Rows of one form."""
        self.content["tables"][name] = list(rows)
        self.write()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Names what is being done, for who must end it; an error inside becomes a fault and the part goes on."""
        around, self.content["step"], began = self.content["step"], name, time.monotonic()
        self.write()
        print(f"  {self.content['part']}: {name}", flush=True)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is: it is told, and the next step is another measurement
            traceback.print_exc(file=sys.stderr)
            self.fault(f"{name}: {first_line(error)}")
        self.content["step"] = around
        self.content["steps"][name] = round(time.monotonic() - began, 2)
        self.write()

    def finish(self) -> bool:
        """Enter whether all is well, and return it."""
        sound = not self.content["faults"] and all(row["held"] for row in self.content["comparisons"])
        self.content["status"] = PASSED if sound else FAILED
        self.write()
        return sound


def close(folder: Path, part: str, status: str, fault: str, errors: str) -> None:
    """Enter how a part's process ended that could not say so itself; ``errors`` is the end of what it wrote to stderr."""
    path = record_path(folder, part)
    if read(path) is None:
        Record(folder, part)
    content = read(path)
    assert content is not None  # written above
    during = f" while: {content['step']}" if content["step"] else ""
    content["status"] = status
    content["faults"].append(f"{fault}{during}")
    content["errors"] = errors
    replace(path, content)
