"""Part 2: whether the device computes what the package promises: networks, data, reconstruction, scoring, resuming."""

from importlib.util import find_spec

import torch

from cddpm.data.store import SliceStore
from gpu_check import cohort, images, networks, resume
from gpu_check import device as devices
from gpu_check.assignment import Assignment
from gpu_check.record import Record


def run(assignment: Assignment, record: Record, device: torch.device) -> None:
    """Every comparison by itself: one that fails leaves the others alone."""
    scale = networks.Scale.of(assignment.tiny)
    # MONAI, which ssim-l1 needs, takes seconds to import
    losses = ["l1", "l2", *(["ssim-l1"] if not assignment.tiny and find_spec("monai") else [])]
    record.facts(edge=scale.edge, slices=scale.batch, losses=losses)
    with devices.tf32(False):  # but where it is what is looked at
        compare(scale, losses, assignment, record, device)
    with record.step("kill and resume"):
        resume.kill_and_resume(assignment, record, device)
    with record.step("out of memory"):
        resume.out_of_memory(assignment, record, device)


def compare(
    scale: networks.Scale, losses: list[str], assignment: Assignment, record: Record, device: torch.device
) -> None:
    """The device's numbers with those of float64 or of a plain way."""
    networks.unets(scale, record, device, assignment.plant == "broken-gradient")
    networks.encoder(scale, record, device)
    networks.spark(scale, record, device)
    networks.diffusion(scale, losses, record, device)
    with record.step("noise fields"):
        images.noise_fields(scale.edge, record)
    with record.step("augmentation"):
        images.augmentation(scale, record, device)
    size = cohort.TINY if assignment.tiny else cohort.FULL
    store = SliceStore.open(cohort.made(size, assignment.scratch_folder), verify=False)
    piece = images.Piece.of(store, cohort.UNHEALTHY, scale.batch)
    with record.step("reconstruction"):
        images.reconstruction(scale, piece, record, device)
    with record.step("post-processing"):
        images.post_processing(piece, record)
