"""Faults between settings: each fits by itself, together they cannot be."""

import functools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from cddpm.config.scans import SEARCHED
from cddpm.config.search_faults import condition_faults, sampler_faults, searched_at_start, warm_start_faults
from cddpm.config.sections import SSIM_WINDOW
from cddpm.config.settings import Settings, annotation_at, field_paths, shown, value_at
from cddpm.config.space import Choice, Float, Integer, LevelConfig, Parameter, asked
from cddpm.text.likeness import did_you_mean

_SEARCHED = tuple(f"data.{name}" for name in SEARCHED)


def faults(config: Settings) -> Iterator[str]:
    """Every combination that cannot be, with dotted path, value and what is allowed."""
    yield from _shape_faults(config)
    yield from _pretraining_faults(config)
    yield from _artifact_faults(config)
    yield from _noise_faults(config)
    yield from _mahalanobis_faults(config)
    yield from _guidance_faults(config)
    yield from _method_faults(config)
    yield from _batch_faults(config)
    yield from _search_faults(config)


@functools.cache
def _fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field_paths(model))


@functools.cache  # an adapter takes a millisecond to make
def _setting(root: type[BaseModel], path: str) -> TypeAdapter[Any]:
    return TypeAdapter(annotation_at(root, path))


def _shape_faults(config: Settings) -> Iterator[str]:
    height, width = config.data.slice_shape
    unet = 2 ** (len(config.model.width_multipliers) - 1)
    factor = config.encoder.downsampling if config.model.conditioned else unet
    if height != width or height % unet or height % factor:
        yield (
            f"data.volume_shape: slices of {height}x{width} pixels after rescaling; allowed are square slices with a "
            f"multiple of {max(unet, factor)} pixels (data.rescale_factor, data.rescale_grid, model.width_multipliers and "
            "encoder.max_pool decide)"
        )
    model = config.model
    channels = model.base_width * model.width_multipliers[-1]
    if channels % model.attention_head_width:
        yield (
            f"model.attention_head_width: {model.attention_head_width}; allowed are divisors of the {channels} channels "
            "of the last level (model.base_width times the last of model.width_multipliers)"
        )


