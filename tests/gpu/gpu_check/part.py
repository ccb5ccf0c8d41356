"""The process of one part. Exit codes: 0 passed, 1 failed, 3 the device is not there, 4 it could not be opened.

It comes from a fork server that has imported everything once and touched no device. Should that keep a device from being opened,
it is started afresh.
"""

import faulthandler
import importlib
import os
import sys
import time
from typing import Any

from gpu_check import nursery
from gpu_check.assignment import Assignment
from gpu_check.record import Record

PASSED, FAILED, NO_DEVICE, NOT_OPENED = 0, 1, 3, 4
PRELOADED = [
    *(f"gpu_check.{name}" for name in ("correct", "train", "reconstruct", "learn", "profile")),
    "cddpm.scoring.score",
    "torch._dynamo",  # which the first optimizer imports, for seconds
]


def main(given: str, errors: str) -> None:
    """Run the assignment ``given`` (JSON) in a process group of its own; stderr goes to the file ``errors``."""
    os.setpgid(0, 0)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    assignment = Assignment.from_json(given)
    faulthandler.enable()
    faulthandler.dump_traceback_later(assignment.seconds, exit=False)  # where it was, before it is ended
    with nursery.opened():
        code = run(assignment)
    sys.exit(code)


def run(assignment: Assignment) -> int:
    """Run the part and write its record; whatever goes wrong inside becomes a fault of it."""
    record = Record(assignment.out_folder, assignment.part)
    if assignment.plant == "hang":
        with record.step("a planted hang"):
            while True:
                time.sleep(1)
    device: Any = None
    with record.step("start"):
        from gpu_check import device as devices  # not before there is a record that can tell why it fails

        device = devices.opened(assignment.device, assignment.tiny)
        if device is None:
            record.fault(f"no {assignment.device} device is here; --device cpu --tiny rehearses on the CPU")
            return NO_DEVICE
        record.facts(**devices.facts(device), tiny=assignment.tiny)
    if device is None:
        record.finish()
        return NOT_OPENED
    with record.step("set up"):
        importlib.import_module(f"gpu_check.{assignment.part}").run(assignment, record, device)
    return PASSED if record.finish() else FAILED
