"""``cddpm data``: make a phantom, check a DATA_DIR or a table, tell its leaks, build its slice store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from cddpm.cli.shell import Storage, print_json
from cddpm.storage import is_uri, settled
from cddpm.text import Console, Table, whole

if TYPE_CHECKING:
    from cddpm.config import DataConfig
    from cddpm.data.finding import Report
    from cddpm.data.split_report import SplitReport, SplitState
    from cddpm.report.survey import Survey

app = typer.Typer(no_args_is_help=True, help="Make a phantom, check scans, tell leaks, build a slice store.")

DataDir = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA_DIR",
        help="Folder or s3://... with Train, Test and splits, or where a table's paths begin.",
        show_default=False,
    ),
]
ScanTable = Annotated[
    Path | None,
    typer.Option("--table", help="CSV or YAML file that names the scans, instead of split files.", show_default=False),
]
Configuration = Annotated[
    Path | None, typer.Option("--config", help="Experiment file; its data section is used.", show_default=False)
]
Modality = Annotated[
    str | None, typer.Option("--modality", help="As in the names of files, t1 or t2 say.", show_default=False)
]
Fold = Annotated[int | None, typer.Option("--fold", min=0, help="Fold of the healthy data.", show_default=False)]
Healthy = Annotated[str | None, typer.Option("--healthy", help="Healthy data set.", show_default=False)]
Unhealthy = Annotated[
    list[str] | None, typer.Option("--unhealthy", help="Unhealthy data set; once for each.", show_default=False)
]
Splits = Annotated[
    Literal["clean", "published", "strict"] | None,
    typer.Option("--splits", help="What to do with subjects that stand in two splits.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster (or RAY_ADDRESS); without it Ray is started here.")
]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or the same phantom.", show_default=False)],
    subjects: Annotated[
        int | None, typer.Option("--subjects", min=1, help="Healthy subjects of training.", show_default=False)
    ] = None,
    healthy_val: Annotated[int | None, typer.Option(min=1, help="Of validation.", show_default=False)] = None,
    healthy_test: Annotated[int | None, typer.Option(min=1, help="Of test.", show_default=False)] = None,
    unhealthy_val: Annotated[
        int | None, typer.Option(min=1, help="Per unhealthy data set, validation.", show_default=False)
    ] = None,
    unhealthy_test: Annotated[
        int | None, typer.Option(min=1, help="Per unhealthy data set, test.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, other subjects.", show_default=False)] = None,
    size: Annotated[
        Literal["small", "full"] | None, typer.Option(help="Voxels of 2 mm or 1 mm.", show_default=False)
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Without it one per CPU.", show_default=False)] = None,
) -> None:
    """Draw a synthetic cohort in the published layout, to run everything without a scan of any person."""
    from cddpm.config import PhantomConfig
    from cddpm.data.phantom.folder import make_phantom

    given = {
        "healthy_train": subjects,
        "healthy_val": healthy_val,
        "healthy_test": healthy_test,
        "unhealthy_val": unhealthy_val,
        "unhealthy_test": unhealthy_test,
        "seed": seed,
        "size": size,
    }
    config = PhantomConfig.model_validate({name: value for name, value in given.items() if value is not None})
    path = make_phantom(out, config, parallel=processes)
    scans = len(list(path.rglob("*.nii.gz")))
    console = Console()
    console.print(f"{console.path(path)}: {scans} files of a {config.size} phantom, seed {config.seed}")


@app.command()
def check(
    data_dir: DataDir = None,
    config: Configuration = None,
    table: ScanTable = None,
    modality: Modality = None,
    fold: Fold = None,
    healthy: Healthy = None,
    unhealthy: Unhealthy = None,
    splits: Splits = None,
    as_json: AsJson = False,
) -> None:
    """Read every split file and every scan, and list all faults. Exit code 1 if there are errors."""
    given = {
        **_places(data_dir, table),
        "data.modality": modality,
        "data.fold": fold,
        "data.healthy": healthy,
        "data.unhealthy": unhealthy or None,
        "data.splits": splits,
    }
    data = _data_config(config, {name: value for name, value in given.items() if value is not None})
    from cddpm.data import check as checking  # slow to import: a wrong setting is told at once
    from cddpm.data.layout import root_of

    report = checking.check(data, root_of(data))
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    if report.errors:
        raise typer.Exit(1)


@app.command()
def splits(
    data_dir: DataDir = None,
    table: ScanTable = None,
    modality: Annotated[
        str, typer.Option("--modality", help="Only scans that exist in it; t1 is every row of the published files.")
    ] = "t1",
    healthy: Healthy = None,
    unhealthy: Unhealthy = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", help="New folder for clean split files and report.json.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell repeated rows and subjects in two splits, as the splits are and clean; the scans need not be there."""
    given = {
        **_places(data_dir, table),
        "data.modality": modality,
        "data.healthy": healthy,
        "data.unhealthy": unhealthy or None,
    }
    data = _data_config(None, {name: value for name, value in given.items() if value is not None})
    from cddpm.data import split_report  # slow to import: a wrong setting is told at once
    from cddpm.data.layout import root_of

    root = root_of(data)
    if table is None:
        data = _there(data, root, given)
    report = split_report.write_clean(data, root, write) if write else split_report.report_splits(data, root)
    if as_json:
        print_json(report.to_dict())
    else:
        _print_splits(report, write)


