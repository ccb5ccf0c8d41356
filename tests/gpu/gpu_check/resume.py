"""A training that is killed and resumed, and what a user reads when the device's memory is too small."""

import signal

import torch

from cddpm.config import with_values
from cddpm.models.cddpm import ConditionedDiffusion
from cddpm.training import checkpoint, worker
from cddpm.training.diffusion import LOSS
from cddpm.training.loop import Hooks
from gpu_check import device as devices
from gpu_check import experiments
from gpu_check.agreement import apart
from gpu_check.assignment import Assignment
from gpu_check.record import Record
from gpu_check.trainings import Training, together

STEPS, SAVED, KILLED = 4, 2, 3
"""Of a training: it saves after 2 and 4 steps, and is killed after 3, so that it makes one of its steps again."""
GPU_LIMIT = 1e-2
"""A GPU adds up in an order of its own each time; on a CPU the steps are the same bit for bit."""


def kill_and_resume(assignment: Assignment, record: Record, device: torch.device) -> None:
    """Weights and validation loss of a training that was killed on the way, against one that was not."""
    config = experiments.quickstart(assignment.tiny, "float32", STEPS)
    config = with_values(config, {"training.evaluations": STEPS // SAVED})
    store, batch_size = experiments.store_of(config, assignment), config.training.batch_size
    folder = assignment.scratch_folder / "killed"
    killed = Training(
        "killed", config, store, folder, assignment.device, torch.get_num_threads(), killed_after=KILLED * batch_size
    )
    ended = dict(together([killed], assignment)["killed"])
    state = checkpoint.newest_state(folder, "check")
    if ended["ended"] != -signal.SIGKILL or state is None or state.images != SAVED * batch_size:
        raise RuntimeError(f"a training that was to be killed: {ended}, state {state and state.images} images")
    first: list[int] = []
    weights, losses = [], []
    for place in (assignment.scratch_folder / "calm", folder):
        rows: list[dict[str, float]] = []
        bench, seen = experiments.diffusion_bench(config, store, device), list[int]()
        hooks = Hooks(report=rows.append, progress=lambda _, images, *rest, seen=seen: seen.append(images))
        made = bench.trainer(place).run(hooks)
        weights.append(torch.cat([made[name].double().cpu().flatten() for name in sorted(made)]))
        losses.append(torch.tensor(rows[-1][LOSS]))
        first.append(seen[0] // batch_size)
    if first != [1, SAVED + 1]:
        record.fault(f"the resumed training began with step {first[1]}; it had saved {SAVED} steps")
    limit = 0.0 if device.type == "cpu" else GPU_LIMIT
    record.compare("killed and resumed: weights", apart(weights[1], weights[0]), limit)
    record.compare("killed and resumed: validation loss", apart(losses[1], losses[0]), limit)


def out_of_memory(assignment: Assignment, record: Record, device: torch.device) -> None:
    """A batch of twice the device's memory: the error is known for what it is, and the device works on afterwards."""
    config = experiments.quickstart(assignment.tiny, "float32")
    model = ConditionedDiffusion(config.model, config.encoder, config.diffusion).to(device)
    slices = torch.rand(2, 1, *config.data.slice_shape, device=device)
    count = 2 * devices.total_bytes(device) // slices[0].nbytes
    if device.type == "cpu":
        count *= 2**16  # more than addresses there are: a system may promise memory that it does not have
    said = ""
    try:
        _pass(model, slices[:1].expand(count, -1, -1, -1))
    except (MemoryError, RuntimeError) as error:
        if not worker.out_of_memory(error):
            raise
        said = worker._too_large(error)
    if "lower training.batch_size" not in said:
        record.fault(f"a batch of {count} slices did not end as out of memory: {said or 'it went through'}")
    record.facts(out_of_memory=said[:300])
    devices.forget_peak(device)
    if not bool(_pass(model, slices).isfinite()):
        record.fault("after a lack of memory the loss of a small batch is not finite")


def _pass(model: ConditionedDiffusion, slices: torch.Tensor) -> torch.Tensor:
    t = torch.zeros(len(slices), dtype=torch.int64, device=slices.device) if len(slices) < 10**6 else None
    return model(slices, torch.zeros(1, dtype=torch.int64, device=slices.device) if t is None else t, slices)
