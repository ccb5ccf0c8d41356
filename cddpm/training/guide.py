"""The guide: a DDPM without condition, trained beside a conditioned model, whose prediction is u in x0(s) = u + s (c - u).

It has the settings of the conditioned model but for the condition, and a checkpoint of its own, which any trial with the
same settings finds. In a model package its weights lie beside the model's, with ``guide.`` before their names.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cddpm.config import ExperimentConfig, with_values

PREFIX = "guide."

_WITHOUT_CONDITION: dict[str, Any] = {
    "model.conditioned": False,
    "pretraining.artifact": None,
    "model.conditioning": "vector",
    "diffusion.condition_dropout": 0.0,
    "reconstruction.guide": "none",
    "reconstruction.embedding_scale": 1.0,
    "scoring.guidance_scale": 1.0,
    "search.training.trials": 1,
    "search.training.space": {},
    "search.training.start": [],
    "search.scoring.space": {},
    "search.scoring.start": [],
    "search.preview_trials": 1,
}


def guide_config(config: ExperimentConfig) -> ExperimentConfig | None:
    """The experiment that trains the guide of ``config``; None if it asks for none (``reconstruction.guide: none``)."""
    if config.reconstruction.guide == "none":
        return None
    if config.reconstruction.guide == "ddpm":
        return with_values(config, _WITHOUT_CONDITION, "guide")
    raise ValueError(f"reconstruction.guide: {config.reconstruction.guide!r}; allowed are none and ddpm")


def packed(model: Mapping[str, Tensor], guide: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The weights of a model and its guide as one mapping."""
    return {**model, **{f"{PREFIX}{name}": tensor for name, tensor in (guide or {}).items()}}


def unpacked(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the model and those of its guide (empty without one)."""
    model = {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}
    return model, {name.removeprefix(PREFIX): weights[name] for name in weights.keys() - model.keys()}
