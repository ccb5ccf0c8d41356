"""The steps of preparation, made from the configuration: each takes a head and gives one, and says what it found.

reorient -> align -> extract -> bias -> register -> resample -> strip -> crop

Up to ``resample`` no voxel is interpolated: ``reorient`` permutes and flips, ``bias`` multiplies, ``align`` and ``register``
change affines. ``resample`` goes from the scanner's voxels to the final ones at once, for images, mask and segmentation.
Inside of a step ITK has one thread, so that results are the same bytes on whatever machine.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import SimpleITK as sitk  # noqa: N813

from cddpm.artifact import file_digest
from cddpm.config.preparation import Extractor, PreparationConfig, StepName
from cddpm.data.raw import external, moves, voxels
from cddpm.data.raw.head import Figures, Head, Step
from cddpm.errors import DataError

Work = Callable[[Head], tuple[Head, Figures]]
VERSIONS: dict[StepName, int] = {
    "reorient": 1,
    "align": 1,
    "extract": 3,
    "bias": 1,
    "register": 1,
    "resample": 3,
    "strip": 1,
    "crop": 1,
}
"""Raised by whoever changes what a step does under unchanged parameters."""


def steps_of(config: PreparationConfig, head_has_mask: bool) -> tuple[Step, ...]:
    """The steps that a head takes which has a brain mask, or none.

    Raises ``DataError`` when a template or an extractor that ``config`` names is not there.
    """
    wanted = [name for name in config.steps if name != "register" or config.moves_to_template != "none"]
    return tuple(_step(name, config, head_has_mask) for name in wanted)


def extractor_of(config: PreparationConfig, head_has_mask: bool) -> tuple[Extractor, external.Program | None]:
    """What makes the brain mask: ``auto`` resolved, the program found. Raises ``DataError`` if it is not there."""
    match config.extractor:
        case "auto" if head_has_mask:
            return "given", None
        case "auto":
            found = external.on_path("hd-bet") or external.on_path("synthstrip")
            return (found.kind, found) if found else ("classical", None)
        case "hd-bet" | "synthstrip" as kind:
            return kind, external.program(kind, config.extractor_program)
        case chosen:
            return chosen, None


def _step(name: StepName, config: PreparationConfig, head_has_mask: bool) -> Step:
    parameters: Mapping[str, Any]
    work: Work
    match name:
        case "reorient":
            parameters = {"orientation": config.orientation}
            work = functools.partial(voxels.reorient, codes=config.orientation)
        case "align":
            parameters, work = {"kept_within_mm": moves.KEPT_MM}, moves.align
        case "extract":
            return _extract(config, head_has_mask)
        case "bias":
            parameters = {"voxel_mm": config.bias_voxel_mm, "iterations": list(config.bias_iterations)}
            work = functools.partial(
                voxels.correct_bias, voxel_mm=config.bias_voxel_mm, iterations=config.bias_iterations
            )
        case "register":
            rigid = config.moves_to_template == "rigid"
            parameters = {"registration": config.moves_to_template, **_template(config)}
            work = functools.partial(moves.register, template=_files(config), kind="rigid" if rigid else "affine")
        case "resample":
            registered = "register" in config.steps and config.moves_to_template != "none"
            parameters = {
                "voxel_size_mm": config.voxel_size_mm,
                "orientation": config.orientation,
                "lesion_change": config.lesion_change,
                "kept": _kept(config) if "crop" in config.steps else None,
                **(_template(config) if registered else {}),
            }
            work = functools.partial(voxels.resample, config=config, template=_files(config) if registered else None)
        case "strip":
            parameters = {"lesion_change": config.lesion_change}
            work = functools.partial(voxels.strip, most=config.lesion_change)
        case "crop":
            parameters = {**_kept(config), "lesion_change": config.lesion_change}
            work = functools.partial(voxels.crop, config=config)
        case _:
            raise AssertionError(name)
    return Step(name, VERSIONS[name], parameters, functools.partial(_alone, work))


def _extract(config: PreparationConfig, head_has_mask: bool) -> Step:
    extractor, found = extractor_of(config, head_has_mask)
    parameters: dict[str, Any] = {"extractor": extractor}
    if found is not None:
        parameters |= {"program": found.path.name, "program_version": found.version, "device": config.extractor_device}
    template = _files(config) if extractor == "classical" and config.template is not None else None
    if template is not None:
        parameters |= _template(config)
    work = functools.partial(
        voxels.extract, extractor=extractor, program=found, device=config.extractor_device, template=template
    )
    return Step("extract", VERSIONS["extract"], parameters, functools.partial(_alone, work))


def _kept(config: PreparationConfig) -> dict[str, Any]:
    """What around a brain ``crop`` keeps."""
    shape = None if config.crop_shape is None else list(config.crop_shape)
    return {"margin_mm": None if shape else config.crop_margin_mm, "shape": shape}


def _files(config: PreparationConfig) -> tuple[Path, Path | None]:
    """The template's files."""
    assert config.template is not None
    return config.template, config.template_mask


def _template(config: PreparationConfig) -> dict[str, str | None]:
    """What the template is, wherever its files lie. Raises ``DataError`` when one is not there."""
    template, mask = _files(config)
    return {"template_sha256": _digest(template), "template_mask_sha256": None if mask is None else _digest(mask)}


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(
            f"{path}: the template cannot be read ({error.strerror}); it is a file of yours (SRI24, MNI152), none is downloaded"
        ) from None


def _alone(work: Work, head: Head) -> tuple[Head, Figures]:
    """``work`` done with one thread of ITK."""
    with one_thread():
        return work(head)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """ITK's filters that are made in here have one thread each: sums come out the same whatever the machine."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