@app.command()
def report(
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("data_report.html"),
    config: Configuration = None,
    table: ScanTable = None,
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help="Once for each; without it all that DATA_DIR has.", show_default=False),
    ] = None,
    fold: Fold = None,
    healthy: Healthy = None,
    unhealthy: Unhealthy = None,
    as_json: AsJson = False,
) -> None:
    """Write one page with pictures and quality figures of every scan, outliers first, to tick who is to be left out."""
    given = {
        **_places(data_dir, table),
        "data.modality": modality[0] if modality else None,
        "data.fold": fold,
        "data.healthy": healthy,
        "data.unhealthy": unhealthy or None,
    }
    data = _data_config(config, {name: value for name, value in given.items() if value is not None})
    from cddpm.data.layout import root_of  # slow to import: a wrong setting is told at once
    from cddpm.report import cohort
    from cddpm.report.survey import modalities_in, survey

    root = root_of(data)
    if config is None and table is None:
        data = _there(data, root, given)
    chosen = modality or (() if config or table else modalities_in(root)) or (data.modality,)
    found = survey(data, root, tuple(dict.fromkeys(chosen)), done=_tell_progress)
    path = cohort.write(found, out)
    if as_json:
        print_json({**found.to_dict(), "page": str(path)})
    else:
        _print_survey(found, path)


@app.command()
def build(
    data_dir: DataDir = None,
    *,
    config: Annotated[
        Path, typer.Option("--config", help="Experiment file; its data section is used.", show_default=False)
    ],
    table: ScanTable = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Instead of the file's output_dir.", show_default=False)
    ] = None,
    storage: Storage = None,
    address: Address = None,
) -> None:
    """Check every scan, and prepare it, as Ray tasks, into the slice store that trainings read."""
    from cddpm import cluster
    from cddpm.config import load

    places = {"output_dir": str(output_dir) if output_dir else None, "storage": storage}
    values = {**_places(data_dir, table), **places}
    settings = load(config, {name: value for name, value in values.items() if value is not None})
    cluster.check_answers(address)
    from cddpm.data import check as checking  # slow to import: a wrong setting is told at once
    from cddpm.data.layout import read_layout, root_of
    from cddpm.data.store import SliceStore, build_store
    from cddpm.shelf import Shelf

    root, afar = root_of(settings.data), is_uri(str(settings.data.data_dir))
    if afar:
        cluster.connect(address)
    try:
        report = checking.check(settings.data, root, cluster.over_scans(settings) if afar else None)
        _print_report(report)
        if report.errors:
            raise typer.Exit(1)
        rows = read_layout(settings.data, root).rows
        if not afar:
            cluster.connect(address)
        path = build_store(settings.data, root, rows, Shelf.of(settings.kept_in), cluster.over_scans(settings))
    finally:
        cluster.kill()
    store = SliceStore.open(path)
    height, width = store.slice_shape
    console = Console()
    console.print(f"{console.path(path)}: {len(store.volumes)} volumes, {len(store)} slices of {height}x{width}")


