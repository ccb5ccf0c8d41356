"""``cddpm registry calibrate``: a threshold for somebody's own scans, from healthy ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from cddpm.cli.registry.options import AsJson, Model, Uri
from cddpm.cli.shell import Window, print_json
from cddpm.text import Console, Table, command
from cddpm.text.numbers import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cddpm.predict.source import Source
    from cddpm.predict.threshold_calibration import Measured, ThresholdCalibration


def calibrate(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="Version number, alias, run id or <sweep>/<trial>; or a folder with a package.",
            show_default=False,
        ),
    ],
    healthy: Annotated[
        list[Path],
        typer.Option(
            "--healthy",
            help="Scans of people without lesions whom the model was not trained on, as 'cddpm predict' takes them: a folder, "
            "a CSV table (columns scan, mask, ...) or a file. May be repeated.",
            show_default=False,
        ),
    ],
    fpr: Annotated[float, typer.Option("--fpr", help="Fraction of healthy brain voxels above the threshold.")] = 0.01,
    masks: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask",
            help="Brain mask of a single file; once per --healthy, in their order. Without it one is estimated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="JSON file for 'cddpm predict --threshold-from'.")] = Path(
        "calibration.json"
    ),
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the network runs.")] = "auto",
    window: Window = "whole",
    uri: Uri = None,
    model: Model = "cddpm",
    as_json: AsJson = False,
) -> None:
    """Find the threshold that so many voxels of healthy brains lie above; no lesion is needed.

    The registered package stays as it is. A scan that cannot be used is told and the others go on; the exit code is then 1.
    """
    from cddpm.cli.predict import chosen_device, one_per_scan, tell_left_out, with_masks
    from cddpm.predict import threshold_calibration
    from cddpm.predict.scans import asked_for
    from cddpm.predict.source import find

    threshold_calibration.check_rate(fpr)
    one_per_scan("--mask", healthy, masks)
    asked = asked_for(healthy, out)
    jobs = with_masks(asked.jobs, masks)
    source, on = find(ref, uri, model), chosen_device(device)
    threshold_calibration.check_free(out, source.package, window)
    tell_left_out(asked.left_out)
    measured = _measured(source, jobs, on, window)
    found = threshold_calibration.calibrate(source.package, measured, fpr, source.found, on, window)
    threshold_calibration.write(out, found)
    if as_json:
        print_json({**found.model_dump(mode="json"), "file": str(out.absolute())})
    else:
        _print(found, ref, model, uri, out, window)
    if found.unused:
        raise typer.Exit(1)


def _measured(source: "Source", jobs: "Sequence[Any]", device: str, window: Window) -> "list[Measured]":
    """Each scan, told on stderr as far as there is something to tell."""
    from cddpm.predict import threshold_calibration
    from cddpm.predict.predictor import Predictor

    stderr, found = Console(stderr=True), []
    for one in threshold_calibration.measure(Predictor(source.package, device, window), jobs):
        for warning in one.scores.warnings if one.scores else ():
            stderr.print(f"[yellow]warning[/] {escape(f'{one.job.scan}: {warning}')}")
        if one.error is not None:
            stderr.print(f"[bold red]error[/] {escape(one.error)}")
        found.append(one)
    failed = sum(one.error is not None for one in found)
    if failed:
        stderr.print(f"{failed} of {len(found)} scans failed")
    return found


def _print(found: "ThresholdCalibration", ref: str, model: str, uri: str | None, out: Path, window: Window) -> None:
    table = Table(show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in _rows(found).items():
        table.add_row(escape(name), escape(value))
    console = Console()
    console.print(table)
    if len(found.scans) == 1:
        console.print("One scan says nothing of other people; of more, their spread is told.")
    console.print(f"Written to {console.path(out)}. Use it with")
    console.command(_use(ref, model, uri, out, window), indent=0)


def _use(ref: str, model: str, uri: str | None, out: Path, window: Window) -> str:
    registered = [] if model == "cddpm" else ["--registered-model", model]
    book = ["--tracking-uri", uri] if uri else []
    looked_at = [] if window == "whole" else ["--window", window]
    words = ["cddpm", "predict", "SCAN.nii.gz", "--out", "results", "--model", ref, *registered, *book, *looked_at]
    return command(*words, "--threshold-from", out)


def _rows(found: "ThresholdCalibration") -> dict[str, str]:
    """What a person asks first: the threshold, what it rests on, and how far it may be trusted elsewhere."""
    rows = {
        "threshold": f"{found.threshold:.4g}",
        "scans": str(len(found.scans)),
        "brain voxels": f"{found.brain_voxels:,}",
        "above it": f"{percent(found.false_positive_rate)} ({percent(found.healthy_false_positive_rate)} asked for)",
        "segmented": f"{percent(found.after_component_filter)}, without small components",
    }
    if found.left_out:
        rates = [one.false_positive_rate for one in found.left_out]
        thresholds = [one.threshold for one in found.left_out]
        spread = f"{percent(min(rates))} to {percent(max(rates))}"
        rows["in a scan left out"] = f"{percent(sum(rates) / len(rates))} ({spread})"
        rows["threshold of the others"] = f"{min(thresholds):.4g} to {max(thresholds):.4g}"
    return rows
