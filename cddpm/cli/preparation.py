"""``cddpm data prepare``: raw scans, as they were downloaded or come from the hospital, to a DATA_DIR."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from cddpm.cli.shell import Address, print_json
from cddpm.errors import ConfigError, DataError
from cddpm.storage import is_uri, settled
from cddpm.text import Console, numbers

if TYPE_CHECKING:
    from cddpm.config.preparation import PreparationConfig
    from cddpm.data.finding import Finding
    from cddpm.data.many import ParallelMap
    from cddpm.data.raw.names import Veil
    from cddpm.data.raw.run import Job, Outcome, Work
    from cddpm.data.raw.tree import Found

MEMORY_BYTES = 2 << 30
"""Booked for each subject that is worked on."""


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="IXI, Brats21, MSLUB, ATLAS_v2, WMH or custom.", show_default=False),
    ],
    raw_dir: Annotated[
        str, typer.Argument(metavar="RAW_DIR", help="Folder (or s3://...) of the download.", show_default=False)
    ],
    data_dir: Annotated[
        str,
        typer.Argument(metavar="DATA_DIR", help="Folder (or s3://...) in the published layout.", show_default=False),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with the steps and their settings.", show_default=False)
    ] = None,
    layout: Annotated[
        Path | None,
        typer.Option("--layout", help="Of custom: YAML file that says where the scans are.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of a BIDS folder: name of the data set.")] = "Custom",
    modality: Annotated[
        list[str] | None,
        typer.Option(
            "--modality", help="Once for each; the first is the reference. Else the usual ones.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option("--steps", help="Steps in their order, separated by commas.", show_default=False)
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", help="Your SRI24 or MNI152: scans are brought to it.", show_default=False),
    ] = None,
    template_mask: Annotated[
        Path | None, typer.Option("--template-mask", help="The template's brain mask.", show_default=False)
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option("--extractor", help="auto, given, hd-bet, synthstrip or classical.", show_default=False),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option("--series", help="DICOM series: NUMBER, or MODALITY=NUMBER once for each.", show_default=False),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            "--splits", help="Folder of split files that decide; else hashes of names do.", show_default=False
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option("--names", help="File of replaced names; else beside DATA_DIR.", show_default=False),
    ] = None,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="Names stay, even if they may be persons' or hold dates.")
    ] = False,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", min=1, help="Subjects at a time; 1: here, without Ray.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what was found and what is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    address: Address = None,
) -> None:
    """Find raw scans, prepare them, as Ray tasks, and write them with manifests and clean split files.

    What is done is not done again; a scan that cannot be used stops no other one. Exit code 1 if there is one.
    """
    given = {"steps": steps.split(",") if steps else None, "template": template, "template_mask": template_mask}
    settings = _settings(config, {**given, "extractor": extractor})
    from cddpm.data.afar import outlined
    from cddpm.data.raw import run, survey
    from cddpm.data.raw.depot import Depot
    from cddpm.data.raw.names import Names

    source, depot = settled(raw_dir), Depot(_absolute(settled(data_dir)))
    root = outlined(source).absolute()
    _refuse_nested(root, depot.folder)
    everything = survey.survey(dataset, root, tuple(modality or ()), layout, name)
    known = Names.open(_names_file(names, depot.folder), depot.folder, keep_names)
    jobs = [job for found in everything for job in run.jobs_of(found, root, known)]
    veil = _veil(everything, known, root)
    told = [veil.finding(finding) for found in everything for finding in found.findings]
    if dry_run:
        _tell(everything, jobs, told, [], as_json)
        raise typer.Exit(int(any(finding.severity == "error" for finding in told)))
    known.write()  # before anything has a name from it
    work = _work(depot, settings, _series(series), jobs)
    needed = {**({} if is_uri(source) else {"RAW_DIR": root}), **_named_files(settings)}
    outcomes = _outcomes(work, jobs, needed, at_once, address, as_json)
    told += [veil.finding(one) for found in everything for one in _tables(work, found, outcomes, splits)]
    _tell(everything, jobs, told, outcomes, as_json)
    failed = any(one.state == "failed" for one in outcomes) or any(finding.severity == "error" for finding in told)
    raise typer.Exit(int(failed))


def _settings(file: Path | None, given: dict[str, Any]) -> "PreparationConfig":
    from pydantic import ValidationError

    from cddpm.config.loading import explain, read_yaml
    from cddpm.config.preparation import PreparationConfig

    values = {
        **(read_yaml(file) if file else {}),
        **{name: value for name, value in given.items() if value is not None},
    }
    try:
        settings = PreparationConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, str(file or "options"), PreparationConfig))) from None
    # tasks on other nodes are in other folders
    return settings.model_copy(update={name: path.absolute() for name, path in _named_files(settings).items()})


def _named_files(settings: "PreparationConfig") -> dict[str, Path]:
    """Files that every subject needs, by the name of their setting."""
    named = {name: getattr(settings, name) for name in ("template", "template_mask", "extractor_program")}
    return {name: path for name, path in named.items() if path is not None}


def _work(depot: Any, settings: "PreparationConfig", series: dict[str, str], jobs: Iterable["Job"]) -> "Work":
    """The steps of those who bring a brain mask, and of those who do not, where there are such."""
    from cddpm.data.raw.run import Work
    from cddpm.data.raw.steps import steps_of

    kinds = {job.subject.mask is not None for job in jobs}
    made = {masked: steps_of(settings, masked) for masked in kinds or {False}}
    return Work(depot, made.get(False, ()), series, made.get(True))


def _series(texts: list[str] | None) -> dict[str, str]:
    pairs = [text.rpartition("=") for text in texts or ()]
    found = {modality: number for modality, _, number in pairs}
    if len(found) < len(pairs) or not all(found.values()):
        raise ConfigError(f"--series {', '.join(texts or ())}: allowed is NUMBER, or MODALITY=NUMBER once for each")
    return found


def _outcomes(
    work: "Work", jobs: list["Job"], needed: Mapping[str, Path], at_once: int | None, address: str | None, quiet: bool
) -> list["Outcome"]:
    from cddpm.data.raw.run import prepare as prepare_all
    from cddpm.text.progress import progress

    outcomes = []
    console = Console(stderr=quiet)
    with _spread(work, needed, at_once, address) as parallel_map, progress(console, "prepared", len(jobs)) as one:
        for outcome in prepare_all(work, jobs, parallel_map):
            outcomes.append(outcome)
            one(outcome.name)
    return outcomes


@contextlib.contextmanager
def _spread(
    work: "Work", needed: Mapping[str, Path], at_once: int | None, address: str | None
) -> Iterator["ParallelMap"]:
    """One after the other in this process, or as Ray tasks on every node.

    Each must see a DATA_DIR on a disk, and what is ``needed`` (by what it is to a user).
    """
    if at_once == 1:
        yield map
        return
    from cddpm import cluster

    cluster.check_answers(address)
    cluster.connect(address)
    try:
        if work.depot.folder is not None:
            work.depot.folder.mkdir(parents=True, exist_ok=True)
            needed = {**needed, "DATA_DIR": work.depot.folder}
        for what, path in needed.items():
            cluster.check_seen(path, what)
        yield lambda function, jobs: cluster.bounded_map(function, jobs, _lost, at_once, MEMORY_BYTES)
    finally:
        cluster.kill()


def _lost(job: "Job", why: str) -> "Outcome":
    from cddpm.data.raw.run import Outcome

    return Outcome(
        job, "failed", error=f"its process died ({job.veil.over(why)}); give its node more memory, or lower --at-once"
    )


def _tables(work: "Work", found: "Found", outcomes: list["Outcome"], splits: Path | None) -> Iterator["Finding"]:
    from cddpm.data.raw import tables

    rows = [one.row for one in outcomes if one.state != "failed" and one.job.subject.dataset == found.dataset]
    shares: tables.Shared = found.shares
    if splits is not None:
        shares, told = tables.published(found.dataset, found.healthy, splits)
        yield from told
    if rows:
        yield from tables.write(work.depot, found.dataset, found.healthy, rows, shares)
        yield from tables.other_steps(work.depot, found.dataset)


def _tell(
    everything: list["Found"], jobs: list["Job"], told: list["Finding"], outcomes: list["Outcome"], as_json: bool
) -> None:
    failed = [one for one in outcomes if one.state == "failed"]
    counts = {state: sum(one.state == state for one in outcomes) for state in ("made", "there", "failed")}
    if as_json:
        found = {one.dataset: [_facts(job) for job in jobs if job.subject.dataset == one.dataset] for one in everything}
        warned = {one.name: list(one.warnings) for one in outcomes if one.warnings}
        errors = {one.name: one.error for one in failed}
        findings = [asdict(finding) for finding in told]
        print_json({"found": found, "findings": findings, "warnings": warned, "errors": errors, **counts})
        return
    from cddpm.data.split import names

    console = Console()
    for finding in sorted(told, key=lambda finding: finding.severity != "error"):
        colour = "red" if finding.severity == "error" else "yellow"
        console.print(f"[{colour}]{finding.severity}[/]: {console.path(finding.file)}: {escape(finding.said)}")
    for text, who in _by_text(outcomes).items():
        console.print(f"[yellow]warning[/]: {escape(names(who))}: {escape(text)}")
    for one in failed:
        console.print(f"[red]error[/]: {escape(one.name)}: {escape(one.error)}")
    for found_of in everything:
        mine = [job for job in jobs if job.subject.dataset == found_of.dataset]
        kinds = dict.fromkeys(modality for job in mine for modality in job.subject.images)
        scans = ", ".join(f"{sum(kind in job.subject.images for job in mine)} {kind}" for kind in kinds)
        console.print(f"{found_of.dataset}: {numbers.counted(len(mine), 'subject')}{f' ({scans})' if scans else ''}")
    if outcomes:
        console.print(f"{counts['made']} prepared, {counts['there']} were there already, {counts['failed']} failed")


def _by_text(outcomes: Iterable["Outcome"]) -> dict[str, list[str]]:
    """Names by warning: what is told of a whole data set is one line."""
    found: dict[str, list[str]] = {}
    for one in outcomes:
        for warning in one.warnings:
            found.setdefault(warning, []).append(one.name)
    return found


def _facts(job: "Job") -> dict[str, Any]:
    return {
        "subject": job.subject.subject,
        "paths": dict(job.paths),
        "label": job.subject.label,
        "age": job.subject.age,
    }


def _veil(everything: list["Found"], known: Any, root: Path) -> "Veil":
    """Hides what may not be told of any file that was found or is named in a finding."""
    from cddpm.data.raw.run import files_of

    subjects = [subject for found in everything for subject in found.subjects]
    named = [Path(file) for found in everything for one in found.findings for file in (one.file, *one.others)]
    paths = [path for subject in subjects for path in files_of(subject).values()]
    below = [path for path in (*paths, *named) if path.is_relative_to(root)]
    left_out = [(found.dataset, name) for found in everything for name in found.left_out]
    veil: Veil = known.veil(root, below, [*((one.dataset, one.subject) for one in subjects), *left_out])
    return veil


def _absolute(place: str) -> str:
    return place if is_uri(place) else str(Path(place).absolute())


def _names_file(given: Path | None, folder: Path | None) -> Path:
    if given is not None:
        return given
    if folder is None:
        return Path("names.json").absolute()
    return folder.with_name(f"{folder.name}.names.json")


def _refuse_nested(root: Path, folder: Path | None) -> None:
    if folder is not None and folder.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{folder}: DATA_DIR lies in RAW_DIR, where its files would be taken for raw scans; name a folder outside"
        )
