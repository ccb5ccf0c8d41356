"""``cddpm report``: a sweep, or predicted scans, as one HTML page."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cddpm.text import Console, whole


def report(
    sweep: Annotated[
        str | None,
        typer.Argument(metavar="SWEEP", help="Name of a sweep below --output-dir, or its folder.", show_default=False),
    ] = None,
    scans: Annotated[
        list[Path] | None,
        typer.Option(
            "--scan",
            help="Instead of a sweep: what 'cddpm predict --out' named (all scans at any depth), or the folder of one in it. May "
            "be repeated.",
            show_default=False,
        ),
    ] = None,
    truths: Annotated[
        list[Path] | None,
        typer.Option(
            "--truth",
            help="Segmentation of a scan by a person; once per scan, in their order (those of one folder by name).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="File to write; without it report.html in the sweep's folder, or in that of the scans.",
            show_default=False,
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where sweeps keep everything.")] = Path("outputs"),
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a sweep, finished or not, or predicted scans, as one HTML page that opens without network.

    Scans can be looked through slice by slice, with a threshold that moves and, beside a truth, the Dice that it has.
    """
    if (sweep is None) == (not scans):
        raise typer.BadParameter("give the name of a sweep, or --scan FOLDER", param_hint="SWEEP")
    if truths and not scans:
        raise typer.BadParameter("goes with --scan; of a sweep the truth is known", param_hint="--truth")
    path = _of_scans(scans, truths or [], output) if scans else _of_sweep(str(sweep), output, output_dir)
    size = path.stat().st_size / 1e6
    console = Console()
    console.print(f"{console.path(path)} {whole(f'({size:.1f} MB)')}")
    if show and not webbrowser.open(path.as_uri()):
        Console(stderr=True).print("no browser was found here; open the file yourself")


def _of_sweep(sweep: str, output: Path | None, output_dir: Path) -> Path:
    from cddpm.report import page
    from cddpm.report.document import PAGE
    from cddpm.search import record

    folder = record.find(sweep, output_dir)
    return page.write(folder, output or folder / PAGE).resolve()


def _of_scans(places: Sequence[Path], truths: Sequence[Path], output: Path | None) -> Path:
    from cddpm.report import scan
    from cddpm.report.document import PAGE

    folders = scan.find(places)
    called = scan.names(folders)
    if truths and len(truths) != len(folders):
        named = ", ".join(called[:10])
        raise typer.BadParameter(
            f"{len(truths)} given for {len(folders)} scans ({named}); give it once per scan, in this order, or never",
            param_hint="--truth",
        )
    if output is None and len(places) > 1:
        raise typer.BadParameter(
            "several --scan have no folder in common; name the file to write", param_hint="--output"
        )
    read = [scan.read(folder, truths[i] if truths else None, called[i]) for i, folder in enumerate(folders)]
    return scan.write(read, output or places[0] / PAGE).resolve()