def _pretraining_faults(config: Settings) -> Iterator[str]:
    if not (config.pretraining.enabled and config.model.conditioned):
        return
    factor, ratio, width = config.encoder.downsampling, config.pretraining.mask_ratio, config.pretraining.decoder_width
    if width % factor:
        yield f"pretraining.decoder_width: {width}: allowed is a multiple of {factor} (the encoder's downsampling)"
    height, columns = config.data.slice_shape
    patches = (height // factor) * (columns // factor)
    visible = round(patches * (1 - ratio))
    if not 0 < visible < patches:
        yield (
            f"pretraining.mask_ratio: {ratio} leaves {visible} of {patches} patches visible; at least one must be "
            "visible and one hidden (data.volume_shape, data.rescale_factor and encoder.max_pool decide how many there are)"
        )


def _artifact_faults(config: Settings) -> Iterator[str]:
    encoder, model = config.pretraining.artifact, config.training.artifact
    if encoder and not (config.pretraining.enabled and config.model.conditioned):
        yield (
            f"pretraining.artifact: '{encoder}' would be ignored; only a model with condition (model.conditioned) whose "
            "encoder is pretrained (pretraining.enabled) uses it"
        )
    if encoder and model:
        yield f"pretraining.artifact: '{encoder}' would be ignored: training.artifact already holds an encoder"
    if model and config.reconstruction.guide == "ddpm":
        yield (
            "training.artifact: a finished model stands alone; reconstruction.guide 'ddpm' needs a second one trained with it"
        )
    if model and config.search.training.trials > 1:
        yield f"search.training.trials: {config.search.training.trials} trials of the one training.artifact are all the same"


def _noise_faults(config: Settings) -> Iterator[str]:
    levels, last = config.reconstruction.noise_levels, config.diffusion.timesteps
    for level in levels:
        if level > last:
            yield f"reconstruction.noise_levels: {level}: allowed is 1 to {last} (diffusion.timesteps)"
    for level in config.scoring.noise_levels or ():
        if level not in levels:
            yield f"scoring.noise_levels: {level} is not reconstructed; allowed are {list(levels)} (reconstruction.noise_levels)"


def _mahalanobis_faults(config: Settings) -> Iterator[str]:
    levels, seeds = config.scoring.noise_levels or config.reconstruction.noise_levels, config.reconstruction.noise_seeds
    few = len(set(levels)) * len(set(seeds)) < 2
    if few and config.scoring.residual == "mahalanobis":
        yield (
            f"scoring.residual: 'mahalanobis' needs two reconstructions or more; there is one noise level {list(levels)} and "
            f"one noise seed {list(seeds)}: add to reconstruction.noise_levels or reconstruction.noise_seeds"
        )


def _guidance_faults(config: Settings) -> Iterator[str]:
    dropout, conditioned = config.diffusion.condition_dropout, config.model.conditioned
    if not conditioned and dropout:
        yield f"diffusion.condition_dropout: {dropout}: a model without condition (model.conditioned: false) has nothing to drop"
    if not conditioned and config.reconstruction.guide == "ddpm":
        yield "reconstruction.guide: 'ddpm' needs a model with condition (model.conditioned: true) to guide"
    if not conditioned and config.reconstruction.embedding_scale != 1:
        yield (
            f"reconstruction.embedding_scale: {config.reconstruction.embedding_scale}: a model without condition "
            "(model.conditioned: false) has nothing to scale"
        )
    if config.scoring.guidance_scale != 1 and not dropout and config.reconstruction.guide == "none":
        yield (
            f"scoring.guidance_scale: {config.scoring.guidance_scale} needs a model trained with "
            "diffusion.condition_dropout > 0, or reconstruction.guide: ddpm; without them only 1 is allowed"
        )


def _method_faults(config: Settings) -> Iterator[str]:
    diffusion, patch = config.diffusion, config.diffusion.patch
    if diffusion.loss == "ssim-l1" and diffusion.objective != "x0":
        yield "diffusion.loss: 'ssim-l1' compares pictures; with diffusion.objective 'eps' only l1 and l2 are allowed"
    edge = patch.size if patch.enabled else min(config.data.slice_shape)
    if diffusion.loss == "ssim-l1" and edge < SSIM_WINDOW:
        yield (
            f"diffusion.loss: 'ssim-l1' compares windows of {SSIM_WINDOW} pixels; slices (or boxes: diffusion.patch.size) "
            f"of {edge} are too small: allowed are l1 and l2"
        )
    if config.model.conditioning == "cross-attention" and not config.model.conditioned:
        yield "model.conditioning: 'cross-attention' needs a model with condition (model.conditioned: true)"
    if patch.enabled and patch.size > min(config.data.slice_shape):
        yield f"diffusion.patch.size: {patch.size}: allowed is up to {min(config.data.slice_shape)}, the slice's edge"
    if patch.enabled and patch.overlap >= patch.size:
        yield f"diffusion.patch.overlap: {patch.overlap}: allowed is less than diffusion.patch.size ({patch.size})"


def _batch_faults(config: Settings) -> Iterator[str]:
    workers = config.compute.workers
    for section, batch in (("pretraining", config.pretraining.batch_size), ("training", config.training.batch_size)):
        if batch % workers:
            yield f"{section}.batch_size: {batch} is not divisible by compute.workers ({workers})"
    if config.pretraining.images < config.pretraining.batch_size:
        yield f"pretraining.images: {config.pretraining.images} is less than one batch ({config.pretraining.batch_size})"
    if config.training.images < config.training.batch_size:
        yield f"training.images: {config.training.images} is less than one batch ({config.training.batch_size})"


def _search_faults(config: Settings) -> Iterator[str]:
    for dataset in config.search.datasets:
        if dataset not in config.data.unhealthy:
            yield f"search.datasets: '{dataset}' is not among data.unhealthy ({', '.join(config.data.unhealthy)})"
    for level in ("training", "scoring"):
        yield from _level_faults(config, level)
    yield from warm_start_faults(config)
    yield from _preparation_faults(config)
    if config.search.training.trials > 1 and not config.search.training.space:
        yield (
            f"search.training.trials: {config.search.training.trials} trainings of an empty space would all be the same; "
            "name settings in search.training.space, or ask for 1"
        )
    yield from _start_faults(config)
    yield from _combination_faults(config)
    if "scoring.guidance_scale" in config.search.scoring.space and not _may_drop_condition(config):
        yield (
            "search.scoring.space: 'scoring.guidance_scale' is searched, but diffusion.condition_dropout is 0 in every trial"
        )


def _level_faults(config: Settings, level: str) -> Iterator[str]:
    section: LevelConfig = getattr(config.search, level)
    for path, parameter in section.space.items():
        yield from _parameter_faults(type(config), level, path)
        yield from _value_faults(type(config), f"search.{level}.space.{path}", path, _values(parameter))
    refused = functools.partial(_value_faults, type(config))
    yield from condition_faults(config, level, _fields(type(config)), refused)
    yield from sampler_faults(config, level)
    for point in section.start:
        for path in point:
            if path not in section.space:
                yield f"search.{level}.start: '{path}' is not in search.{level}.space"
            yield from _value_faults(type(config), f"search.{level}.start.{path}", path, [point[path]])


def _start_faults(config: Settings) -> Iterator[str]:
    """The first trial is the configuration as it is, so its own values must lie in the space."""
    fields = _fields(type(config))
    for path in searched_at_start(config, fields):
        value = value_at(config, path)
        if not _contains(config.search.training.space[path], value):
            yield f"search.training.space.{path}: {value!r}, the setting itself, is not in it; the first trial tries that"


def _contains(parameter: Float | Integer | Choice, value: Any) -> bool:
    if isinstance(parameter, Choice):
        return any(_listed(choice) == _listed(value) for choice in parameter.choice)
    if value is None or isinstance(value, str | tuple):
        return False
    low, high = parameter.float if isinstance(parameter, Float) else parameter.int
    return bool(low <= value <= high)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _combination_faults(config: Settings) -> Iterator[str]:
    """Values of the space that fit their own setting, but not the rest of the configuration."""
    training, scoring = config.search.training.space, config.search.scoring.space
    for path in ("training.batch_size", "pretraining.batch_size"):
        for batch in _values(training[path]) if path in training else ():
            if isinstance(batch, int) and batch % config.compute.workers:
                yield f"search.training.space.{path}: {batch} is not divisible by compute.workers ({config.compute.workers})"
    for path in ("training.precision", "reconstruction.precision"):
        if path in training and "auto" in _values(training[path]):
            yield (
                f"search.training.space.{path}: 'auto' is one of the others, whichever the hardware computes; name float32 "
                "and bfloat16"
            )
    if "scoring.noise_levels" in scoring and "reconstruction.noise_levels" not in training:
        made = config.reconstruction.noise_levels
        chosen = [levels for levels in _values(scoring["scoring.noise_levels"]) if isinstance(levels, list | tuple)]
        for level in sorted({level for levels in chosen for level in levels} - set(made), key=str):
            yield (
                f"search.scoring.space.scoring.noise_levels: {level} is not reconstructed; allowed are {list(made)} "
                "(reconstruction.noise_levels)"
            )


def _values(parameter: Parameter) -> list[Any]:
    """The choices, or both ends of a range and, of a whole range, its second value."""
    if isinstance(parameter, Choice):
        return list(parameter.choice)
    if isinstance(parameter, Float):
        return list(parameter.float)
    low, high = parameter.int
    return [low, min(low + parameter.step, high), high]


def _value_faults(root: type[BaseModel], where: str, path: str, values: list[Any]) -> Iterator[str]:
    """Searched values that the setting at ``path`` itself would refuse."""
    if path not in _fields(root):
        return
    setting = _setting(root, path)
    for value in values:
        try:
            setting.validate_python(value)
        except ValidationError as error:
            yield f"{where}: {error.errors(include_url=False)[0]['msg']} (found {shown(value)})"


def _preparation_faults(config: Settings) -> Iterator[str]:
    """Every way to prepare that is searched has a slice store, made before the first trial."""
    for path, parameter in config.search.training.space.items():
        where = f"search.training.space.{path}"
        if path in _SEARCHED and not isinstance(parameter, Choice):
            yield f"{where}: each value costs a slice store; list them as a choice"
        others = sorted({other for other, _ in asked(parameter.only_if)} - {*_SEARCHED}) if path in _SEARCHED else []
        if others:
            yield f"{where}.if: '{others[0]}': a slice store depends on data settings alone; allowed are {', '.join(_SEARCHED)}"


def _may_drop_condition(config: Settings) -> bool:
    return (
        config.diffusion.condition_dropout > 0
        or "diffusion.condition_dropout" in config.search.training.space
        or config.reconstruction.guide == "ddpm"
    )


def _parameter_faults(root: type[BaseModel], level: str, path: str) -> Iterator[str]:
    where = f"search.{level}.space"
    if path not in _fields(root):
        yield f"{where}: '{path}' is no setting{did_you_mean(path, _fields(root))}"
    elif level == "scoring" and not path.startswith("scoring."):
        yield f"{where}: '{path}': allowed here are scoring.* settings; others belong to search.training.space"
    elif level == "training" and path in _SEARCHED:
        return
    elif level == "training" and path.split(".")[0] in (
        "scoring",
        "search",
        "tracking",
        "output_dir",
        "storage",
        "name",
        "data",
        "compute",
        "slurm",
    ):
        yield (
            f"{where}: '{path}': allowed here are encoder, model, diffusion, pretraining, training and reconstruction settings, "
            f"and {', '.join(_SEARCHED)}"
        )
