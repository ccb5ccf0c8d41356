"""``cddpm predict``: anomaly maps of scans, from a model package or a registered model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from cddpm.cli.shell import Window
from cddpm.errors import ConfigError
from cddpm.text import Console, printable, whole

if TYPE_CHECKING:
    from cddpm.predict.batch import Outcome, Work
    from cddpm.predict.scans import Job, LeftOut
    from cddpm.predict.source import Source
    from cddpm.tracking.package import Package


def predict(
    scans: Annotated[
        list[Path],
        typer.Argument(
            metavar="SCAN...",
            help="Skull-stripped NIfTI files; folders, searched for them (masks and segmentations are left out by their "
            "names, and told); CSV tables (columns scan, mask, volume_id, dataset, name; only scan must be there).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Results go to OUT/<name of the scan>, of a folder OUT/<path in it>.", show_default=False
        ),
    ],
    masks: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask", help="Brain mask; once per scan, in their order. Without it one is estimated.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Version number, alias, run id or <sweep>/<trial>; or a folder with a package or a checkpoint.",
        ),
    ] = "champion",
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Residual above which a voxel is anomalous, in units of [0, 1]; for a checkpoint, which has none.",
            show_default=False,
        ),
    ] = None,
    threshold_from: Annotated[
        Path | None,
        typer.Option(
            "--threshold-from",
            help="Take the threshold that 'cddpm registry calibrate' found for this model on healthy scans.",
            show_default=False,
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow server or database; without it outputs/mlflow.db here.",
            show_default=False,
        ),
    ] = None,
    registered_model: Annotated[str, typer.Option(help="Name of the registered model.")] = "cddpm",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the network runs.")] = "auto",
    dataset: Annotated[str, typer.Option(help="Data set whose threshold is used.")] = "all",
    window: Window = "whole",
    volume_ids: Annotated[
        list[str] | None,
        typer.Option(
            "--volume-id", help="Seeds the noise; once per scan. Without it the scan's name.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip scans whose whole result, of this model, lies in OUT.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="auto|local|HOST:PORT",
            help="Share the scans out over a Ray cluster: one process per GPU, or per CPU. local starts one here. "
            "Scans and OUT must lie where every node sees them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find anomalies in scans: anomaly map, reconstruction and segmentation in each scan's own grid, a picture, scores.

    A scan that cannot be used is reported and the others go on; the exit code is then 1.
    """
    one_per_scan("--mask", scans, masks)
    one_per_scan("--volume-id", scans, volume_ids)
    if threshold is not None and threshold_from is not None:
        raise ConfigError("--threshold and --threshold-from: each is a threshold; leave one of them out")
    jobs, left_out = _jobs(scans, out, dataset, masks, volume_ids)
    chosen = _source(model, tracking_uri, registered_model, threshold)
    if threshold_from is not None:
        chosen = _calibrated(chosen, threshold_from, jobs, window)
    _check(chosen.package, jobs, resume, window)
    tell_left_out(left_out)
    work = _work(chosen, resume, window)
    _print_outcomes(_outcomes(work, jobs, device, address), len(jobs), left_out)


def one_per_scan(option: str, scans: Sequence[Path], values: Sequence[Any] | None) -> None:
    """Raises ``typer.BadParameter`` unless there are as many ``values`` as ``scans``, which are single files, or none."""
    from cddpm.predict.scans import is_many

    if values and len(values) != len(scans):
        raise typer.BadParameter(
            f"{len(values)} given for {len(scans)} scans; give it once per scan, or never", None, None, option
        )
    if values and any(is_many(place) for place in scans):
        raise typer.BadParameter(
            "goes with single files; for many scans give a CSV table with such a column", None, None, option
        )


def _jobs(
    scans: list[Path], out: Path, dataset: str, masks: list[Path] | None, volume_ids: list[str] | None
) -> "tuple[list[Job], list[LeftOut]]":
    from cddpm.predict.scans import collect

    asked = collect(scans, out, dataset)
    jobs = with_masks(asked.jobs, masks)
    if volume_ids:
        jobs = [replace(job, volume_id=key) for job, key in zip(jobs, volume_ids, strict=True)]
    return jobs, asked.left_out


