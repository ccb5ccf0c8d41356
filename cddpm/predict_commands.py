"""``cddpm predict``: anomaly maps of scans, from a model package or a registered model."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from cddpm.data.volume import Volume
    from cddpm.predict.predictor import Prediction, Predictor
    from cddpm.tracking.package import Package

ANOMALY_MAP, RECONSTRUCTION, SEGMENTATION = "anomaly_map.nii.gz", "reconstruction.nii.gz", "segmentation.nii.gz"
PICTURE, RESULT = "overview.png", "result.json"


@dataclass(frozen=True)
class _Model:
    """A package and where it was found."""

    package: "Package"
    found: dict[str, Any]


def predict(
    scans: Annotated[
        list[Path], typer.Argument(metavar="SCAN...", help="Skull-stripped NIfTI files.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Results go to OUT/<name of the scan>.", show_default=False)],
    masks: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask", help="Brain mask; once per scan, in their order. Without it one is estimated.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", help="Version number, alias, run id or <sweep>/<trial>; or a folder with a package."),
    ] = "champion",
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow server or database; without it sqlite:///outputs/mlflow.db here.",
            show_default=False,
        ),
    ] = None,
    registered_model: Annotated[str, typer.Option(help="Name of the registered model.")] = "cddpm",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the network runs.")] = "auto",
    dataset: Annotated[str, typer.Option(help="Data set whose threshold is used.")] = "all",
    volume_ids: Annotated[
        list[str] | None,
        typer.Option(
            "--volume-id", help="Seeds the noise; once per scan. Without it the scan's name.", show_default=False
        ),
    ] = None,
) -> None:
    """Find anomalies in scans: anomaly map, reconstruction and segmentation in each scan's own grid, a picture, scores.

    A scan that cannot be used is reported and the others go on; the exit code is then 1.
    """
    _one_per_scan("--mask", scans, masks)
    _one_per_scan("--volume-id", scans, volume_ids)
    folders = _folders(scans, out)
    chosen = _find_model(model, tracking_uri, registered_model)
    predictor = _predictor(chosen.package, device, dataset)
    failed = 0
    for number, (scan, folder) in enumerate(zip(scans, folders, strict=True)):
        mask = masks[number] if masks else None
        key = volume_ids[number] if volume_ids else None
        failed += not _predict_one(predictor, chosen, scan, mask, key, dataset, folder)
    if failed:
        _stderr().print(f"{failed} of {len(scans)} scans failed")
        raise typer.Exit(1)


def _one_per_scan(option: str, scans: Sequence[Path], values: Sequence[Any] | None) -> None:
    if values and len(values) != len(scans):
        raise typer.BadParameter(
            f"{len(values)} given for {len(scans)} scans; give it once per scan, or never", None, None, option
        )


def _folders(scans: Sequence[Path], out: Path) -> list[Path]:
    from cddpm.errors import DataError
    from cddpm.predict.predictor import stem

    names = [stem(scan) for scan in scans]
    for first, second in ((names.index(n), i) for i, n in enumerate(names)):
        if first != second:
            raise DataError(
                f"{scans[first]} and {scans[second]}: both would go to {out / names[first]}; run them apart, with another --out"
            )
    return [out / name for name in names]


def _find_model(ref: str, uri: str | None, registered: str) -> _Model:
    from cddpm.errors import ArtifactError
    from cddpm.tracking.package import read_package

    path = Path(ref)
    if path.is_dir():
        package = read_package(path)
        return _Model(package, {"package": str(path.resolve())})
    if path.is_file() or path.is_absolute() or ref.startswith("."):
        raise ArtifactError(f"{ref}: no folder with a model package; give one, or a reference to a registered model")
    return _from_registry(ref, uri, registered)


def _from_registry(ref: str, uri: str | None, registered: str) -> _Model:
    from cddpm.tracking.address import default_uri
    from cddpm.tracking.package import read_package
    from cddpm.tracking.registry import Registry

    registry = Registry.open(uri or default_uri(Path("outputs")), registered)
    version = registry.find(ref)
    with tempfile.TemporaryDirectory(prefix="cddpm-") as folder:
        package = read_package(registry.pull(str(version.number), Path(folder) / "package"))
    found = {"reference": ref, "registered_model": registered, "version": version.number, "tracking_uri": registry.uri}
    return _Model(package, found)


def _predictor(package: "Package", device: str, dataset: str) -> "Predictor":
    import torch

    from cddpm.errors import ConfigError
    from cddpm.predict.predictor import Predictor, threshold_of

    threshold_of(package, dataset)
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here; allowed are auto and cpu")
    return Predictor(package, "cuda" if there and device != "cpu" else "cpu")


def _predict_one(
    predictor: "Predictor", model: _Model, scan: Path, mask: Path | None, key: str | None, dataset: str, folder: Path
) -> bool:
    """Whether the scan could be used; if not, that is told."""
    from cddpm.data.volume import read_image, read_mask
    from cddpm.errors import CddpmError, StorageError

    try:
        image = read_image(scan)
        prediction = predictor.predict_scan(image, read_mask(mask) if mask else None, key, dataset)
    except StorageError:
        raise  # a full disk concerns all scans
    except CddpmError as error:
        _stderr().print(f"[bold red]error[/] {escape(str(error))}")
        return False
    for warning in prediction.warnings:
        _stderr().print(f"[yellow]warning[/] {escape(f'{scan}: {warning}')}")
    about = {"scan": str(scan.resolve()), "mask": str(mask.resolve()) if mask else "estimated", "dataset": dataset}
    _write(folder, image, prediction, {**about, **_provenance(predictor, model)})
    Console(soft_wrap=True, highlight=False).print(escape(_summary(scan, prediction, folder)))
    return True


def _summary(scan: Path, prediction: "Prediction", folder: Path) -> str:
    scores = prediction.scores
    places = "1 place" if scores["components"] == 1 else f"{scores['components']:.0f} places"
    found = f"{scores['segmented_ml']:.1f} ml in {places} above {prediction.threshold:.4g}"
    return f"{scan.name}: {found} -> {folder}"


def _provenance(predictor: "Predictor", model: _Model) -> dict[str, Any]:
    from importlib.metadata import version

    from cddpm.predict.predictor import settings

    package = predictor.package
    return {
        "model": {
            **model.found,
            "fingerprint": package.fingerprint,
            "made_from": package.pipeline.fingerprints,
            "sweep": package.pipeline.sweep,
            "trial": package.pipeline.trial,
            "validation": package.pipeline.validation,
        },
        "settings": settings(package),
        "device": str(predictor.device),
        "versions": {name: version(name) for name in ("cddpm", "torch")},
    }


def _write(folder: Path, image: "Volume", prediction: "Prediction", about: dict[str, Any]) -> None:
    """Replace the results of a scan, file by file, each whole; ``result.json`` is there only beside files of its own."""
    from cddpm import artifact
    from cddpm.data.volume import write_volume

    with artifact.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
    for name, array in (
        (ANOMALY_MAP, prediction.anomaly_map),
        (RECONSTRUCTION, prediction.reconstruction),
        (SEGMENTATION, prediction.segmentation),
    ):
        write_volume(folder / name, array, image.affine, header=image.header)
    _draw(folder / PICTURE, prediction)
    artifact.write_json(folder / RESULT, {**_result(image, prediction), **about})


def _result(image: "Volume", prediction: "Prediction") -> dict[str, Any]:
    from cddpm.predict.predictor import INTENSITIES

    low, high = prediction.intensities
    geometry = prediction.working.geometry
    return {
        "volume_id": prediction.volume_key,
        "threshold": prediction.threshold,
        "scores": prediction.scores,
        "warnings": list(prediction.warnings),
        "intensities": {"reconstruction": INTENSITIES, "at_0": low, "at_1": high},
        "grid": {
            "shape": list(geometry.shape),
            "voxel_size_mm": list(image.voxel_size_mm),
            "orientation": geometry.orientation,
            "affine": image.affine.tolist(),
        },
        "working_grid": geometry.to_dict(),
        "files": [ANOMALY_MAP, RECONSTRUCTION, SEGMENTATION, PICTURE],
    }


def _draw(path: Path, prediction: "Prediction") -> None:
    from cddpm.predict.predictor import overview_rows
    from cddpm.scoring.figures import overview

    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        overview(overview_rows(prediction), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _stderr() -> Console:
    return Console(file=sys.stderr, soft_wrap=True, highlight=False)
