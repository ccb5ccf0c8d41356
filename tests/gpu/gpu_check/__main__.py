"""The command line of the check; see ``tests/gpu/README.md``. Exit codes: 0 passed, 1 not all, 2 it cannot run so."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from gpu_check import requirements, table
from gpu_check.assignment import PARTS, PLANTS
from gpu_check.run import NoDevice, Options, contents, run_parts

MOST_MINUTES = 24 * 60


def main(arguments: list[str]) -> int:
    """Run the parts, print the table."""
    given = parser().parse_args(arguments)
    if given.requirements:
        print("\n".join(requirements.lines()))
        return 0
    if given.baseline is not None and not contents(given.baseline, PARTS):
        print(f"error: --baseline {given.baseline}: holds no record of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    parts = tuple(part for part in PARTS if part in given.only) if given.only else PARTS
    out = Path(os.environ.get("OUT") or "outputs/gpu").absolute()
    former = contents(given.baseline, parts) if given.baseline is not None else []  # it may be the folder written to
    options = Options(given.device, given.tiny, parts, given.minutes, out, given.plant)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if not given.show:
            run_parts(options)
    except NoDevice:
        print(f"error: no {given.device} device is here; --device cpu --tiny rehearses on the CPU", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cut off; this is what there is", file=sys.stderr)
    found = contents(out, parts)
    print("\n" + "\n".join(table.lines(found)))
    if given.baseline is not None:
        print("\n".join(table.moves(found, former)))
    print(f"\nrecords in {out}", flush=True)
    return 0 if table.passed(found, parts) else 1


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="check.sh", description="Checks and measures on a GPU what a GPU must show. See tests/gpu/README.md."
    )
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--tiny", action="store_true", help="tiny networks and few steps: a rehearsal, also on a CPU")
    made.add_argument("--only", action="append", choices=PARTS, help="this part alone; may be given several times")
    made.add_argument("--minutes", type=_minutes, default=8.0, help="for all parts together (8)")
    made.add_argument("--baseline", type=_folder, metavar="FOLDER", help="records of a former run: tell what moved")
    made.add_argument("--show", action="store_true", help="run nothing, print the table of the records that are there")
    made.add_argument("--requirements", action="store_true", help="packages that it needs, and which are missing here")
    made.add_argument("--plant", choices=PLANTS, help="plant a fault, to see that it is named: for testing the check")
    return made


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed is a number above 0 and up to {MOST_MINUTES}")
    return minutes


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
