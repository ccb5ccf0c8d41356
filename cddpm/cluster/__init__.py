"""Ray, as thin as it can be: connect, spread plain functions over tasks, and watch what trainings do."""

from cddpm.cluster.board import Board
from cddpm.cluster.claims import claimed
from cddpm.cluster.doctor import refuse_unfit
from cddpm.cluster.door import check_answers, elsewhere
from cddpm.cluster.internals import janitor
from cddpm.cluster.network import torch_config
from cddpm.cluster.roster import Roster
from cddpm.cluster.session import HEAD, WORKER_ENVIRONMENT, capacity, connect, connected, kill
from cddpm.cluster.tasks import (
    ActorPool,
    bounded_map,
    check_seen,
    check_shared,
    drive,
    on_each_node,
    over_scans,
    parallel_map,
)

__all__ = [
    "HEAD",
    "WORKER_ENVIRONMENT",
    "ActorPool",
    "Board",
    "Roster",
    "bounded_map",
    "capacity",
    "check_answers",
    "check_seen",
    "check_shared",
    "claimed",
    "connect",
    "connected",
    "drive",
    "elsewhere",
    "janitor",
    "kill",
    "on_each_node",
    "over_scans",
    "parallel_map",
    "refuse_unfit",
    "torch_config",
]
