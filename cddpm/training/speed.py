"""How long the network takes for a volume, where a search weighs that against what is found."""

import math
import time
from pathlib import Path

import torch

from cddpm.config import ExperimentConfig
from cddpm.data.store import SliceStore
from cddpm.reconstruct.predict import Networks, Request
from cddpm.training.stages import Place, load_model


def wanted(config: ExperimentConfig) -> bool:
    """Whether the search has an objective that needs it."""
    return any(aim.metric == "seconds_per_volume" for aim in config.search.aims)


def pass_seconds(config: ExperimentConfig, place: Place, path: Path, volume: int, device: torch.device) -> float:
    """Wall-clock seconds of one branch of ``volume`` at one noise level and seed with the checkpoint ``path``.

    The second of two predictions counts: the first one warms up. Copies that fill up the last batch do not count: next to
    other levels and volumes there are none. Raises ``ArtifactError`` for a damaged checkpoint.
    """
    store, (model, _) = SliceStore.open(place.store, verify=False), load_model(path, device)
    image, own = store.image(volume), config.reconstruction
    batch = min(own.batch_size, len(image))
    settings = own.model_copy(update={"batch_size": batch})
    networks = Networks(config.model_copy(update={"reconstruction": settings}), model, device=device)
    request = Request(store.volumes[volume].id, image, ((own.noise_levels[0], own.noise_seeds[0]),))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        list(networks.predict([request], unconditional=False))  # comes back as an array: all is done
        seconds = time.perf_counter() - start
    return seconds * len(image) / (math.ceil(len(image) / batch) * batch)
