"""Importing the package changes nothing for the process that does it: no variable, no logger, no filter, no handler."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "cddpm").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])

PROBE = """
import gc, importlib, json, locale, logging, os, signal, sys, warnings

foreign, own = json.loads(sys.stdin.read())
for name in foreign:
    importlib.import_module(name)
import matplotlib, numpy, pandas, torch

def state():
    loggers = {name: log for name, log in logging.root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    return {
        "environment": dict(os.environ),
        "root logger": [logging.root.level, logging.root.disabled, [repr(one) for one in logging.root.handlers]],
        "logging": [logging.raiseExceptions, logging.root.manager.disable, repr(logging.getLoggerClass())],
        "loggers": {
            name: [log.level, log.propagate, [repr(one) for one in log.handlers]]
            for name, log in loggers.items() if log.level or log.handlers or not log.propagate
        },
        "warnings": [[repr(one) for one in warnings.filters], repr(warnings.showwarning)],
        "signals": {str(one): repr(signal.getsignal(one)) for one in signal.valid_signals()},
        "hooks": [repr(one) for one in (sys.excepthook, sys.displayhook, sys.unraisablehook, sys.stdout, sys.stderr)],
        "path": list(sys.path),
        "limits": [sys.getrecursionlimit(), gc.isenabled(), gc.get_threshold(), os.getcwd(), locale.setlocale(locale.LC_ALL)],
        "numpy": [numpy.geterr(), numpy.get_printoptions(), repr(numpy.random.get_state()[1][:4])],
        "torch": [
            torch.get_num_threads(), torch.get_num_interop_threads(), repr(torch.get_default_dtype()),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed(),
            torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), torch.multiprocessing.get_sharing_strategy(),
        ],
        "matplotlib": {key: repr(value) for key, value in dict.items(matplotlib.rcParams)},
    }

changed = {}
for name, modules in own.items():
    before = state()
    for module in modules:
        importlib.import_module(module)
    after = state()
    changed[name] = {part: [before[part], after[part]] for part in after if after[part] != before[part]}
json.dump(changed, sys.stdout, default=str)
"""


def dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


NOT_IMPORTED = {"cddpm.__main__", *([] if is_module("triton") else ["cddpm.models.fused", "cddpm.models.kernels"])}
"""The command line starts when it is imported; the kernels need what only PyTorch for GPUs brings."""
OWN = [name for name in map(dotted, FILES) if name not in NOT_IMPORTED]


def foreign() -> list[str]:
    """Modules of others that ours import, inside of functions too."""
    found: set[str] = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    others = {
        name for name in found if name.split(".")[0] not in ("cddpm", "launch", "speed", *sys.stdlib_module_names)
    }
    return sorted(name for name in others if is_module(name))


def changes(own: dict[str, list[str]], folder: Path) -> dict[str, Any]:
    """What the modules of each group change, once all that ours import of others is there: part -> before and after."""
    kept = ("MLFLOW_", "RAY_", "OMP_", "TUNE_", "MALLOC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(kept)}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"  # of MLflow itself
    environment.setdefault("NUMBA_CACHE_DIR", str(folder))  # as launch/ sets it: else its own cache would be named now
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "launch"), str(folder)])
    asked = json.dumps([foreign(), own])
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, input=asked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)  # everything that is installed is imported
def test_no_module_changes_the_process_that_imports_it(tmp_path: Path) -> None:
    (tmp_path / "rude.py").write_text(
        "import logging, os, warnings, torch\n"
        "os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')\n"
        "logging.getLogger('mlflow').setLevel(50)\n"
        "logging.basicConfig()\n"
        "warnings.filterwarnings('ignore', 'x')\n"
        "torch.set_num_threads(torch.get_num_threads() + 1)\n"
    )
    found = changes({"ours": OWN, "rude": ["rude"]}, tmp_path)
    assert set(found["rude"]) == {"environment", "loggers", "root logger", "warnings", "torch"}  # the probe sees it
    assert found["ours"] == {}