def tell_left_out(left_out: "Sequence[LeftOut]") -> None:
    """Each file of a folder that is not looked at, with the reason."""
    stderr = Console(stderr=True)
    for one in left_out:
        files = f" ({one.files} files)" if one.files > 1 else ""
        stderr.print(f"left out {stderr.path(one.path)}{files}: {escape(one.reason)}")


def with_masks(jobs: "Sequence[Job]", masks: Sequence[Path] | None) -> "list[Job]":
    """The jobs of single files with a mask each, if there are any."""
    return [replace(job, mask=mask) for job, mask in zip(jobs, masks, strict=True)] if masks else list(jobs)


def _source(model: str, uri: str | None, registered: str, threshold: float | None) -> "Source":
    from cddpm.predict.source import find

    return find(model, uri, registered, threshold)


def _calibrated(source: "Source", file: Path, jobs: "Sequence[Job]", window: Window) -> "Source":
    """The model with the threshold of ``file`` for all scans. Raises ``ConfigError`` if it was made for another model."""
    from cddpm import artifact
    from cddpm.predict import threshold_calibration
    from cddpm.scoring.score import ALL

    for job in jobs:
        if job.dataset != ALL:
            raise ConfigError(
                f"{job.source}: data set '{job.dataset}' has no say beside --threshold-from, whose threshold is for all scans; "
                "leave one of them out"
            )
    calibration = threshold_calibration.read(file)
    threshold_calibration.check_belongs(calibration, source.package, f"--threshold-from {file}", window)
    made = {
        "file": str(file.resolve()),
        "sha256": artifact.file_digest(file),
        "healthy_false_positive_rate": calibration.healthy_false_positive_rate,
        "package_fingerprint": source.package.fingerprint,
    }
    package = threshold_calibration.applied(source.package, calibration)
    return replace(source, package=package, found={**source.found, "threshold_from": made})


def _check(package: "Package", jobs: "Sequence[Job]", resume: bool, window: Window) -> None:
    """Faults of the call, told before any scan is looked at."""
    from cddpm.predict.coverage import looked_at
    from cddpm.predict.predictor import threshold_of
    from cddpm.predict.result import check_same

    for job in {job.dataset: job for job in jobs}.values():
        try:
            threshold_of(package, job.dataset)
        except ConfigError as error:
            raise ConfigError(f"{job.source}: {error}") from None
    for job in jobs if resume else ():
        check_same(job.folder, package.fingerprint, job, looked_at(window, package.config.data))


def _work(model: "Source", resume: bool, window: Window) -> "Work":
    from cddpm.predict.batch import Work

    return Work(model.package, model.found, resume=resume, window=window)


def _outcomes(work: "Work", jobs: "Sequence[Job]", device: str, address: str | None) -> "Iterable[Outcome]":
    from cddpm.predict import batch

    if address is not None:
        return batch.on_ray(work, jobs, device, address)
    return batch.here(replace(work, device=chosen_device(device)), jobs)


def chosen_device(wanted: str) -> str:
    """``cpu`` or ``cuda``. Raises ``ConfigError`` for ``cuda`` where there is none."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here; allowed are auto and cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _print_outcomes(outcomes: "Iterable[Outcome]", count: int, left_out: "Sequence[LeftOut]") -> None:
    """Tell each as it comes, and at the end, of many, how many there were of each kind."""
    stdout, stderr = Console(), Console(stderr=True)
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        scan = outcome.job.scan
        for warning in outcome.warnings:
            stderr.print(f"[yellow]warning[/] {stderr.path(scan)}: {escape(warning)}")
        if outcome.error is not None:
            stderr.print(f"[bold red]error[/] {escape(outcome.error)}")
        else:
            said = "was there already, kept" if outcome.kept else outcome.summary
            stdout.print(f"{whole(printable(scan.name))}: {escape(said)} -> {stdout.path(outcome.job.folder)}")
        kinds["failed" if outcome.error is not None else "kept" if outcome.kept else "done"] += 1
    files = sum(one.files for one in left_out)
    others = f"; {files} {'files' if files > 1 else 'file'} left out" if files else ""
    if kinds["failed"]:
        stderr.print(f"{kinds['failed']} of {count} scans failed{others}")
        raise typer.Exit(1)
    if count > 1 or files:
        stdout.print(f"{count} {'scans' if count > 1 else 'scan'}: {kinds['done']} done, {kinds['kept']} kept{others}")
