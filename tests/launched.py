"""A script of ``launch/``: as its users run it, a process of its own whose output tests wait on; or inside of this process."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import psutil

ROOT = Path(__file__).resolve().parents[1]


def of_nobody() -> dict[str, str]:
    """This process's environment without the settings of the person at the desk."""
    return {k: v for k, v in os.environ.items() if k not in ("DATA_DIR", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")}


class Launched:
    """One start of a script; its output goes to a file in ``folder``."""

    def __init__(self, folder: Path, script: str, *arguments: str) -> None:
        self.folder = folder
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}.txt"
        self.process = subprocess.Popen(
            [sys.executable, f"launch/{script}", *arguments],
            cwd=ROOT,
            env={**of_nobody(), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Wait until ``text`` was printed."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"ended before '{text}':\n{self.output}"
            assert time.monotonic() < end, f"'{text}' not printed in {seconds} s:\n{self.output}"
            time.sleep(0.1)

    def finish(self, seconds: float = 400) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_tree()
            raise AssertionError(f"not finished in {seconds} s:\n{self.output}") from None

    def kill_tree(self) -> None:
        """SIGKILL to the driver and every process it started, Ray's included."""
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(tree, timeout=10)
        self.process.wait(10)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the driver's whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)


class Here:
    """One run of a script in this process, to its end: Python, packages and Ray (``shared_ray``) are there already."""

    def __init__(self, script: str, *arguments: str) -> None:
        text = io.StringIO()
        self.code: int | str = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(sys, "argv", [f"launch/{script}", *arguments]))
            stack.enter_context(mock.patch.dict(os.environ, {**of_nobody(), "COLUMNS": "200"}, clear=True))
            stack.enter_context(contextlib.chdir(ROOT))
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(contextlib.redirect_stdout(text))
            stack.enter_context(contextlib.redirect_stderr(text))
            try:
                runpy.run_path(f"launch/{script}", run_name="__main__")
            except SystemExit as end:
                self.code = end.code or 0
        self.output = text.getvalue()