def _places(data_dir: str | None, table: Path | None) -> dict[str, str | None]:
    """Where the data are, as settings."""
    place = settled(data_dir) if data_dir else None
    scans = str(Path(place).absolute()) if place and not is_uri(place) else place
    return {"data.data_dir": scans, "data.table": str(table.absolute()) if table else None}


def _data_config(file: Path | None, values: dict[str, Any]) -> "DataConfig":
    from cddpm.config import load, override, parse

    if file is not None:
        return load(file, values).data
    source = "options"
    return parse(override({"name": "data"}, values, source), source).data


def _there(data: "DataConfig", root: Path, given: dict[str, Any]) -> "DataConfig":
    """With the data sets that have split files below ``root``, where none were ``given``."""
    from cddpm.data.split_report import healthy_in, unhealthy_in

    folder = root / "splits"
    healthy = given["data.healthy"] or healthy_in(folder, data.healthy)
    return data.model_copy(
        update={"healthy": healthy, "unhealthy": given["data.unhealthy"] or unhealthy_in(folder, healthy)}
    )


def _print_report(report: "Report") -> None:
    console = Console()
    colours = {"error": "red", "warning": "yellow"}
    for finding in report.findings:
        said = escape(finding.said)
        label = f"[{colours[finding.severity]}]{finding.severity}[/]"
        console.print(f"{label}: {console.path(finding.file)}: {said}")
    for line in report.lines()[len(report.findings) :]:
        console.print(escape(line))


def _tell_progress(count: int, of: int) -> None:
    """A line at each tenth of a cohort that takes minutes."""
    if of >= 50 and count * 10 // of > (count - 1) * 10 // of:
        typer.echo(f"{count} of {of} scans", err=True)


def _print_survey(found: "Survey", path: Path) -> None:
    from cddpm.data.outlier import ODD

    console = Console()
    for scan in [scan for scan in found.scans if scan.unreadable or scan.warned or scan.judged.score > ODD][:5]:
        said = [
            *scan.judged.reasons(found.figures),
            *(finding.found for finding in found.own(scan) or scan.look.findings),
        ]
        console.print(escape(f"{scan.key} {scan.modality}: {said[0]}"))
    console.print(
        f"{console.path(path)}: {len(found.scans)} scans; its list belongs to {console.path(found.list_file)}"
    )


def _print_splits(report: "SplitReport", written: Path | None) -> None:
    from cddpm.data.split_report import REPORT

    console = Console()
    _print_state(console, "As they are", report.published)
    _print_state(console, "Clean", report.clean)
    console.print(escape(report.told_of_scans()))
    for finding in report.exclusions:
        console.print(f"{console.path(finding.file)}: {escape(finding.said)}")
    if written:
        console.print(f"{console.path(written)}: clean split files and {REPORT}")


def _print_state(console: Console, heading: str, state: "SplitState") -> None:
    console.print(f"{heading}: {state.repeats} rows repeat a scan, {state.leaks} times a subject is in two splits")
    table = Table()
    table.add_column("split")
    for name in ("rows", "subjects", "repeated"):
        table.add_column(name, justify="right")
    table.add_column("also in another split")
    for split in state.splits:
        also = ", ".join(whole(f"{len(names)} in {title}") for title, names in split.leaked.items()) or "-"
        table.add_row(escape(split.title), str(split.rows), str(split.subjects), str(split.rows - split.subjects), also)
    console.print(table)
    for fold in state.folds:
        console.print(
            f"  fold {fold.fold}: {fold.train} training, {fold.val} validation, {fold.test} test subjects, "
            f"{fold.in_two} of them in two splits"
        )
    if state.validated_again:
        console.print(f"  {state.validated_again} subjects are validated on in more than one fold")
    for name, columns in state.conflicts.items():
        console.print(f"  {escape(name)}: its rows differ in {escape(', '.join(columns))}")
    console.print()
