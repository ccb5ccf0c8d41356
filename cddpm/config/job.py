"""A job on SLURM."""

from typing import Annotated

from pydantic import Field

from cddpm.config.sections import Frozen, Name, Positive


class SlurmConfig(Frozen):
    """What a job on SLURM asks for and how it starts; read by ``launch/sweep.py --slurm`` alone. Empty: the site's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that nodes must have, as SLURM writes them: ``a100&nvlink``."""
    nodes: Positive = 1
    cpus_per_node: Positive | None = None
    """Empty: those that the workers of a node book (``compute.cpus_per_worker``)."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    gpu_type: Name | None = None
    """As SLURM names it, ``a100`` say."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Of each node, in GiB."""
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d{1,2}){0,2}$")] | None = None
    """Limit of one run, as SLURM writes it (in quotes): ``"24:00:00"``, ``2-12``. The job saves, ends and is queued again."""
    save_seconds: Annotated[int, Field(ge=60)] = 300
    """So long before the limit trainings are asked to save; what has not saved a minute before it is ended."""
    requeues: Annotated[int, Field(ge=0)] = 50
    """So often at most the job is queued again by itself: one that never saves in time would else come back for ever."""
    join_seconds: Positive = 600
    """So long the head waits for the other nodes, and they for the head."""
    interface: str | None = None
    """Network interface that all nodes share, ``ib0`` say; empty: the one by which SLURM reaches them."""
    extra: tuple[Annotated[str, Field(pattern=r"^-[^\n]*$")], ...] = ()
    """Further options of sbatch, a line each: ``--mail-type=FAIL``, ``--array=0-4``. Each element of an array is a sweep of
    its own: ``name`` has its number behind it, ``seed`` is increased by it."""
    before: str = ""
    """Shell commands that make the job's surroundings: ``module load cuda``."""
    srun: tuple[Annotated[str, Field(pattern=r"^-[^\n]*$")], ...] = ()
    """Further options of srun, ``--container-image=...`` say."""
    python: str | None = None
    """Python on the nodes; empty: the one that submits."""
