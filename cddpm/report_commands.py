"""``cddpm report``: a sweep as one HTML page."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape


def report(
    sweep: Annotated[
        str,
        typer.Argument(metavar="SWEEP", help="Name of a sweep below --output-dir, or its folder.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="File to write; without it report.html in the sweep's folder.", show_default=False
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where sweeps keep everything.")] = Path("outputs"),
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a sweep, finished or not, as one HTML page that opens without network."""
    from cddpm.report import page
    from cddpm.search import record

    folder = record.find(sweep, output_dir)
    path = page.write(folder, output or folder / page.PAGE).resolve()
    size = path.stat().st_size / 1e6
    Console().print(f"{escape(str(path))} ({size:.1f} MB)", soft_wrap=True, highlight=False)
    if show and not webbrowser.open(path.as_uri()):
        Console(stderr=True).print("no browser was found here; open the file yourself", highlight=False)
