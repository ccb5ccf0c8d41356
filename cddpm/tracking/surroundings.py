"""Where a result came from: code and machine, as tags of its run."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from cddpm.tracking import names


def surroundings() -> dict[str, str]:
    """Versions, host, CPUs and the commit of the code, where they can be known."""
    found = {
        names.VERSION: version("cddpm"),
        "cddpm.host": platform.node(),
        "cddpm.cpus": str(os.cpu_count()),
        "cddpm.torch": version("torch"),
        "cddpm.ray": version("ray"),
    }
    commit = git_commit()
    return {**found, "cddpm.commit": commit} if commit else found


def git_commit() -> str | None:
    """Commit of the code, with ``+`` behind it if tracked files were changed since; None outside of a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
