"""A sweep as a job on SLURM: what it asks for, its script, and its submission. What the script starts is ``step``."""

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from cddpm.config import ExperimentConfig, SlurmConfig, to_dict
from cddpm.errors import ConfigError, SearchError, StorageError

CONFIG, SCRIPT = "config.yaml", "job.sh"


@dataclass(frozen=True)
class Job:
    """The files of a job; ``log`` as SLURM names it, with ``%j`` for the job's number."""

    folder: Path
    log: Path

    @property
    def script(self) -> Path:
        """What sbatch takes."""
        return self.folder / SCRIPT

    @property
    def config(self) -> Path:
        """The resolved configuration, which alone the job reads."""
        return self.folder / CONFIG


def write(config: ExperimentConfig, launch: Path, force: bool = False) -> Job:
    """Write configuration and script below ``output_dir``; ``launch`` holds ``sweep.py``, ``force`` is passed on to it.

    Raises ``ConfigError`` that lists what of the job cannot hold the trainings, ``StorageError`` where it cannot be written.
    """
    found = list(faults(config))
    if found:
        raise ConfigError("\n".join(found))
    folder = config.output_dir / "slurm" / config.name
    job = Job(folder, folder / ("%A_%a.log" if _is_array(config.slurm) else "%j.log"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        job.config.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
        job.script.write_text(script(config, job, launch, force))
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror}); choose another --output-dir") from error
    job.script.chmod(0o755)
    return job


def command(job: Job) -> list[str]:
    """What submits it; its script is the last word."""
    return ["sbatch", str(job.script)]


def submit(job: Job, only_test: bool = False) -> str:
    """Submit it, or have SLURM only look whether it would take it; returns what sbatch says. Raises ``SearchError``."""
    sbatch, *arguments = command(job)
    if not installed():
        raise SearchError("sbatch: not found on this machine; submit from a login node of the cluster")
    # of a job that this was called from, nothing shall be inherited but what a person set
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}
    asked = [sbatch, *(["--test-only"] if only_test else ["--parsable"]), *arguments]
    done = subprocess.run(asked, env=own, capture_output=True, text=True, check=False)
    said = (done.stderr if only_test or done.returncode else done.stdout).strip()
    if done.returncode:
        raise SearchError(f"sbatch: {' '.join(said.split()) or 'failed'}; see the slurm section of {job.config}")
    return said.removeprefix("sbatch: ").split(";")[0]


def installed() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("sbatch") is not None


def faults(config: ExperimentConfig) -> Iterator[str]:
    """What of the job cannot hold the trainings, or would be paid for in vain; each with its setting."""
    slurm, compute = config.slurm, config.compute
    if compute.device == "cuda" and not slurm.gpus_per_node:
        yield "slurm.gpus_per_node: 0, but compute.device is 'cuda'; ask for GPUs, or let trainings run on a CPU"
    if compute.device == "cpu" and slurm.gpus_per_node:
        yield f"slurm.gpus_per_node: {slurm.gpus_per_node} would be ignored; compute.device is 'cpu'"
    if slurm.gpu_type and not slurm.gpus_per_node:
        yield f"slurm.gpu_type: '{slurm.gpu_type}' would be ignored; slurm.gpus_per_node is 0"
    booked = {"cpus": (cpus_per_node(config), compute.cpus_per_worker)}
    if slurm.gpus_per_node and compute.device != "cpu":
        booked["gpus"] = (slurm.gpus_per_node, compute.gpus_per_worker)
    for name, (there, each) in booked.items():
        fit = slurm.nodes * math.floor(there / each + 1e-9)
        if fit < compute.workers:
            yield (
                f"slurm.{name}_per_node: {there} on {slurm.nodes} node(s) hold {fit} worker(s) of {each:g}; one training needs "
                f"{compute.workers}: more slurm.{name}_per_node or slurm.nodes, or lower compute.workers or "
                f"compute.{name}_per_worker"
            )
    limit = seconds(slurm.time) if slurm.time else None
    if limit is not None and limit <= slurm.save_seconds:
        yield (
            f"slurm.save_seconds: {slurm.save_seconds} of a limit of {limit} s (slurm.time: {slurm.time}) leave nothing to "
            "compute in; allowed is less than the limit"
        )


def cpus_per_node(config: ExperimentConfig) -> int:
    """As set; else what the workers of a node book: as many as its GPUs hold, or its share of one training's."""
    slurm, compute = config.slurm, config.compute
    if slurm.cpus_per_node:
        return slurm.cpus_per_node
    workers = math.ceil(compute.workers / slurm.nodes)
    if slurm.gpus_per_node and compute.device != "cpu":
        workers = max(workers, math.floor(slurm.gpus_per_node / compute.gpus_per_worker))
    return math.ceil(workers * compute.cpus_per_worker)


def seconds(limit: str) -> int:
    """A time limit as SLURM reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86_400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def script(config: ExperimentConfig, job: Job, launch: Path, force: bool = False) -> str:
    """The text of the job's script."""
    slurm = config.slurm
    python = slurm.python or sys.executable
    step = [python, str(launch / "ray_on_slurm.py"), "--meeting", str(job.folder)]
    step += ["--join-seconds", str(slurm.join_seconds), "--save-seconds", str(slurm.save_seconds)]
    step += ["--interface", slurm.interface] if slurm.interface else []
    sweep = [
        python,
        str(launch / "sweep.py"),
        "--config",
        str(job.config),
        "--requeued",
        *(["--force"] if force else []),
    ]
    environment = Environment(
        loader=PackageLoader("cddpm.cluster", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("slurm.sh.j2").render(
        options=list(options(config, job)),
        before=slurm.before.strip(),
        name=config.name,
        seed=config.seed,
        save_seconds=slurm.save_seconds,
        requeues=slurm.requeues,
        srun=slurm.srun,
        step=shlex.join([*step, "--"]),
        sweep=shlex.join(sweep),
        folder=str(job.folder),
    )


def options(config: ExperimentConfig, job: Job) -> Iterator[str]:
    """Every option of sbatch that the script holds."""
    slurm = config.slurm
    gpus = f"{slurm.gpu_type}:{slurm.gpus_per_node}" if slurm.gpu_type else str(slurm.gpus_per_node)
    asked = {
        "job-name": config.name,
        "output": str(job.log),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": str(slurm.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cpus_per_node(config)),
        "gpus-per-node": gpus if slurm.gpus_per_node else None,
        "mem": f"{math.ceil(slurm.memory_gb * 1024)}M" if slurm.memory_gb else None,
        "time": slurm.time,
        "signal": f"B:USR1@{slurm.save_seconds}",
        "open-mode": "append",
    }
    yield from (f"--{name}={_quoted(value)}" for name, value in asked.items() if value is not None)
    yield "--requeue"
    yield from slurm.extra


def _quoted(value: str) -> str:
    """As sbatch reads its lines: quotes around what holds a space, a mark or ``#``."""
    plain = re.fullmatch(r"[\w.,:;/@%&|*\[\]()+=-]+", value)
    return value if plain else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _is_array(slurm: SlurmConfig) -> bool:
    return any(option.startswith(("--array", "-a")) for option in slurm.extra)
